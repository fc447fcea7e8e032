"""A tenant that is suspended or closed at the authority: the same word everywhere, and never an outage.

A closed tenant's key reads as one that we lost. Only the admin plane tells the two apart.
"""

import json
import logging

import pytest
from django.test import RequestFactory
from runcycles import cycles
from runcycles.exceptions import CyclesProtocolError

from billing import admin_client
from billing.client import current_subject_tenant
from billing.errors import AuthorityUnavailable, OnHold
from billing.guard import reserve
from billing.middleware import BudgetErrorMiddleware
from tenants.http import AccountOnHold
from tests.support.gate import Gate
from tests.support.money import eventually

pytestmark = pytest.mark.usefixtures("upstream")

SENTENCE = AccountOnHold.message


def change(workspace, status):
    tenant = workspace.account.subject_tenant
    admin_client.call("PATCH", f"/v1/admin/tenants/{tenant}", body={"status": status})


def calls_of(workspace):
    """Each way to spend: (status, body)."""
    api = workspace.api()
    for answer in (
        api.chat("hello"),
        api.chat("hello", stream=True),
        api.summarize("hello"),
        plain_cycles(workspace),
    ):
        yield answer.status_code, json.loads(answer.content)


def plain_cycles(workspace):
    @cycles(estimate=1, tenant=current_subject_tenant)
    def call():
        raise AssertionError("must not run")

    with workspace.scope(), pytest.raises(CyclesProtocolError) as refused:
        call()
    request = RequestFactory().post("/api/builders-own/")
    request.tenant = workspace.tenant
    return BudgetErrorMiddleware(lambda request: None).process_exception(request, refused.value)


@pytest.mark.on_standin
@pytest.mark.parametrize("status", ["SUSPENDED", "CLOSED"])
def test_it_reads_the_same_in_every_call_the_api_and_on_the_pages(workspace, globex, upstream, caplog, status):
    browser = workspace.client(workspace.owner)
    assert SENTENCE not in browser.get("/budget/").content.decode()
    change(workspace, status)
    for answered, body in calls_of(workspace):
        assert (answered, body["error"], body["message"]) == (403, "account_on_hold", SENTENCE)
        assert body["scope"] == workspace.account.scope
    with pytest.raises(OnHold):
        reserve(workspace.tenant, app="test", action_kind="test", action_name="unit", estimate=1)
    budget = workspace.api().get("/api/budget/")
    assert (budget.status_code, budget.json()["message"]) == (403, SENTENCE)
    for page in (browser.get("/budget/"), browser.post("/", {"prompt": "hello"})):
        assert SENTENCE in page.content.decode().replace("&#x27;", "'")
    assert upstream.calls == []
    # Calls of earlier tests may still be settled, and say what went wrong with theirs.
    ours = [record for record in caplog.records if getattr(record, "tenant", workspace.slug) == workspace.slug]
    assert [record for record in ours if record.levelno >= logging.ERROR] == [], "not ours to mend"
    assert globex.api().chat("hello").status_code == 200


def test_a_key_that_we_lost_is_ours_to_mend_and_says_so_in_the_log(workspace, upstream, caplog):
    admin_client.revoke_key(workspace.account.authority_key_id)
    for answered, body in calls_of(workspace):
        assert (answered, body["error"]) == (503, "authority_unavailable")
    assert "The authority refuses us" in caplog.text
    assert SENTENCE not in workspace.client(workspace.owner).get("/budget/").content.decode()
    assert upstream.calls == []


def test_where_nobody_says_which_it_is_nothing_is_claimed(workspace, upstream, settings):
    change(workspace, "CLOSED")
    working, settings.CYCLES_ADMIN_URL = settings.CYCLES_ADMIN_URL, "http://127.0.0.1:9"
    for answered, body in calls_of(workspace):
        assert (answered, body["error"]) == (503, "authority_unavailable")
    with pytest.raises(AuthorityUnavailable):
        reserve(workspace.tenant, app="test", action_kind="test", action_name="unit", estimate=1)
    settings.CYCLES_ADMIN_URL = working


# --- figures that cannot be had -------------------------------------------------------------------------------------


def test_unknown_figures_are_null_in_refusals_and_claim_nothing(workspace, upstream, settings):
    settings.BUDGET_WAIT_SECONDS = 0.2
    workspace.leave(0)
    working, settings.CYCLES_ADMIN_URL = settings.CYCLES_ADMIN_URL, "http://127.0.0.1:9"
    for answered, body in calls_of(workspace):
        assert (answered, body["error"], body["reason"]) == (402, "budget_exceeded", "does_not_fit")
        known = {name for name, value in body["budget"].items() if value is not None}
        assert known <= {"needed", "unit"}
    settings.CYCLES_ADMIN_URL = working
    assert workspace.api().chat("hello").json()["reason"] == "exhausted"


def test_pages_say_that_they_do_not_know(workspace, app, authority, settings):
    browser = workspace.client(workspace.owner)
    before = settings.CYCLES_ADMIN_URL
    with Gate(authority.admin_url, only=[workspace]) as gate:
        settings.CYCLES_ADMIN_URL = gate.url
        gate.act = lambda came: (500, b"{}") if came.path == "/v1/admin/budgets" else None
        page = browser.get("/budget/")
        assert page.context["figures"].remaining == 100_000_000
        assert "limits of your own is not known" in page.content.decode()
        gate.act = lambda came: (500, b"{}")
        page = browser.get("/budget/")
        assert (page.context["figures"], page.context["books"].difference) == (None, None)
        said = page.content.decode()
        assert "figures are not known" in said
        assert "$0.00" not in said.partition("charged in it for the calls")[0]
        assert "limits of your own" not in said
        strip = browser.get("/").content.decode()
        assert "The budget cannot be read right now." in strip
        assert "$" not in strip.partition('data-chat="budget"')[2].partition("</div>")[0]
        budget = workspace.api().get("/api/budget/")
        assert (budget.status_code, budget.json()["error"]) == (503, "authority_unavailable")
    settings.CYCLES_ADMIN_URL = before
    assert eventually(lambda: browser.get("/budget/").context["figures"])
