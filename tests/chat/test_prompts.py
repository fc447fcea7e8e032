"""The library of prompts: who keeps, sees, changes and deletes which."""

from __future__ import annotations

import pytest

from chat import prompts
from chat.models import SavedPrompt
from tenants.audit.models import AuditEvent

pytestmark = pytest.mark.usefixtures("upstream")


def kept(workspace, owner=None, **fields):
    with workspace.scope():
        fields = {"title": "A title", "text": "Say it.", "is_shared": False} | fields
        return SavedPrompt.objects.create(owner=owner or workspace.owner, **fields).pk


def there(workspace, pk):
    with workspace.scope():
        return SavedPrompt.objects.filter(pk=pk).values_list("title", flat=True).first()


@pytest.fixture
def bob(workspace):
    return workspace.member("bob@x.example", "member")


def test_a_prompt_is_kept_changed_put_into_the_box_and_deleted(workspace):
    browser = workspace.client(workspace.owner)
    body = {"title": "Sum up", "text": "Sum <this> up:"}
    for _click in range(2):
        assert browser.post("/prompts/", body)["Location"] == "/prompts/"
    with workspace.scope():
        (pk,) = SavedPrompt.objects.values_list("pk", flat=True)
    box = browser.get(f"/?prompt_id={pk}").content.decode()
    assert "Sum &lt;this&gt; up:</textarea>" in box
    assert f'data-text="/prompts/{pk}/text/"' in box
    assert browser.get(f"/prompts/{pk}/text/").content.decode() == "Sum <this> up:"
    assert browser.post(f"/prompts/{pk}/", {**body, "title": "Shorter"}).status_code == 302
    assert there(workspace, pk) == "Shorter"
    browser.post(f"/prompts/{pk}/delete/")
    assert there(workspace, pk) is None


def test_the_second_click_on_delete_comes_to_the_library_and_says_that_the_prompt_is_gone(workspace):
    browser, pk = workspace.client(workspace.owner), kept(workspace)
    kept(workspace, title="Another")
    assert browser.post(f"/prompts/{pk}/delete/").status_code == 302
    page = browser.post(f"/prompts/{pk}/delete/")
    assert page.status_code == 404
    assert "This prompt is not here any more." in page.content.decode()
    assert "Another" in page.content.decode()


def test_only_what_is_shared_is_seen_by_others_and_only_its_owner_changes_it(workspace, bob):
    mine, shared = kept(workspace, title="Mine alone"), kept(workspace, title="For all", is_shared=True)
    browser = workspace.client(bob)
    page = browser.get("/prompts/").content.decode()
    assert "For all" in page
    assert "Mine alone" not in page
    assert browser.get(f"/prompts/{shared}/text/").status_code == 200
    assert browser.get(f"/prompts/{mine}/text/").status_code == 404
    assert "Say it." not in browser.get(f"/?prompt_id={mine}").content.decode()
    for pk in (mine, shared):
        assert browser.get(f"/prompts/{pk}/").status_code == 404
        assert browser.post(f"/prompts/{pk}/", {"title": "Theirs", "text": "x"}).status_code == 404
        assert browser.post(f"/prompts/{pk}/delete/").status_code == 404
    # An admin tidies what is shared, and never what is not.
    admin = workspace.client(workspace.member("admin@x.example", "admin"))
    assert admin.post(f"/prompts/{mine}/delete/").status_code == 404
    assert admin.post(f"/prompts/{shared}/delete/").status_code == 302
    assert (there(workspace, mine), there(workspace, shared)) == ("Mine alone", None)
    with workspace.scope():
        (line,) = AuditEvent.objects.filter(event__startswith="prompts.")
    assert (line.actor, line.target, line.details) == ("admin@x.example", "For all", {"owner": workspace.owner.email})


def test_a_viewer_and_a_neighbour_see_none(workspace, globex):
    pk = kept(workspace, is_shared=True)
    assert workspace.client(workspace.member("v@x.example", "viewer")).get("/prompts/").status_code == 403
    neighbour = globex.client(globex.owner)
    assert neighbour.get(f"/prompts/{pk}/text/").status_code == 404
    assert neighbour.post(f"/prompts/{pk}/delete/").status_code == 404
    assert there(workspace, pk)


def test_there_is_a_most_and_a_longest_and_a_refused_one_is_still_in_the_form(workspace, monkeypatch):
    monkeypatch.setattr(prompts, "MOST", 1)
    browser = workspace.client(workspace.owner)
    long = browser.post("/prompts/", {"title": "Long", "text": "z" * 8_001})
    assert (long.status_code, "z" * 8_001 in long.content.decode()) == (400, True)
    kept(workspace)
    more = browser.post("/prompts/", {"title": "One more", "text": "typed words", "is_shared": "on"})
    page = more.content.decode()
    assert more.status_code == 400
    assert "which is the most" in page
    assert "typed words</textarea>" in page
    with workspace.scope():
        assert SavedPrompt.objects.count() == 1
