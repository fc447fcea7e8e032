"""What tests of money share."""

import pytest

from billing import reservations
from chat.streams import Answering
from tests.support.money import lossy, lossy_admin

__all__ = ["lossy", "lossy_admin"]


@pytest.fixture
def patient(monkeypatch):
    """Who settles or reads an answer waits until that is booked, and not for a second or two at most: the line and
    the balances are looked at next.
    """
    monkeypatch.setattr(reservations, "SETTLE_SECONDS", 30.0)
    monkeypatch.setattr(Answering.finished, "__defaults__", (30.0,))
