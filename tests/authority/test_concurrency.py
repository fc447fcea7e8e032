"""Many at once: a budget is never oversold, a hold is settled once, and nothing waits for ever."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

from tests.support.authority import RuntimeCaller


def test_exactly_ten_of_sixty_holds_fit_a_budget_for_ten(open_account):
    acme = open_account("acme", 100)
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _: acme.app.reserve(10).status_code, range(60)))
    assert sorted(statuses) == [200] * 10 + [409] * 50
    assert acme.figures()["reserved"] == 100


def test_one_of_twenty_commits_wins(acme):
    hold = acme.app.hold(100)
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda n: acme.app.commit(hold, n + 1).status_code, range(20)))
    assert sorted(statuses) == [200] + [409] * 19
    assert acme.figures()["reserved"] == 0
    assert 1 <= acme.figures()["spent"] <= 20


def test_commits_and_releases_of_one_hold_settle_it_once(acme):
    for _ in range(5):
        hold = acme.app.hold(100)
        with ThreadPoolExecutor(4) as pool:
            tries = [pool.submit(acme.app.commit, hold, 10) for _ in range(2)]
            tries += [pool.submit(acme.app.release, hold) for _ in range(2)]
            assert sorted(t.result().status_code for t in tries) == [200, 409, 409, 409]
    assert acme.figures()["reserved"] == 0


def test_mixed_work_on_shared_scopes_keeps_every_figure_in_step(open_account, probe, sql):
    """Holds, commits, releases, events, extensions and funds on crossing scopes, then the books are added up."""
    acme = open_account("acme", 100_000)
    for app in ("a", "b"):
        probe.create_budget(acme.tenant_id, 50_000, f"{acme.scope}/app:{app}")

    def work(seed: int) -> None:
        pick = random.Random(seed)
        app = RuntimeCaller(str(acme.app.http.base_url), acme.tenant_id, acme.app.key)
        for _ in range(12):
            where = {"app": pick.choice(["a", "b", "none"])}
            answer = app.reserve(pick.randint(0, 500), **where)
            assert answer.status_code in (200, 409), answer.text
            if answer.status_code == 200:
                hold = answer.json()["reservation_id"]
                act = pick.choice(["commit", "release", "extend", "leave"])
                if act == "commit":
                    assert app.commit(hold, pick.randint(0, 900)).status_code == 200
                elif act == "release":
                    assert app.release(hold).status_code == 200
                elif act == "extend":
                    assert app.extend(hold, 1_000).status_code == 200
            assert app.event(pick.randint(0, 50), **where).status_code in (201, 409)
            probe.fund(acme.tenant_id, pick.choice(["CREDIT", "REPAY_DEBT"]), 1)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert drift(sql, acme.tenant_id) == []


def drift(sql, tenant_id: str) -> list[object]:
    """Ledgers whose figures are not the sums of what was held, committed and booked on them."""
    rows: list[object] = sql(
        """
        SELECT l.scope, l.reserved, l.spent, l.remaining FROM ledger l JOIN tenant t ON t.id = l.tenant_id
        WHERE t.tenant_id = %s AND (
            l.reserved <> (SELECT coalesce(sum(r.reserved), 0) FROM reservation r
                WHERE r.tenant_id = t.id AND r.unit = l.unit AND r.status = 'ACTIVE' AND l.scope = ANY (r.budgeted))
            OR l.spent + l.debt <> (SELECT coalesce(sum(r.committed), 0) FROM reservation r
                WHERE r.tenant_id = t.id AND r.unit = l.unit AND l.scope = ANY (r.budgeted))
                + (SELECT coalesce(sum(e.charged), 0) FROM event e
                WHERE e.tenant_id = t.id AND e.unit = l.unit AND l.scope = ANY (e.budgeted))
            OR l.remaining <> l.allocated - l.spent - l.reserved - l.debt)
        """,
        tenant_id,
    )
    return rows


def test_a_close_beside_running_reserves_leaves_no_hold_behind(open_account, probe, sql):
    acme = open_account("acme", 1_000_000)
    stop = threading.Event()
    statuses: set[int] = set()

    def reserve_on(_: int) -> None:
        app = RuntimeCaller(str(acme.app.http.base_url), acme.tenant_id, acme.app.key)
        while not stop.is_set():
            statuses.add(app.reserve(1).status_code)

    with ThreadPoolExecutor(4) as pool:
        running = pool.map(reserve_on, range(4))
        while acme.figures()["reserved"] < 10:
            pass
        probe.change_tenant(acme.tenant_id, status="CLOSED")
        stop.set()
        list(running)
    assert statuses <= {200, 401, 409}
    assert acme.figures()["reserved"] == 0
    assert drift(sql, acme.tenant_id) == []
    active = """SELECT count(*) FROM reservation r JOIN tenant t ON t.id = r.tenant_id
        WHERE t.tenant_id = %s AND r.status = 'ACTIVE'"""
    assert sql(active, acme.tenant_id) == [(0,)]
