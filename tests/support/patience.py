"""What tests wait for is awaited however busy the machine is: a fixture for this process, an app for those they start.

Owns which of the product's clocks are long there: those after which an answer goes without what was booked or counted,
and a statement without a lock. A test whose subject is one of these clocks must not use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.apps import AppConfig

SECONDS = 30.0


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest) -> Iterator[None]:
    """With its answer in hand a test looks at what was booked. Not where it takes the authority's answers away.

    For the conftest.py of the folders that buy.
    """
    if "app" not in request.fixturenames or "lossy" in request.fixturenames:
        yield
    else:
        with _long_clocks():
            yield


@pytest.fixture
def patient() -> Iterator[None]:
    """The same for those who ask for it."""
    with _long_clocks():
        yield


@contextmanager
def _long_clocks() -> Iterator[None]:
    from billing import reservations
    from chat import llm
    from chat.streams import Answering

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Answering.finished, "__defaults__", (SECONDS,))
        patch.setattr(reservations, "SETTLE_SECONDS", SECONDS)
        patch.setattr(llm, "COUNT_SECONDS", SECONDS)
        yield


class Patience(AppConfig):
    """For INSTALLED_APPS: tests/support/patient_settings.py."""

    name = "tests.support.patience"

    def ready(self) -> None:
        from billing.engine import store
        from chat.streams import Answering

        store.LOCK_SECONDS = SECONDS
        Answering.finished.__defaults__ = (SECONDS,)
