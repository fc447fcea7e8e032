"""A raw model for the tests of /v1: it sends what a test says, byte by byte."""

from __future__ import annotations

import pytest

from tests.chat.v1.test_relaying import ASK
from tests.support.money import INPUT, OUTPUT
from tests.support.raw_model import RawModel


@pytest.fixture
def model(app, settings):
    """A model of this test's own at the usual price, that does as `model.script` says."""
    with RawModel() as model:
        settings.LLM_BASE_URL, settings.LLM_MODEL = model.base_url, f"raw-{id(model)}"
        settings.LLM_PRICES = {settings.LLM_MODEL: {"input": INPUT * 1_000_000, "output": OUTPUT * 1_000_000}}
        yield model


@pytest.fixture
def ask(workspace, model, settings):
    def ask_for(path="chat/completions", **fields):
        body = {**ASK, "model": settings.LLM_MODEL, **fields}
        return workspace.api(alone=True).post(f"/v1/{path}", {k: v for k, v in body.items() if v is not None})

    return ask_for
