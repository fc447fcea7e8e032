"""Whether the books of a tenant, or the house, agree: its lines, holds, ledgers, and the authority's reservations.

Owns the comparison, and the cause of each difference in words. Reads only: the sweep settles, an operator mends.
Must not be on any call's or page's path: it reads every reservation that the authority knows of.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models.functions import Now

from billing import admin_client, periods
from billing.admin_client import FundingEvent
from billing.client import house_subject_tenant
from billing.engine.engine import SILENT_SECONDS
from billing.ledgers import Ledger, all_ledgers, unmeetable
from billing.lines import SettledCall
from billing.models import Account, Hold, HouseLine, Process
from billing.money import UNIT, usd
from billing.subjects import scopes_of
from billing.usage.models import UsageLine
from tenants.context import tenant_scope

# A ledger that moves while it is read is read again, so often.
ATTEMPTS = 5
PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Reserved:
    """One reservation. `hold` and `n` are read from its name, where it has one of ours."""

    id: str
    status: str
    amount: int
    committed: int
    hold: UUID | None
    n: int
    is_ours: bool  # its commit says how the cost is known, as only the engine's do


@dataclass(frozen=True, slots=True)
class Line:
    hold: UUID
    cost: int


@dataclass(frozen=True, slots=True)
class Row:
    """A hold that is not settled."""

    hold: UUID
    is_final: bool
    is_silent: bool


@dataclass(slots=True)
class Books:
    """What was read of one payer, in this order: a call that ends meanwhile is then missed by none of them."""

    root: Ledger | None
    ledgers: list[Ledger] = field(default_factory=list)
    reservations: list[Reserved] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    spent_before: int = 0  # what the authority counted in periods that are closed
    is_turning: bool = False  # the next period is asked for, and its answer not written down
    resets_by_hand: list[FundingEvent] = field(default_factory=list)

    def summary(self) -> str:
        states = Counter(one.status.lower() for one in self.reservations)
        listed = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
        spent = usd(self.root.spent + self.spent_before) if self.root else "—"
        total = usd(sum(line.cost for line in self.lines))
        return (
            f"spent ${spent} by the ledger, ${total} by {len(self.lines)} lines; "
            f"{len(self.rows)} under way; reservations: {listed}"
        )


def read(account: Account) -> Books:
    """The tenant's books at one moment, as far as there is one. Raises a BudgetError where they cannot be had."""

    def lines() -> list[Line]:
        with tenant_scope(account.tenant):
            return _lines(UsageLine)

    return _read(account.subject_tenant, account, lines)


def read_house() -> Books:
    """The house's books, the same way. Raises NoHouseAccount too."""
    return _read(house_subject_tenant(), None, lambda: _lines(HouseLine))


def house_has_books() -> bool:
    return bool(settings.CYCLES_TENANT) or Hold.objects.filter(account=None).exists()


def _lines(model: type[SettledCall]) -> list[Line]:
    return [Line(*row) for row in model._default_manager.values_list("hold", "cost")]


def _read(subject_tenant: str, account: Account | None, lines: Callable[[], list[Line]]) -> Books:
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        before = _root(subject_tenant, all_ledgers(subject_tenant))
        books = Books(None)
        books.reservations = [_reserved(one) for one in admin_client.reservations(subject_tenant)]
        books.rows = list(_rows(account))
        books.lines = lines()
        if account is not None:
            _read_periods(books, account)
        books.ledgers = all_ledgers(subject_tenant)
        books.root = _root(subject_tenant, books.ledgers)
        if books.root == before:
            break
    return books


def _read_periods(books: Books, account: Account) -> None:
    books.resets_by_hand = periods.resets_by_hand(account)
    books.spent_before = periods.spent_before(account)
    books.is_turning = periods.is_turning(account)


def _root(subject_tenant: str, ledgers: Iterable[Ledger]) -> Ledger | None:
    scope = scopes_of({"tenant": subject_tenant})[0]
    return next((one for one in ledgers if one.unit == UNIT and one.scope == scope), None)


def _rows(account: Account | None) -> Iterator[Row]:
    living = Process.objects.filter(seen_at__gt=Now() - timedelta(seconds=SILENT_SECONDS))
    heard = set(living.values_list("id", flat=True))
    for hold, process, is_final in Hold.objects.filter(account=account).values_list("id", "process", "is_final"):
        yield Row(hold, is_final, process not in heard)


def _reserved(row: dict[str, Any]) -> Reserved:
    name, _, number = str(row.get("idempotency_key") or "").partition(":")
    try:
        hold = UUID(name)
    except ValueError:
        hold = None
    return Reserved(
        id=row["reservation_id"],
        status=row["status"],
        amount=row["reserved"]["amount"],
        committed=(row.get("committed") or {"amount": 0})["amount"],
        hold=hold,
        n=int(number) if number.isdigit() else 1,
        is_ours="outcome" in (row.get("committed_metadata") or {}),
    )


