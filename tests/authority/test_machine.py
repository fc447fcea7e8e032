"""Any interleaving of the money operations moves the ledgers as the rules say, alone and several at once.

What is asked at once has no order of its own: some order of the members must explain all answers and all figures.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import uuid
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.authority.test_gather import Plane
from tests.support.authority import UNIT
from tests.support.ledger_model import Book, Model

AMOUNTS = st.integers(0, 60) | st.sampled_from([0, 1, 30, 100, 10_000])
POLICIES = st.sampled_from(["REJECT", "ALLOW_IF_AVAILABLE", "ALLOW_WITH_OVERDRAFT"])
WHERE = st.sampled_from([["root"], ["root", "chat"]])
RESERVE = st.tuples(st.just("reserve"), AMOUNTS, WHERE, POLICIES)
COMMIT = st.tuples(st.just("commit"), AMOUNTS, st.integers(0, 5), st.booleans())


class Machine(RuleBasedStateMachine):
    """One tenant, two ledgers, a plane in a loop of its own."""

    def __init__(self, authority, open_account, sql) -> None:
        super().__init__()
        self.open_account, self.sql = open_account, sql
        self.runner = asyncio.Runner()
        self.plane = Plane(authority, gather=True)
        self.ids: dict[str, str] = {}
        self.last: tuple[str, dict[str, Any]] = ("", {})

    @initialize(
        root=st.integers(50, 300), chat=st.integers(0, 200), limits=st.tuples(*[st.sampled_from([0, 0, 40])] * 2)
    )
    def open(self, root, chat, limits):
        self.acme = self.open_account("acme", root)
        self.scopes = {"root": self.acme.scope, "chat": f"{self.acme.scope}/app:chat"}
        self.acme.probe.create_budget(self.acme.tenant_id, chat, self.scopes["chat"])
        for scope, limit in zip(self.scopes.values(), limits, strict=True):
            self.sql("UPDATE ledger SET overdraft_limit = %s WHERE scope = %s RETURNING 1", limit, scope)
        self.model = Model({"root": Book(root, limits[0]), "chat": Book(chat, limits[1])})

    def teardown(self):
        self.runner.run(self.plane.http.aclose())
        self.runner.run(self.plane.pool.close())
        self.runner.close()

    def ask(self, *calls):
        async def at_once():
            return await asyncio.gather(*(self.plane.post(self.acme, path, body) for path, body in calls))

        return self.runner.run(at_once())

    def pick(self, number: int) -> str:
        """One of the holds, the newest ones more often; none at the beginning. No precondition of a rule may ask this:
        who wins a race is not the same in every run, and the rules that are drawn must be."""
        return list(self.ids)[-1 - number % len(self.ids)] if self.ids else ""

    def subject(self, amount, names, figure="estimate", **more):
        return self.acme.app.request_body(amount, figure, **({"app": "chat"} if "chat" in names else {}), **more)

    def member(self, choice):
        """A chosen operation as a call, and as a step of the model; none if there is no hold to commit."""
        kind, amount, *rest = choice
        key = uuid.uuid4().hex
        if kind == "reserve":
            names, policy = rest
            # None ends by itself, however slow the machine is.
            body = self.subject(amount, names, idempotency_key=key, overage_policy=policy, ttl_ms=3_600_000)
            self.last = (key, body)
            return key, ("/v1/reservations", body), lambda model: model.reserve(key, amount, names, policy)
        number, same_key = rest
        if not (hold := self.pick(number)):
            return None
        finish = f"finish-{hold}" if same_key else key
        body = {"idempotency_key": finish, "actual": {"unit": UNIT, "amount": amount}}
        path = f"/v1/reservations/{self.ids[hold]}/commit"
        return key, (path, body), lambda model: model.commit(hold, amount, finish)

    @rule(choices=st.lists(RESERVE | COMMIT, min_size=1, max_size=4))
    def together(self, choices):
        members = [member for choice in choices if (member := self.member(choice))]
        answers = self.ask(*(call for _, call, _ in members))
        seen = [outcome(answer) for answer in answers]
        figures = self.figures()
        for order in itertools.permutations(range(len(members))):
            model = copy.deepcopy(self.model)
            told = {place: members[place][2](model) for place in order}
            if [told[place] for place in range(len(members))] == seen and figures == figures_of(model):
                break
        else:
            raise AssertionError(f"no order explains {seen} and {figures} from {self.model}: {choices}")
        self.model = model
        for (key, _, _), answer in zip(members, answers, strict=True):
            if "reservation_id" in answer.json():
                self.ids[key] = answer.json()["reservation_id"]

    @rule(number=st.integers(0, 5))
    def release(self, number):
        if not (hold := self.pick(number)):
            return
        [answer] = self.ask((f"/v1/reservations/{self.ids[hold]}/release", {}))
        assert outcome(answer) == self.model.end(hold, "RELEASED")

    @rule(number=st.integers(0, 5))
    def extend(self, number):
        if not (hold := self.pick(number)):
            return
        [answer] = self.ask((f"/v1/reservations/{self.ids[hold]}/extend", {"extend_by_ms": 1_000}))
        state = self.model.holds[hold].state
        assert answer.status_code == {"ACTIVE": 200, "EXPIRED": 410}.get(state, 409)

    @rule(number=st.integers(0, 5), swept=st.booleans())
    def expire(self, number, swept):
        """The hold's time is over: before the sweep a commit is refused and the amount still held."""
        hold = self.pick(number)
        if not hold or self.model.holds[hold].state != "ACTIVE":
            return
        move = "UPDATE reservation SET deadline_ms = %s, expires_at_ms = %s WHERE id = %s RETURNING 1"
        self.sql(move, 1, 1, self.ids[hold])
        if not swept:
            [answer] = self.ask((f"/v1/reservations/{self.ids[hold]}/commit", {"actual": {"unit": UNIT, "amount": 0}}))
            assert answer.status_code == 410
        while self.sql("SELECT sweep(1000)") != [(0,)]:
            pass
        # The session's own sweeper may have it in hand.
        while self.sql("SELECT status FROM reservation WHERE id = %s", self.ids[hold]) != [("EXPIRED",)]:
            pass
        self.model.end(hold, "EXPIRED")

    @rule(amount=AMOUNTS, names=WHERE, policy=POLICIES)
    def event(self, amount, names, policy):
        [answer] = self.ask(("/v1/events", self.subject(amount, names, "actual", overage_policy=policy)))
        assert outcome(answer) == self.model.event(amount, names, policy)

    @rule(amount=AMOUNTS, names=WHERE)
    def decide(self, amount, names):
        [decided, dry] = self.ask(
            ("/v1/decide", self.subject(amount, names)), ("/v1/reservations", self.subject(amount, names, dry_run=True))
        )
        for answer in (decided.json(), dry.json()):
            assert answer.get("reason_code") == self.model.obstacle(names, amount)

    @rule(
        name=st.sampled_from(["root", "chat"]),
        operation=st.sampled_from(["CREDIT", "DEBIT", "RESET", "RESET_SPENT", "REPAY_DEBT"]),
        amount=st.integers(0, 150),
        spent=st.none() | st.integers(0, 100),
    )
    def fund(self, name, operation, amount, spent):
        body = {"operation": operation, "amount": {"unit": UNIT, "amount": amount}}
        spent = spent if operation == "RESET_SPENT" else None
        if spent is not None:
            body["spent"] = {"unit": UNIT, "amount": spent}
        query = {"tenant_id": self.acme.tenant_id, "scope": self.scopes[name], "unit": UNIT}
        answer = self.acme.probe.admin.post("/v1/admin/budgets/fund", json=body, params=query)
        assert outcome(answer) == self.model.fund(name, operation, amount, spent)

    @rule(name=st.sampled_from(["root", "chat"]))
    def freeze_or_thaw(self, name):
        book = self.model.books[name]
        book.frozen = not book.frozen
        self.acme.probe.freeze(self.scopes[name], frozen=book.frozen)

    @rule()
    def repeat(self):
        key, body = self.last
        if key not in self.ids:
            return
        [answer, other] = self.ask(("/v1/reservations", body), ("/v1/reservations", {**body, "ttl_ms": 1_234}))
        assert answer.json()["reservation_id"] == self.ids[key]
        assert other.json()["error"] == "IDEMPOTENCY_MISMATCH"

    def figures(self):
        rows = self.sql(
            """SELECT allocated, reserved, spent, debt, is_over_limit, remaining FROM ledger
            WHERE scope = ANY (%s) ORDER BY scope""",
            list(self.scopes.values()),
        )
        return [tuple(row) for row in rows]

    @invariant()
    def the_books_agree(self):
        assert self.figures() == figures_of(self.model)


def figures_of(model: Model):
    return [(b.allocated, b.reserved, b.spent, b.debt, b.over, b.remaining) for b in model.books.values()]


def outcome(answer):
    body = answer.json()
    return answer.status_code, body.get("error"), (body.get("charged") or {}).get("amount")


def test_any_order_of_operations_moves_the_ledgers_as_the_rules_say(authority, open_account, sql):
    # No shrinking: a race does not run the same way twice, and trying takes minutes.
    run_state_machine_as_test(
        lambda: Machine(authority, open_account, sql),
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[Phase.generate],
        ),
    )
