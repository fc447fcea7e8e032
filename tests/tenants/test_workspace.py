"""What a workspace is called, where it lives and what time it is there; and that no neighbour has a say in it."""

import re
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, transaction
from django.test import Client
from django.utils import timezone

from billing import provisioning, signing_up
from billing.errors import SlugTaken
from billing.models import Account
from tenants import services
from tenants.audit.models import AuditEvent
from tenants.hosts import host_for, origin_of
from tenants.models import Domain, Tenant
from tenants.threads import TenantExecutor
from tenants.time_zones import choices, zone_of
from tenants.users.auth import PROVEN_AT
from tenants.users.handoff import issue_token
from tests.support.cast import PASSWORD
from tests.support.factories import UsageLineFactory, WorkspaceFactory

pytestmark = pytest.mark.usefixtures("app")


def new_slug():
    return f"ws-{uuid.uuid4().hex[:10]}"


def change_slug(tenant, slug):
    with transaction.atomic():
        return services.change_slug(tenant, slug)


def change_time_zone(tenant, time_zone):
    with transaction.atomic():
        services.change_time_zone(tenant, time_zone)


def trail(workspace):
    with workspace.scope():
        return list(AuditEvent.objects.filter(event__startswith="settings.").values_list("event", "details"))


def move(client, slug):
    return client.post("/settings/workspace/address/", {"slug": slug})


def token_of(page):
    return re.search(r'name="token" value="([^"]+)"', page.content.decode())[1]


def domains(workspace):
    return dict(Domain.objects.filter(tenant=workspace.tenant).values_list("domain", "is_primary"))


# --- name and time zone ---------------------------------------------------------------------------------------------


def test_name_and_time_zone_are_changed_and_in_the_trail(workspace):
    client = workspace.client(workspace.owner)
    before = workspace.tenant.name
    page = client.post("/settings/workspace/", {"name": "  New   name ", "time_zone": "Europe/Berlin"}, follow=True)
    assert b"The workspace is changed." in page.content
    assert trail(workspace) == [
        ("settings.renamed", {"before": before, "after": "New name"}),
        ("settings.time_zone_changed", {"before": "UTC", "after": "Europe/Berlin"}),
    ]
    client.post("/settings/workspace/", {"name": "New name", "time_zone": "Europe/Berlin"})
    assert len(trail(workspace)) == 2


def test_of_two_names_at_once_the_trail_says_which_followed_which(workspace, monkeypatch):
    client, other = workspace.client(workspace.owner), workspace.client()
    other.cookies.load(client.cookies.output(header=""))
    before, change, waiting = workspace.tenant.name, services.change_name, [other]

    def rename(browser, name):
        browser.post("/settings/workspace/", {"name": name, "time_zone": "UTC"})

    def change_after_the_other(tenant, name):
        if waiting:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(rename, waiting.pop(), "Second").result()
                pool.submit(lambda: connection.close()).result()
        return change(tenant, name)

    monkeypatch.setattr(services, "change_name", change_after_the_other)
    rename(client, "Third")
    said = {(details["before"], details["after"]) for _, details in trail(workspace)}
    assert said == {(before, "Second"), ("Second", "Third")}


def test_what_cannot_be_used_changes_nothing_and_loses_nothing(workspace):
    client = workspace.client(workspace.owner)
    page = client.post("/settings/workspace/", {"name": "Typed anew", "time_zone": "Mars/Olympus"})
    assert page.status_code == 400
    assert b"Typed anew" in page.content
    assert not trail(workspace)
    for slug in ("UP", "admin", "pg-name", "a\x00b", "x" * 33, workspace.slug):
        page = move(client, slug)
        assert page.status_code == 400, slug
        assert b'aria-invalid="true"' in page.content
    assert list(domains(workspace)) == [workspace.host]


def test_a_member_may_not_and_an_admin_may_not_delete(workspace):
    member = workspace.client(workspace.member("m@ws.example"))
    admin = workspace.client(workspace.member("a@ws.example", role="admin"))
    assert member.get("/settings/workspace/").status_code == 403
    assert move(member, new_slug()).status_code == 403
    page = admin.get("/settings/workspace/")
    assert page.status_code == 200
    assert b"/settings/workspace/delete/" not in page.content
    assert admin.get("/settings/workspace/delete/").status_code == 403


