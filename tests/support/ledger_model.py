"""The protocol's money rules in memory, for tests that compare: small, and written from the rules, not from the SQL.

An outcome is what a caller sees of an answer: the status, the error's code, the amount charged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Outcome = tuple[int, str | None, int | None]


@dataclass
class Book:
    """One ledger."""

    allocated: int
    limit: int = 0
    reserved: int = 0
    spent: int = 0
    debt: int = 0
    over: bool = False
    frozen: bool = False

    @property
    def remaining(self) -> int:
        return self.allocated - self.spent - self.reserved - self.debt

    def obstacle(self, amount: int) -> str | None:
        if self.frozen:
            return "BUDGET_FROZEN"
        if self.over:
            return "OVERDRAFT_LIMIT_EXCEEDED"
        if self.debt and not self.limit:
            return "DEBT_OUTSTANDING"
        return "BUDGET_EXCEEDED" if self.remaining < amount else None


@dataclass
class Hold:
    amount: int
    policy: str
    books: list[str]
    state: str = "ACTIVE"
    finish: tuple[str, int] | None = None
    charged: int | None = None


@dataclass
class Model:
    """A tenant's ledgers by name, root first, and its holds by the key they were made under."""

    books: dict[str, Book]
    holds: dict[str, Hold] = field(default_factory=dict)

    def obstacle(self, names: list[str], amount: int) -> str | None:
        return next((code for name in names if (code := self.books[name].obstacle(amount))), None)

    def reserve(self, key: str, amount: int, names: list[str], policy: str) -> Outcome:
        if code := self.obstacle(names, amount):
            return 409, code, None
        for name in names:
            self.books[name].reserved += amount
        self.holds[key] = Hold(amount, policy, names)
        return 200, None, None

    def commit(self, key: str, actual: int, finish_key: str) -> Outcome:
        hold = self.holds[key]
        if hold.state == "COMMITTED" and hold.finish and hold.finish[0] == finish_key:
            return (200, None, hold.charged) if hold.finish[1] == actual else (409, "IDEMPOTENCY_MISMATCH", None)
        if hold.state != "ACTIVE":
            return (
                (410, "RESERVATION_EXPIRED", None) if hold.state == "EXPIRED" else (409, "RESERVATION_FINALIZED", None)
            )
        if hold.policy == "REJECT" and actual > hold.amount:
            return 409, "BUDGET_EXCEEDED", None
        charged = self.charge(hold.books, hold.amount, actual, hold.policy)
        if charged is None:
            return 409, "OVERDRAFT_LIMIT_EXCEEDED", None
        hold.state, hold.finish, hold.charged = "COMMITTED", (finish_key, actual), charged
        return 200, None, charged

    def end(self, key: str, state: str) -> Outcome:
        hold = self.holds[key]
        if hold.state != "ACTIVE":
            return (
                (410, "RESERVATION_EXPIRED", None) if hold.state == "EXPIRED" else (409, "RESERVATION_FINALIZED", None)
            )
        for name in hold.books:
            self.books[name].reserved -= hold.amount
        hold.state = state
        return 200, None, None

    def event(self, amount: int, names: list[str], policy: str) -> Outcome:
        for book in (self.books[name] for name in names):
            if book.frozen:
                return 409, "BUDGET_FROZEN", None
            if policy == "REJECT" and book.remaining < amount:
                return 409, "BUDGET_EXCEEDED", None
        charged = self.charge(names, 0, amount, policy)
        if charged is None:
            return 409, "OVERDRAFT_LIMIT_EXCEEDED", None
        return 201, None, charged if charged < amount else None

    def charge(self, names: list[str], estimate: int, actual: int, policy: str) -> int | None:
        """Book what was used, beyond the estimate as far as every ledger bears it. None: past the overdraft limit."""
        books = [self.books[name] for name in names]
        wanted = actual - estimate
        lenders = [b for b in books if policy == "ALLOW_WITH_OVERDRAFT" and b.limit > 0]
        extra = min([wanted, *(max(b.remaining, 0) for b in books if b not in lenders)]) if wanted > 0 else wanted
        loans = {id(b): max(extra - max(b.remaining, 0), 0) for b in lenders}
        if any(loan and b.debt + loan > b.limit for b in lenders if (loan := loans[id(b)])):
            return None
        for book in books:
            book.over |= extra < wanted and book.remaining < wanted and id(book) not in loans
            loan = loans.get(id(book), 0)
            book.reserved -= estimate
            book.spent += estimate + extra - loan
            book.debt += loan
        return estimate + extra

    def fund(self, name: str, operation: str, amount: int, spent: int | None) -> Outcome:
        book = self.books[name]
        if book.frozen:
            return 409, "BUDGET_FROZEN", None
        if operation == "DEBIT" and book.remaining < amount:
            return 409, "BUDGET_EXCEEDED", None
        paid = min(book.debt, amount) if operation == "REPAY_DEBT" else 0
        book.debt -= paid
        if operation.startswith("RESET"):
            book.allocated = amount
        else:
            book.allocated += -amount if operation == "DEBIT" else amount - paid
        if operation == "RESET_SPENT":
            book.spent = spent or 0
        book.over = book.debt > book.limit
        return 200, None, None
