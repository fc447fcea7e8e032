"""The browser tests whose model does as it is told. They are a package of their own, for they share one stack, whose
jobs process would do what another test stops that of `web` from.
"""

from __future__ import annotations

import json

import pytest
from django.conf import settings

from tests.e2e.conftest import Stack


@pytest.fixture(scope="package")
def odd(app, database_url, authority, upstream_server, tmp_path_factory):
    """The same on the fake upstream, which does as it is told."""
    variables = {
        "LLM_BASE_URL": upstream_server.base_url,
        "LLM_MODEL": "heron-1",
        "LLM_PRICES": json.dumps({"heron-1": {"input": 10, "output": 40}}),
        "MODELS": json.dumps({"big": {"price": {"input": 1, "output": "2.5"}, "context": 8192, "image_tokens": 700}}),
        "BUDGET_WAIT_SECONDS": "1",
        "TOP_UP_URL": "https://pay.example/",
    }
    folder = tmp_path_factory.mktemp("odd")
    with Stack(folder, database_url=database_url, authority=authority, **variables) as stack:
        yield stack


@pytest.fixture
def upstream(upstream_server):
    upstream_server.reset()
    return upstream_server


@pytest.fixture
def signed_in(page, odd, workspace):
    """The owner's browser on the chat page, with the session of a log-in in this process. tests/e2e has the form's."""
    enter(page, odd, workspace)
    return page


def enter(page, odd, workspace, path="/"):
    session = workspace.client(workspace.owner).cookies[settings.SESSION_COOKIE_NAME].value
    address = odd.address(workspace.slug)
    page.context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": address}])
    page.goto(address + path)
    page.locator("textarea[name=prompt]").wait_for()
