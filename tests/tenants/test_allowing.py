"""Which models a workspace, and a key of it, may call: set on their pages, by who may, and said in the trail."""

from __future__ import annotations

import pytest

from tenants.audit.models import AuditEvent
from tenants.models import Tenant
from tenants.users.models import ApiKey

WORKSPACE = "/settings/workspace/models/"


@pytest.fixture(autouse=True)
def _models(upstream, settings):
    price = {"input": 1, "output": 1}
    settings.LLM_PRICES = {"test-model": price, "big": price, "small": price}


def allowed(workspace):
    return Tenant.objects.get(pk=workspace.tenant.pk).allowed_models


def made(workspace, user=None, **facts):
    with workspace.scope():
        secret = workspace.key(user, **facts)
        return ApiKey.objects.get(prefix=secret.split("_")[2])


def key_models(workspace, key):
    with workspace.scope():
        return ApiKey.objects.get(pk=key.pk).allowed_models


def said(workspace, event):
    with workspace.scope():
        return [(one.actor, one.target, one.details) for one in AuditEvent.objects.filter(event=event).order_by("pk")]


def test_an_admin_allows_a_workspace_some_models_and_then_all(workspace, globex):
    browser = workspace.client(workspace.member("admin@acme.example", "admin"))
    assert b"Only those that are ticked" in browser.get("/settings/workspace/").content
    answer = browser.post(WORKSPACE, {"which": "some", "models": ["big", "small"]})
    assert (answer.status_code, answer["Location"]) == (302, "/settings/workspace/")
    assert allowed(workspace) == ["big", "small"]
    assert browser.get("/settings/workspace/").content.count(b'name="models" value="big" checked') == 1
    browser.post(WORKSPACE, {"which": "some", "models": ["big", "small"]})
    browser.post(WORKSPACE, {"which": "all", "models": ["big"]})
    assert allowed(workspace) is None
    assert [details for _, _, details in said(workspace, "settings.models_allowed")] == [
        {"before": "all", "after": ["big", "small"]},
        {"before": ["big", "small"], "after": "all"},
    ]
    assert allowed(globex) is None


def test_models_are_headed_once_on_each_page_that_has_a_heading_for_them(workspace):
    """The legend under a heading of the same words is for screen readers; the page of new keys shows it."""
    key, browser = made(workspace), workspace.client(workspace.owner)
    hidden, shown = '<legend class="unseen">Models</legend>', '<legend class="field__label">Models</legend>'
    pages = ["/settings/workspace/", f"/settings/keys/{key.pk}/models/", "/settings/keys/"]
    bodies = [browser.get(page).content.decode() for page in pages]
    assert [(hidden in body, shown in body) for body in bodies] == [(True, False), (True, False), (False, True)]


@pytest.mark.parametrize("models", [[], ["big", "none-of-ours"]])
def test_what_is_no_choice_is_a_400_that_keeps_what_was_ticked(workspace, models):
    browser = workspace.client(workspace.owner)
    answer = browser.post(WORKSPACE, {"which": "some", "models": models})
    page = answer.content.decode()
    assert answer.status_code == 400
    assert 'value="some" checked' in page
    assert page.count('name="models" value="big" checked') == (1 if models else 0)
    assert "autofocus" in page
    assert allowed(workspace) is None


def test_a_model_that_is_called_no_longer_stays_allowed_when_others_are_changed(workspace):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(allowed_models=["gone", "big"])
    browser = workspace.client(workspace.owner)
    assert "not called here now" in browser.get("/settings/workspace/").content.decode()
    assert browser.post(WORKSPACE, {"which": "some", "models": ["gone", "small"]}).status_code == 302
    assert sorted(allowed(workspace)) == ["gone", "small"]


@pytest.mark.parametrize("role", ["member", "viewer"])
def test_who_may_not_edit_the_workspace_changes_none_of_its_models(workspace, role):
    browser = workspace.client(workspace.member(f"{role}@acme.example", role))
    assert browser.post(WORKSPACE, {"which": "some", "models": ["big"]}).status_code == 403
    assert allowed(workspace) is None


def test_a_key_is_made_for_some_models_of_the_workspace_and_no_others(workspace):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(allowed_models=["big", "small"])
    browser = workspace.client(workspace.owner)
    form = {"name": "ci", "scopes": ["chat"], "life": "30", "which": "some"}
    assert browser.post("/settings/keys/", {**form, "models": ["test-model"]}).status_code == 400
    assert browser.post("/settings/keys/", {**form, "models": ["small"]}).status_code == 302
    with workspace.scope():
        assert ApiKey.objects.get(name="ci").allowed_models == ["small"]
    assert said(workspace, "keys.made")[-1][2]["models"] == ["small"]
    assert b"may call small" in browser.get("/settings/keys/").content


def test_its_owner_changes_a_keys_models_and_so_does_who_sees_all_keys(workspace):
    alice = workspace.member("alice@acme.example")
    key = made(workspace, alice)
    address = f"/settings/keys/{key.pk}/models/"
    for user, models in ((alice, ["big"]), (workspace.owner, ["small"])):
        browser = workspace.client(user)
        assert address in browser.get("/settings/keys/").content.decode()
        assert browser.get(address).status_code == 200
        assert browser.post(address, {"which": "some", "models": []}).status_code == 400
        assert browser.post(address, {"which": "some", "models": models})["Location"] == "/settings/keys/"
        assert key_models(workspace, key) == models
    events = said(workspace, "keys.models_changed")
    assert [(actor, details["before"], details["after"]) for actor, _, details in events] == [
        ("alice@acme.example", "all", ["big"]),
        (workspace.owner.email, ["big"], ["small"]),
    ]


def test_nobody_else_changes_them(workspace, globex):
    key = made(workspace, workspace.owner)
    with globex.scope():
        ApiKey.objects.filter(pk=key.pk).delete()  # of the same number, it would be the neighbour's own
    address, choice = f"/settings/keys/{key.pk}/models/", {"which": "some", "models": ["big"]}
    admin, member = workspace.member("b@acme.example", "admin"), workspace.member("c@acme.example")
    for browser, status in (
        (workspace.client(admin), 403),
        (workspace.client(member), 404),
        (globex.client(globex.owner), 404),
    ):
        assert browser.get(address).status_code == status
        assert browser.post(address, choice).status_code == status
    assert key_models(workspace, key) is None
    with workspace.scope():
        ApiKey.objects.get(pk=key.pk).revoke()
    assert workspace.client(workspace.owner).post(address, choice).status_code == 404


def test_a_rotated_key_may_call_what_the_one_before_may(workspace):
    key = made(workspace, allowed_models=["big"])
    browser = workspace.client(workspace.owner)
    assert browser.post(f"/settings/keys/{key.pk}/rotate/", {"overlap": "24", "life": "90"}).status_code == 302
    with workspace.scope():
        assert ApiKey.objects.get(replaces=key).allowed_models == ["big"]