def test_pages_show_times_in_the_workspaces_zone_and_the_api_in_utc(workspace, acme):
    at = datetime(2026, 7, 1, 22, 30, tzinfo=UTC)
    change_time_zone(workspace.tenant, "Asia/Kolkata")
    with workspace.scope():
        UsageLineFactory(created_at=at)
    client = workspace.client(workspace.owner)
    assert b"04:00:00 IST" in client.get("/budget/").content
    assert timezone.get_current_timezone_name() == "UTC"
    period = workspace.api().get("/api/budget/").json()["period"]
    assert period["starts_at"].endswith("Z")
    # The neighbour's next page, on the same thread.
    assert b"IST" not in acme.client(acme.owner).get("/budget/").content


def test_a_zone_that_this_machine_does_not_know_is_utc_and_is_kept(workspace):
    change_time_zone(workspace.tenant, "Mars/Olympus")
    client = workspace.client(workspace.owner)
    assert b"Mars/Olympus" in client.get("/settings/workspace/").content
    assert client.post("/settings/workspace/", {"name": "Kept", "time_zone": "Mars/Olympus"}).status_code == 302
    assert {str(zone_of(name)) for name in ("Mars/Olympus", "../etc", "", "Europe")} == {"UTC"}
    offered = [name for _, zones in choices() for name, _ in zones]
    assert {"UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires"} <= set(offered)
    assert all(str(zone_of(name)) == name for name in offered)


# --- the address ----------------------------------------------------------------------------------------------------


def test_a_new_address_leads_there_signed_in_and_the_old_one_stays_ours(workspace):
    client = workspace.client(workspace.owner)
    old, new = workspace.slug, new_slug()
    page = move(client, new)
    assert page.status_code == 200
    assert f'action="http://{new}.localhost:8000/welcome/"'.encode() in page.content
    assert f"form-action 'self' http://{new}.localhost:8000" in page["Content-Security-Policy"]
    assert page["Referrer-Policy"] == "strict-origin-when-cross-origin"
    assert domains(workspace) == {host_for(old): False, host_for(new): True}
    assert trail(workspace) == [("settings.address_changed", {"before": old, "after": new})]
    # The old host's session is over, and the new one begins by the token.
    there = Client(headers={"host": host_for(new)})
    landed = there.post(
        "/welcome/",
        {"token": token_of(page), "next": "/settings/workspace/"},
        headers={"origin": origin_of(host_for(old))},
    )
    assert landed["Location"] == "/settings/workspace/"
    assert there.get("/settings/workspace/").status_code == 200
    assert client.get("/settings/workspace/", headers={"host": host_for(new)}).status_code == 302


def test_a_session_that_moves_along_is_no_fresher_there(workspace):
    client = workspace.client(workspace.owner)
    with workspace.scope():
        session = client.session
        session[PROVEN_AT] -= 601
        session.save()
    old, new = workspace.slug, new_slug()
    token = token_of(move(client, new))
    there, origin = Client(headers={"host": host_for(new)}), {"origin": origin_of(host_for(old))}
    younger = f"{token.rpartition('.')[0]}.{int(time.time())}"
    assert there.post("/welcome/", {"token": younger}, headers=origin).status_code == 400
    assert there.post("/welcome/", {"token": token}, headers=origin).status_code == 302
    # Whoever found a browser open may not change how its member gets in.
    assert b'type="password"' in there.get("/settings/security/two-step/").content


def test_going_back_to_an_earlier_address_makes_it_the_first_again(workspace):
    old, new = workspace.slug, new_slug()
    assert change_slug(workspace.tenant, new) == old
    assert change_slug(workspace.tenant, old) == new
    assert domains(workspace) == {host_for(old): True, host_for(new): False}
    assert Tenant.objects.get(pk=workspace.tenant.pk).slug == old


def test_an_address_that_is_or_was_anybodys_is_taken(workspace, globex):
    had_once = globex.slug
    moved = WorkspaceFactory(slug=new_slug())
    left = moved.slug
    change_slug(moved.tenant, new_slug())
    client = workspace.client(workspace.owner)
    pages = [move(client, slug) for slug in (had_once, left)]
    assert [page.status_code for page in pages] == [400, 400]
    assert all(b"This address is taken. Choose another." in page.content for page in pages)
    assert list(domains(workspace)) == [workspace.host]
    assert not trail(workspace)


