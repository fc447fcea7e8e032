"""What tests of the engine share."""

import pytest

from billing.engine import loop as engine_loop
from tests.support.bare_http import certificate, of_server, trusting
from tests.support.money import lossy, model, trusted

__all__ = ["certificate", "lossy", "model", "of_server", "trusted", "trusting"]


@pytest.fixture
def alone():
    """No engine of earlier tests, which would open connections of its own beside those that are counted."""
    engine_loop.stop()
