"""Gathering: what is done together is answered, stored and counted as if it had been done one by one.

The planes run here in the test's own loop, so that what is asked at once surely makes one batch.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from billing.authority.database import BY_INDEX, GATHERED, OPERATIONS
from billing.authority.errors import Refusal
from billing.authority.keys import digest_of, prefix_of
from billing.authority.runtime.app import Runtime
from billing.authority.runtime.pool import Pool
from tests.authority.test_concurrency import drift
from tests.support.authority import UNIT


class WatchedPool(Pool):
    """Counts the batches, so that a test cannot pass because nothing was gathered."""

    batches = 0

    async def rows(self, statement, parameters=None):
        rows = await super().rows(statement, parameters)
        self.batches += statement == GATHERED
        return rows


class Plane:
    """A runtime plane in this loop; calls by tenant."""

    def __init__(self, authority, *, gather: bool) -> None:
        self.pool = WatchedPool(
            {"conninfo": authority.database_url, "options": f"-c search_path=authority -c jit=off {BY_INDEX}"}, 2
        )
        self.app = Runtime(self.pool, authority.admin_key, gather=gather)
        transport = httpx.ASGITransport(app=self.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://authority", timeout=30)

    async def post(self, who, path: str, body: dict[str, object], key: str | None = None) -> httpx.Response:
        body = {"idempotency_key": uuid.uuid4().hex, **body}
        return await self.http.post(path, json=body, headers={"X-Cycles-API-Key": key or who.app.key})

    async def reserve(self, who, amount: int, **more) -> httpx.Response:
        key = more.pop("api_key", None)
        return await self.post(who, "/v1/reservations", who.app.request_body(amount, **more), key)

    async def commit(self, who, hold: str, amount: int, *, unit: str = UNIT, **more) -> httpx.Response:
        key = more.pop("api_key", None)
        body = {"actual": {"unit": unit, "amount": amount}, **more}
        return await self.post(who, f"/v1/reservations/{hold}/commit", body, key)


@asynccontextmanager
async def plane_of(authority, *, gather: bool = True):
    plane = Plane(authority, gather=gather)
    yield plane
    await plane.http.aclose()
    await plane.pool.close()


def in_plane(authority, story):
    """Run a story in a gathering plane; its result."""

    async def run():
        async with plane_of(authority) as plane:
            result = await story(plane)
            assert plane.pool.batches > 0
            return result

    return asyncio.run(run())


# Every request of a tenant's life, plain or not. `{hold}` is the hold of the step of that name.
STEPS: list[tuple[str, str, int | None, dict[str, Any]]] = [
    ("plain", "reserve", 100, {"app": "chat", "ttl_ms": 30_000, "overage_policy": "REJECT", "metadata": {"a": "é"}}),
    ("less", "commit", 70, {"of": "plain", "metrics": {"tokens_input": 3}, "metadata": {"b": 1}}),
    ("twice", "commit", 70, {"of": "plain"}),
    ("defaults", "reserve", 5, {}),
    ("all of it", "commit", 5, {"of": "defaults"}),
    ("long ttl", "reserve", 1, {"ttl_ms": 86_400_000, "grace_period_ms": 0}),
    ("nothing", "reserve", 0, {}),
    ("nothing used", "commit", 0, {"of": "nothing"}),
    ("dry", "reserve", 7, {"dry_run": True}),
    ("too much", "reserve", 5_000, {"app": "chat"}),
    ("too much below", "reserve", 600, {"app": "chat"}),
    ("no budget", "reserve", 1, {"unit": "TOKENS"}),
    ("with caps", "reserve", 10, {"app": "capped"}),
    ("with caps used", "commit", 3, {"of": "with caps"}),
    ("another unit", "commit", 1, {"of": "long ttl", "unit": "TOKENS"}),
    ("strict", "reserve", 10, {"overage_policy": "REJECT"}),
    ("strict over", "commit", 11, {"of": "strict"}),
    ("over", "reserve", 10, {}),
    ("over used", "commit", 25, {"of": "over"}),
    ("debtor", "reserve", 10, {"app": "debtor", "overage_policy": "ALLOW_WITH_OVERDRAFT"}),
    ("debt", "commit", 60, {"of": "debtor"}),
    ("beside debt", "reserve", 1, {"app": "debtor"}),
    ("frozen", "reserve", 1, {"app": "frozen"}),
    ("unknown", "commit", 1, {"of": None}),
    ("stranger", "reserve", 1, {"api_key": "cyc_live_nobodynobodynobody"}),
    ("repeated", "reserve", 3, {"idempotency_key": "same"}),
    ("repeat", "reserve", 3, {"idempotency_key": "same"}),
    ("mismatch", "reserve", 4, {"idempotency_key": "same"}),
    ("repeated used", "commit", 3, {"of": "repeated", "idempotency_key": "same"}),
    ("repeat used", "commit", 3, {"of": "repeated", "idempotency_key": "same"}),
    ("mismatch used", "commit", 2, {"of": "repeated", "idempotency_key": "same"}),
    ("to the last", "reserve", None, {}),
    ("to the last used", "commit", None, {"of": "to the last"}),
    ("empty", "reserve", 1, {}),
]


async def live(plane, who, filler) -> list[object]:
    """All steps in turn, each beside a neighbour's plain reserve; what was answered, without ids and times."""
    holds: dict[str | None, str] = {None: str(uuid.uuid4())}
    told: list[object] = []
    rest = 0
    for name, operation, amount, options in STEPS:
        more = dict(options)
        if operation == "reserve":
            rest = rest if amount is not None else (await asyncio.to_thread(who.figures))["remaining"]
            call = plane.reserve(who, rest if amount is None else amount, **more)
        else:
            call = plane.commit(who, holds[more.pop("of")], rest if amount is None else amount, **more)
        answer, beside = await asyncio.gather(call, plane.reserve(filler, 1))
        assert beside.status_code == 200
        holds[name] = answer.json().get("reservation_id", "")
        told.append((name, answer.status_code, answer.headers.get("x-cycles-tenant"), answer.json()))
        if operation == "commit" and options["of"]:
            shown = await plane.http.get(
                f"/v1/reservations/{holds[options['of']]}", headers={"X-Cycles-API-Key": who.app.key}
            )
            told.append(shown.json())
    return told