# --- the comparison, pure -------------------------------------------------------------------------------------------


def differences(books: Books) -> list[str]:
    """Each difference with its cause; none where the books agree. What only is under way is no difference."""
    return [*_of_calls(books), *_of_rows(books), *_of_the_ledger(books), *_of_ledgers(books)]


def _of_calls(books: Books) -> Iterator[str]:
    rows, lines = {row.hold for row in books.rows}, {line.hold for line in books.lines}
    for one in books.reservations:
        if one.hold in rows:
            continue
        what = f"${usd(one.committed or one.amount)}, {_named(one)}"
        if one.status == "COMMITTED" and one.hold not in lines:
            why = "Its row is gone, so nobody writes it" if one.is_ours else "A plain @cycles writes none"
            yield f"A commit without a line: {what}. {why}."
        elif one.status == "ACTIVE" and one.hold in lines:
            yield f"A settled call still holds money: {what}. It frees itself when its lease ends."
        elif one.status == "ACTIVE":
            yield (
                f"An active reservation without a row: {what}. Its process died before it called a model, or it is a "
                "plain @cycles's. It frees itself when its lease ends."
            )
    yield from _of_lines(books)


def _of_lines(books: Books) -> Iterator[str]:
    parts = _by_hold(books)
    for line in books.lines:
        own = parts[line.hold]
        charged = sum(one.committed for one in own)
        # Without any it is older than the authority's memory; of an expired one an event was booked. The sum has both.
        if own and line.cost != charged and not any(one.status == "EXPIRED" for one in own):
            what = "A line and its commits differ" if charged else "A line without a commit"
            yield f"{what}: the line says ${usd(line.cost)}, the authority ${usd(charged)}, hold {line.hold}."


def _by_hold(books: Books) -> defaultdict[UUID | None, list[Reserved]]:
    parts: defaultdict[UUID | None, list[Reserved]] = defaultdict(list)
    for one in books.reservations:
        parts[one.hold].append(one)
    return parts


def _of_rows(books: Books) -> Iterator[str]:
    for row in books.rows:
        if row.is_silent:
            yield f"A row of a silent process: hold {row.hold}. The sweep takes it: manage.py settle_holds."
        elif row.is_final:
            yield f"A call that is over waits for the authority: hold {row.hold}. Its process repeats the commit."


def _of_the_ledger(books: Books) -> Iterator[str]:
    if books.root is None:
        yield "The tenant has no ledger of its own at the authority."
        return
    unexplained = books.root.spent + books.spent_before - _explained(books)
    if unexplained > 0:
        yield (
            f"The ledger has ${usd(unexplained)} more than commits and lines: events that have no line. A plain "
            "@cycles books one where its lease has ended."
        )
    elif unexplained < 0:
        yield f"The ledger has ${usd(-unexplained)} less than commits and lines: {_why_less(books)}."
    held = sum(one.amount for one in books.reservations if one.status == "ACTIVE")
    if held != books.root.reserved:
        yield f"The ledger holds ${usd(books.root.reserved)}, its active reservations ${usd(held)}."


def _why_less(books: Books) -> str:
    if books.is_turning:
        return "the next period was asked for, and its answer is not written down yet: manage.py roll_budgets"
    lost = [one for one in books.resets_by_hand if one.funded.new_spent < one.funded.previous_spent]
    if not lost:
        return "a line stands for money that was never taken"
    told = (f"${usd(one.funded.previous_spent - one.funded.new_spent)} at {one.at}" for one in lost)
    return f"its spent was reset by hand, not by a period: {', '.join(told)}"


def _explained(books: Books) -> int:
    """What was spent as far as commits and lines know: a line beyond its commits was booked by an event."""
    parts = _by_hold(books)
    late = sum(max(0, line.cost - sum(one.committed for one in parts[line.hold])) for line in books.lines)
    return sum(one.committed for one in books.reservations) + late


def _of_ledgers(books: Books) -> Iterator[str]:
    for ledger in books.ledgers:
        if ledger.is_over_limit:
            yield f"{ledger.scope} is over its limit and refuses every call. A CREDIT clears that, also one of 0."
    for ledger in unmeetable(books.ledgers):
        yield f"{ledger.scope} ({ledger.unit}) limits nothing: no call of ours names it."


def _named(one: Reserved) -> str:
    part = f", slice {one.n}" if one.n > 1 else ""
    return f"reservation {one.id}{part}"
