"""The call that pays for the code that runs now, for code that buys inside a guarded function."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from billing.reservations import Reservation

current: ContextVar[Reservation | None] = ContextVar("current_reservation", default=None)