def normal(told: list[object], tenant_id: str) -> str:
    text = repr(told).replace(tenant_id, "<tenant>")
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<id>", text)
    text = re.sub(r"'(request_id|trace_id|idempotency_key)': '[^']*'", r"'\1'", text)
    text = re.sub(r"'remaining_ttl_ms': \d{3,}", "'remaining_ttl_ms'", text)
    return re.sub(r"_at_ms': \d+", "_at_ms'", text)


@pytest.fixture
def twins(open_account, probe):
    made = []
    for _ in range(2):
        who = open_account("acme", 1_000)
        for app, amount in (("chat", 500), ("capped", 100), ("frozen", 10)):
            probe.create_budget(who.tenant_id, amount, f"{who.scope}/app:{app}")
        debtor = f"{who.scope}/app:debtor"
        probe.create_budget(who.tenant_id, 40, debtor, overdraft_limit={"unit": UNIT, "amount": 30})
        probe.set_caps(f"{who.scope}/app:capped", {"max_tokens": 7})
        probe.freeze(f"{who.scope}/app:frozen")
        made.append(who)
    return made


def test_answers_and_rows_are_those_of_the_one_op_functions(authority, twins, open_account, sql):
    async def story():
        filler = open_account("globex", 10_000)
        async with plane_of(authority) as together, plane_of(authority, gather=False) as alone:
            told = await live(together, twins[0], filler), await live(alone, twins[1], filler)
            assert (together.pool.batches, alone.pool.batches) == (len(STEPS), 0)
            return told

    gathered, alone = asyncio.run(story())
    for one, other in zip(gathered, alone, strict=True):
        assert normal([one], twins[0].tenant_id) == normal([other], twins[1].tenant_id)
    for twin in twins:
        assert drift(sql, twin.tenant_id) == []
    rows = [
        sql(
            """SELECT r.status, r.unit, r.reserved, r.committed, r.overage_policy, r.budgeted, r.subject, r.action,
                r.metadata, r.committed_metadata, r.metrics, r.expires_at_ms - r.created_at_ms,
                r.deadline_ms - r.created_at_ms, r.max_extensions, r.extension_count, length(r.finish_digest)
            FROM reservation r JOIN tenant t ON t.id = r.tenant_id WHERE t.tenant_id = %s ORDER BY r.created_at_ms""",
            twin.tenant_id,
        )
        for twin in twins
    ]
    assert len(rows[0]) == 10
    assert normal(rows[0], twins[0].tenant_id) == normal(rows[1], twins[1].tenant_id)


def test_two_commits_of_one_hold_at_once_settle_it_once(authority, acme):
    async def story(plane):
        hold = acme.app.hold(100)
        return await asyncio.gather(*(plane.commit(acme, hold, n) for n in range(1, 31)))

    answers = in_plane(authority, story)
    assert sorted(a.status_code for a in answers) == [200] + [409] * 29
    assert acme.figures()["reserved"] == 0
    assert 1 <= acme.figures()["spent"] <= 30


def test_a_key_twice_in_a_batch_holds_once(authority, acme):
    async def story(plane):
        same = [plane.reserve(acme, 10, idempotency_key="same") for _ in range(20)]
        return await asyncio.gather(*same, plane.reserve(acme, 20, idempotency_key="same"))

    *answers, other = in_plane(authority, story)
    assert len({a.json()["reservation_id"] for a in answers}) == 1
    assert other.status_code == 409
    assert acme.figures()["reserved"] == 10


def test_exactly_ten_of_two_hundred_fit_a_budget_for_ten(authority, open_account):
    acme = open_account("acme", 100)

    async def story(plane):
        return await asyncio.gather(*(plane.reserve(acme, 10) for _ in range(200)))

    answers = in_plane(authority, story)
    assert sorted(a.status_code for a in answers) == [200] * 10 + [409] * 190
    assert {a.json()["error"] for a in answers if a.status_code == 409} == {"BUDGET_EXCEEDED"}
    assert acme.figures()["reserved"] == 100