def test_signing_up_for_an_address_that_somebody_left_is_the_one_409(workspace):
    left = workspace.slug
    change_slug(workspace.tenant, new_slug())
    form = {"name": "New", "email": "new@ws.example", "password": PASSWORD}
    client = Client(headers={"host": "localhost"})

    def asked(slug):
        return client.post("/api/signup/", {**form, "slug": slug}, content_type="application/json")

    gone, there = asked(left), asked(workspace.tenant.slug)
    assert gone.status_code == there.status_code == 409
    assert gone.json()["message"] == there.json()["message"]
    assert client.post("/signup/", {**form, "slug": left}).status_code == 409
    with pytest.raises(SlugTaken):
        provisioning.sign_up(slug=left, plan="trial", **form)


def test_an_address_left_between_the_look_and_the_claim_is_409_too(workspace, monkeypatch):
    looks = iter([None, None])
    look = signing_up._claimed
    monkeypatch.setattr(
        signing_up, "_claimed", lambda slug, by: next(looks) if looks.__length_hint__() else look(slug, by)
    )
    left = workspace.slug
    change_slug(workspace.tenant, new_slug())
    fields = {"name": "New", "email": "new@ws.example", "password": PASSWORD, "plan": "trial"}
    with pytest.raises(SlugTaken):
        signing_up.ask(slug=left, mark=signing_up.new_mark(), address="192.0.2.7", **fields)
    assert Account.objects.filter(tenant__domains__domain=host_for(left)).count() == 1


def test_of_two_who_want_one_address_at_once_one_gets_it(workspace):
    other, wanted = WorkspaceFactory(slug=new_slug()), new_slug()

    def change(tenant):
        try:
            return change_slug(tenant, wanted)
        except services.SlugIsTaken:
            return None

    with TenantExecutor(2) as pool:
        got = list(pool.map(change, [workspace.tenant, other.tenant]))
    assert got.count(None) == 1
    assert Domain.objects.filter(domain=host_for(wanted)).count() == 1


def test_a_workspace_cannot_collect_addresses(workspace):
    client, began = workspace.client(workspace.owner), timezone.now()
    for _ in range(5):
        page = move(client, new_slug())
        slug = Tenant.objects.get(pk=workspace.tenant.pk).slug
        workspace.slug, workspace.host = slug, host_for(slug)
        client = Client(headers={"host": workspace.host})
        client.post("/welcome/", {"token": token_of(page)}, headers={"origin": "http://localhost:8000"})
    # What is refused for another reason is not counted, nor does it make the wait longer.
    page = move(client, new_slug())
    assert page.status_code == 429
    # At midnight it may be either day.
    again = [moment + timedelta(days=6) for moment in (began, timezone.now())]
    assert any(f"{day:%-d %B %Y}".encode() in page.content for day in again)
    assert 5 * 86_400 < int(page["Retry-After"]) <= 6 * 86_400
    assert len(domains(workspace)) == 6


@pytest.mark.parametrize("where", ["neighbour", "neighbour's earlier one", "itself", "null", "none"])
def test_a_hand_off_from_anywhere_else_is_refused_and_its_token_is_not_used_up(workspace, globex, where):
    new = new_slug()
    old = workspace.slug
    change_slug(workspace.tenant, new)
    moved = WorkspaceFactory(slug=new_slug())
    before = moved.host
    change_slug(moved.tenant, new_slug())
    origins = {
        "neighbour": origin_of(globex.host),
        "neighbour's earlier one": origin_of(before),
        "itself": origin_of(host_for(new)),
        "null": "null",
    }
    token = issue_token(workspace.tenant, user_id=workspace.owner.pk)
    client = Client(headers={"host": host_for(new)})
    headers = {"origin": origins[where]} if where in origins else {}
    assert client.post("/welcome/", {"token": token}, headers=headers).status_code == 400
    assert client.post("/welcome/", {"token": token}, headers={"origin": origin_of(host_for(old))}).status_code == 302
