"""What goes through a real authority's whole store is on nobody's path: balances, and the list of reservations."""

import json
import time

import pytest

from billing import admin_client
from billing.client import default_client, install_default_client
from billing.topups import top_up
from tests.support.cast import PASSWORD, events_of
from tests.support.gate import Gate
from tests.support.money import INPUT, OUTPUT, eventually, first_hold, is_settled, model, true_cost
from tests.support.plane import PlaneResponse

__all__ = ["model"]

SCANS = [("GET", "/v1/balances"), ("GET", "/v1/reservations")]
SCAN_SECONDS = 2.0


@pytest.fixture
def gates(app, authority, settings):
    """Before both planes: what goes through the whole store takes two seconds there."""

    def act(came):
        if (came.method, came.path) in SCANS:
            time.sleep(SCAN_SECONDS)

    before = settings.CYCLES_BASE_URL, settings.CYCLES_ADMIN_URL
    with Gate(authority.runtime_url) as runtime, Gate(authority.admin_url) as admin:
        runtime.act = admin.act = act
        settings.CYCLES_BASE_URL, settings.CYCLES_ADMIN_URL = runtime.url, admin.url
        install_default_client()
        yield runtime, admin
        settings.CYCLES_BASE_URL, settings.CYCLES_ADMIN_URL = before
        install_default_client()


def test_no_call_no_page_no_sign_up_and_no_top_up_goes_through_the_whole_store(
    gates, workspace, upstream, model, settings, client, sign_ups, patient
):
    api, browser, spent = workspace.api(), workspace.client(workspace.owner), 10 * INPUT + 4 * OUTPUT

    # Calls: whole, streamed, summed up.
    answer = api.chat("hello").json()
    assert answer["cost"]["microcents"] == answer["budget"]["spent"] == true_cost(upstream.spent)
    *_, (name, done) = events_of(api.chat("hello", stream=True))
    assert (name, done["budget"]["spent"]) == ("done", true_cost(upstream.spent))
    assert api.summarize("text").json()["budget"]["spent"] == true_cost(upstream.spent)
    assert eventually(lambda: is_settled(workspace))

    # Pages, and what programs read.
    for path in ("/", "/budget/", "/settings/keys/"):
        assert browser.get(path).status_code == 200
    page = browser.get("/budget/")
    assert page.context["figures"].spent == true_cost(upstream.spent)
    assert "They agree to the last microcent" in page.content.decode()
    (row,) = api.get("/api/budget/").json()["balances"]
    assert (row["allocated"], row["spent"], row["reserved"]) == (100_000_000, true_cost(upstream.spent), 0)

    # Money: added, waited for, refused.
    top_up(workspace.account, amount=1_000, key="one")
    settings.BUDGET_WAIT_SECONDS = 30
    workspace.leave(first_hold(output=512) + spent)
    upstream.delay_first = 0.5
    waiting = [api.plane.begin("POST", "/api/chat/", {"prompt": "hello"}) for _ in range(2)]
    assert [PlaneResponse(one).status_code for one in waiting] == [200, 200]
    assert eventually(lambda: is_settled(workspace))
    workspace.leave(0)
    refused = api.chat("hello")
    assert (refused.status_code, refused.json()["reason"]) == (402, "exhausted")
    ledger = admin_client.lookup(workspace.account.scope)
    assert refused.json()["budget"]["spent"] == ledger["spent"]["amount"]
    assert api.summarize("text").status_code == 402

    # Sign-up, whole.
    body = {"name": "No scan", "slug": "no-scan", "email": "n@scan.example", "password": PASSWORD}
    made = client.post("/api/signup/", json.dumps(body), content_type="application/json", headers={"host": "localhost"})
    assert made.json()["status"] == "active"

    assert scans(gates) == []
    # The gates would have seen it.
    for gate in gates:
        gate.act = lambda came: None
    assert default_client().get_balances(tenant=workspace.account.subject_tenant).is_success
    assert len(list(admin_client.reservations(workspace.account.subject_tenant))) == 5
    assert {(came.method, came.path) for came in scans(gates)} == set(SCANS)


def scans(gates):
    return [came for gate in gates for scan in SCANS for came in gate.asked(*scan)]