def test_a_refusal_takes_nothing_from_those_that_fit(authority, acme, globex):
    async def story(plane):
        amounts = [900, 901, 50, 2_000, 49]
        answers = await asyncio.gather(*(plane.reserve(acme, a) for a in amounts), plane.reserve(globex, 5_000))
        return [a.status_code for a in answers]

    statuses = in_plane(authority, story)
    assert statuses[3] == statuses[-1] == 409
    assert acme.figures()["reserved"] == sum(
        a for a, s in zip([900, 901, 50, 2_000, 49], statuses, strict=False) if s == 200
    )
    assert acme.figures()["remaining"] < 50  # more would have fitted only if something was refused for nothing


def test_another_tenants_hold_is_out_of_reach(authority, acme, globex):
    async def story(plane):
        hold = acme.app.hold(100)
        answers = await asyncio.gather(*(plane.commit(globex, hold, 1) for _ in range(3)), plane.commit(acme, hold, 1))
        return [a.status_code for a in answers]

    assert in_plane(authority, story) == [403, 403, 403, 200]


def test_a_revoked_key_stops_at_once(authority, acme, probe):
    async def story(plane):
        before = await asyncio.gather(*(plane.reserve(acme, 1) for _ in range(5)))
        await asyncio.to_thread(probe.revoke_key, acme.key_id)
        return before, await asyncio.gather(*(plane.reserve(acme, 1) for _ in range(5)))

    before, after = in_plane(authority, story)
    assert [a.status_code for a in (*before, *after)] == [200] * 5 + [401] * 5


def test_a_poisoned_member_does_not_hurt_its_neighbours(authority, acme):
    """No body that reaches the gatherer can be unreadable; if one were, its neighbours are served all the same."""

    async def story(plane):
        good = [plane.reserve(acme, 10) for _ in range(5)]
        poison = dict.fromkeys(name.partition("::")[0] for name in OPERATIONS["reserve"])
        poison |= {"prefix": prefix_of(acme.app.key), "digest": digest_of(acme.app.key), "key": "\x00", "request": b"x"}
        poison |= {
            "subject_tenant": acme.tenant_id,
            "scopes": [acme.scope],
            "unit": UNIT,
            "amount": 1,
            "dry_run": False,
        }
        poison |= {"ttl_ms": 1_000, "grace_ms": 0, "subject": "", "action": "", "metadata": ""}
        await plane.reserve(acme, 0)
        await asyncio.gather(plane.reserve(acme, 0), plane.reserve(acme, 0))
        return await asyncio.gather(*good, plane.app.money.call("reserve", poison), return_exceptions=True)

    *answers, poisoned = in_plane(authority, story)
    assert [a.status_code for a in answers] == [200] * 5
    assert isinstance(poisoned, Refusal)
    assert poisoned.status == 400
    assert acme.figures()["reserved"] == 50


def test_a_lost_connection_loses_and_doubles_nothing(authority, acme, sql):
    async def story(plane):
        await asyncio.gather(*(plane.reserve(acme, 1) for _ in range(5)))
        await asyncio.to_thread(
            sql,
            """SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity
            WHERE query LIKE '%%FROM gathered(%%' AND pid <> pg_backend_pid() AND datname = current_database()""",
        )
        return await asyncio.gather(*(plane.reserve(acme, 1) for _ in range(5)))

    assert [a.status_code for a in in_plane(authority, story)] == [200] * 5
    assert acme.figures()["reserved"] == 10


@pytest.mark.parametrize("turns", range(8))
def test_a_first_caller_who_leaves_keeps_nobody_waiting_and_doubles_nothing(authority, acme, turns):
    async def story(plane):
        for crowd in (0, 3):
            leaving = asyncio.create_task(plane.reserve(acme, 1, idempotency_key=f"leaves-{crowd}"))
            for _ in range(turns):
                await asyncio.sleep(0)
            others = [asyncio.create_task(plane.reserve(acme, 1)) for _ in range(crowd)]
            leaving.cancel()
            await asyncio.wait([leaving, *others])
            assert [other.result().status_code for other in others] == [200] * crowd
            assert (await plane.reserve(acme, 1, idempotency_key=f"leaves-{crowd}")).status_code == 200
        return await asyncio.gather(*(plane.reserve(acme, 1) for _ in range(3)))

    assert [a.status_code for a in in_plane(authority, story)] == [200] * 3
    assert acme.figures()["reserved"] == 8


def test_each_connection_keeps_its_statements_prepared(authority, acme):
    async def story(plane):
        for _ in range(8):
            await plane.commit(acme, (await plane.reserve(acme, 1)).json()["reservation_id"], 1)
        for _ in range(8):
            await asyncio.gather(*(plane.reserve(acme, 1) for _ in range(5)))
        return await plane.pool.rows("SELECT statement FROM pg_prepared_statements")

    prepared = {found[1] for (text,) in in_plane(authority, story) if (found := re.search(r"FROM (\w+)\(", text))}
    assert prepared == {"reserve", "commit_reservation", "gathered"}
