"""Money bought: a durable row, applied once for each key."""

from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command

from billing import admin_client
from billing.errors import AuthorityUnavailable
from billing.models import TopUp
from billing.topups import TopUpConflict, top_up
from tenants.threads import TenantExecutor
from tests.support.money import forget_keys, fund_path

pytestmark = pytest.mark.usefixtures("app")


@pytest.mark.on_standin
def test_the_same_key_adds_once_from_many_threads(workspace):
    def buy(_):
        top_up(workspace.account, amount=1_000, key="invoice-1")

    with TenantExecutor(8) as pool:
        list(pool.map(buy, range(16)))
    assert workspace.ledger()["allocated"] == 100_001_000
    assert TopUp.objects.filter(account=workspace.account, applied_at__isnull=False).count() == 1


def test_what_is_applied_is_not_asked_for_again(workspace, monkeypatch):
    top_up(workspace.account, amount=1_000, key="invoice-1")
    # The authority forgets a key after a day; by then only the row knows.
    monkeypatch.setattr(admin_client, "fund_once", lambda *args, **kwargs: pytest.fail("asked again"))
    assert top_up(workspace.account, amount=1_000, key="invoice-1").applied_at is not None


def test_two_keys_add_twice_and_the_neighbour_nothing(workspace, globex):
    before = globex.ledger()["allocated"]
    for key in ("invoice-1", "invoice-2"):
        top_up(workspace.account, amount=1_000, key=key)
    assert workspace.ledger()["allocated"] == 100_002_000
    assert globex.ledger()["allocated"] == before


@pytest.mark.on_standin
def test_the_same_key_of_two_workspaces_is_two_payments(workspace, globex):
    before = globex.ledger()["allocated"]
    for account in (workspace.account, globex.account):
        top_up(account, amount=1_000, key="shared-name")
    assert workspace.ledger()["allocated"] == 100_001_000
    assert globex.ledger()["allocated"] == before + 1_000


def test_a_key_stands_for_one_amount(workspace):
    top_up(workspace.account, amount=1_000, key="invoice-1")
    with pytest.raises(TopUpConflict):
        top_up(workspace.account, amount=2_000, key="invoice-1")


@pytest.mark.on_standin
def test_a_payment_whose_answer_was_lost_is_finished_and_added_once(workspace, settings):
    working, settings.CYCLES_ADMIN_URL = settings.CYCLES_ADMIN_URL, "http://127.0.0.1:9"
    with pytest.raises(AuthorityUnavailable):
        top_up(workspace.account, amount=1_000, key="invoice-1")
    settings.CYCLES_ADMIN_URL = working
    top_up(workspace.account, amount=1_000, key="invoice-1")
    assert workspace.ledger()["allocated"] == 100_001_000


def test_a_payment_whose_answer_was_lost_a_day_ago_is_found_in_the_trail(workspace, lossy_admin):
    lossy_admin.lose[fund_path(workspace)] = 1
    with pytest.raises(AuthorityUnavailable):
        top_up(workspace.account, amount=1_000, key="invoice-1")
    forget_keys(workspace)
    top_up(workspace.account, amount=1_000, key="invoice-1")
    assert workspace.ledger()["allocated"] == 100_001_000


def test_an_unconfirmed_payment_of_yesterday_that_never_arrived_is_made(workspace):
    row = TopUp.objects.create(account=workspace.account, key="old", amount=1_000)
    TopUp.objects.filter(pk=row.pk).update(created_at=row.created_at - timedelta(hours=24))
    assert top_up(workspace.account, amount=1_000, key="old").applied_at is not None
    assert workspace.ledger()["allocated"] == 100_001_000


def test_an_unconfirmed_payment_older_than_the_trail_is_left_to_a_person(workspace):
    row = TopUp.objects.create(account=workspace.account, key="old", amount=1_000)
    TopUp.objects.filter(pk=row.pk).update(created_at=row.created_at - timedelta(days=81))
    with pytest.raises(TopUpConflict, match="by hand"):
        top_up(workspace.account, amount=1_000, key="old")


def test_a_frozen_ledger_takes_no_money_says_so_and_the_same_command_adds_it_later(workspace):
    freeze = {"scope": workspace.account.scope, "unit": "USD_MICROCENTS"}
    admin_client.call("POST", "/v1/admin/budgets/freeze", params=freeze)
    with pytest.raises(CommandError, match=rf"{workspace.account.scope} is frozen, so nothing was added\. Unfreeze"):
        call_command("top_up", workspace.slug, "5", "--key", "k")
    assert TopUp.objects.get(account=workspace.account).applied_at is None
    admin_client.call("POST", "/v1/admin/budgets/unfreeze", params=freeze)
    for _ in range(2):
        call_command("top_up", workspace.slug, "5", "--key", "k")
    assert workspace.ledger()["allocated"] == 600_000_000


def test_a_closed_workspace_takes_no_money_and_says_so(workspace):
    tenant = workspace.account.subject_tenant
    admin_client.call("PATCH", f"/v1/admin/tenants/{tenant}", body={"status": "CLOSED"})
    with pytest.raises(CommandError, match=r"closed .* for good, so nothing was added"):
        call_command("top_up", workspace.slug, "5", "--key", "k")
    assert TopUp.objects.get(account=workspace.account).applied_at is None


@pytest.mark.parametrize("usd", ["0", "-1", "1.123456789", "NaN", "Infinity", "five", "1e20"])
def test_the_command_takes_real_amounts_only(workspace, usd):
    with pytest.raises(CommandError):
        call_command("top_up", workspace.slug, "--key", "k", "--", usd)
    assert workspace.ledger()["allocated"] == 100_000_000


@pytest.mark.parametrize("key", ["", " ", "\u200b", "invoice-1\n", " invoice-1", "in\x1bvoice", "\udcff", "x" * 101])
def test_the_command_takes_no_key_that_names_no_payment(workspace, key):
    # `--key "$INVOICE"` with nothing in it would add one month's money, and call each month after it added as well.
    with pytest.raises(CommandError, match="1 to 100 characters"):
        call_command("top_up", workspace.slug, "5", "--key", key)
    assert not TopUp.objects.filter(account=workspace.account).exists()
    assert workspace.ledger()["allocated"] == 100_000_000


def test_the_command_names_a_workspace_that_is_not_there():
    with pytest.raises(CommandError, match="nobody-here"):
        call_command("top_up", "nobody-here", "5", "--key", "k")
