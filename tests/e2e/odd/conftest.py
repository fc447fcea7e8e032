"""The browser tests whose model does as it is told. They are a package of their own, for they share one stack, whose
jobs process would do what another test stops that of `web` from.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.e2e.conftest import Stack, hash_of_password
from tests.support.cast import PASSWORD


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
    """The owner's browser on the chat page."""
    owner = workspace.owner
    owner.password = hash_of_password()
    with workspace.scope():
        owner.save(update_fields=["password"])
    page.set_default_timeout(20_000)
    page.goto(odd.address(workspace.slug) + "/login/")
    page.get_by_label("E-mail").fill(owner.email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name=re.compile("log in|sign in", re.IGNORECASE)).click()
    page.wait_for_url(odd.address(workspace.slug) + "/")
    return page
