"""What tests of the engine share: a model of the test's own, its habits, and a proxy before the authority."""

from __future__ import annotations

from itertools import count

import pytest

from tests.support.lossy import LossyProxy
from tests.support.money import trust

_numbers = count(1)


@pytest.fixture
def model(upstream, settings):
    """A model that no other test has taught anything, at $10 in and $40 out per million tokens."""
    name = f"model-{next(_numbers)}"
    settings.LLM_MODEL = name
    settings.LLM_PRICES = {name: {"input": 1_000_000_000, "output": 4_000_000_000}}
    return name


@pytest.fixture
def trusted(model):
    """The same model past its twenty reports: it gets slices, at first of 64 tokens."""
    trust(model)
    return model


@pytest.fixture
def lossy(app, authority, settings):
    """A proxy before the authority's runtime plane that can lose or refuse what the test says."""
    before = settings.CYCLES_BASE_URL
    with LossyProxy(authority.runtime_url) as proxy:
        settings.CYCLES_BASE_URL = proxy.url
        yield proxy
        settings.CYCLES_BASE_URL = before
