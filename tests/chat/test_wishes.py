"""Which model a conversation asks, with which system prompt and temperature: from whom, how sent, and who may say."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest

from chat.buying import Known
from chat.history import prompt_bytes
from chat.models import Conversation, Message
from chat.turns import Turn, _known
from chat.wishes import NO_WISHES, SYSTEM_MAX, Wishes, chosen, digest, of_workspace
from tenants.audit.models import AuditEvent
from tenants.models import Tenant

SHARED = "/settings/workspace/chat/"
BLANK = {"model": "", "system": "", "temperature": ""}


@pytest.fixture(autouse=True)
def _models(upstream, settings):
    price = settings.LLM_PRICES["test-model"]
    settings.LLM_PRICES = {"test-model": price, "big": price, "small": price}


def wish(workspace, **wishes):
    """As the workspace's row has it."""
    Tenant.objects.filter(pk=workspace.tenant.pk).update(chat_settings=wishes)


def own(workspace, pk):
    with workspace.scope():
        one = Conversation.objects.get(pk=pk)
        return one.model, one.system, one.temperature


def asked(upstream):
    """The last call's model, system prompt and temperature; None where it has none."""
    body = upstream.calls[-1]
    first = body["messages"][0]
    return body["model"], first["content"] if first["role"] == "system" else None, body.get("temperature")


def test_what_a_workspace_has_set_is_read_and_nonsense_is_not_there():
    assert of_workspace({"model": "m", "system": "s", "temperature": "0.7", "titles": True}) == Wishes(
        "m", "s", Decimal("0.70")
    )
    assert of_workspace({"temperature": 2}).temperature == 2
    for nonsense in (None, [], "x", 3, {"model": 3, "system": ["s"], "temperature": True}):
        assert of_workspace(nonsense) == NO_WISHES
    for number in ("NaN", "sNaN", "inf", "-0.1", 2.01, "1e999999999", "hot", {}):
        assert of_workspace({"temperature": number}) == NO_WISHES
    assert of_workspace({"system": "x" * (SYSTEM_MAX + 1), "model": " "}) == NO_WISHES


def test_a_conversation_keeps_only_what_differs_from_its_workspace():
    holds = Wishes(model="big")
    assert chosen("", holds=holds, workspace="small") is None
    assert chosen("big", holds=holds, workspace="small") is None
    assert chosen("huge", holds=holds, workspace="small") == "huge"
    assert chosen("small", holds=holds, workspace="small") == ""
    assert digest("") is digest(" ") is None
    assert digest("a") != digest("b")


def test_a_conversation_is_asked_as_it_wishes_else_as_its_workspace_does(workspace, globex, upstream):
    api = workspace.api()
    pk = api.chat("hello").json()["conversation_id"]
    assert asked(upstream) == ("test-model", None, None)
    wish(workspace, model="big", system="Be brief.", temperature="0.25")
    api.chat("and?", conversation_id=pk)
    assert asked(upstream) == ("big", "Be brief.", 0.25)
    assert [message["role"] for message in upstream.calls[-1]["messages"]] == ["system", "user", "assistant", "user"]
    api.chat("hello")
    assert asked(upstream) == ("big", "Be brief.", 0.25)
    with workspace.scope():
        Conversation.objects.filter(pk=pk).update(model="small", system="Be long.", temperature=0)
    api.chat("more", conversation_id=pk)
    assert asked(upstream) == ("small", "Be long.", 0.0)
    # What a program names is for this call alone.
    api.chat("more", conversation_id=pk, model="big")
    assert asked(upstream)[0] == "big"
    assert own(workspace, pk)[0] == "small"
    globex.api().chat("hello")
    assert asked(upstream) == ("test-model", None, None)


def test_a_model_that_takes_no_temperature_is_asked_without(workspace, upstream, settings):
    settings.LLM_DIALECT = {"big": {"temperature": False}}
    wish(workspace, temperature="1")
    workspace.api().chat("hello", model="big")
    assert asked(upstream) == ("big", None, None)
    workspace.api().chat("hello")
    assert asked(upstream)[2] == 1.0


def test_an_answer_keeps_by_which_system_prompt_it_was_counted_and_a_longer_one_is_held_for(workspace, upstream):
    api = workspace.api()
    pk = api.chat("hello").json()["conversation_id"]
    wish(workspace, system="x" * 4_000)
    api.chat("again", conversation_id=pk)
    with workspace.scope():
        answers = Message.objects.filter(conversation_id=pk, role="assistant").order_by("pk")
        assert [answer.system_digest for answer in answers] == [None, digest("x" * 4_000)]
    without, with_it = (line.estimate for line in workspace.settled(lines=2))
    assert with_it > without


@pytest.mark.parametrize(
    ("counted", "now", "is_known"),
    [("", "", True), ("a", "a", True), ("", "a", False), ("a", "", False), ("a", "b", False)],
)
def test_a_report_stands_only_for_the_system_prompt_that_it_counted(counted, now, is_known):
    said = [
        Turn(2, 1, "assistant", "Hi.", 40, "exact", digest(counted)),
        Turn(1, None, "user", "Hello", None, "", None),
    ]
    wishes = Wishes(system=now)
    history = [{"role": turn.role, "content": turn.text} for turn in reversed(said)]
    assert _known(said, history, wishes) == (
        Known(40, prompt_bytes([*wishes.opening, history[0]])) if is_known else None
    )


@pytest.mark.parametrize("leaves", [{"allowed_models": ["test-model"]}, {}])
def test_a_chosen_model_that_may_no_longer_be_called_is_refused_and_nothing_else_asked(workspace, upstream, leaves):
    browser = workspace.client(workspace.owner)
    place = browser.post("/", {"prompt": "hello", "model": "big"})["Location"]
    pk = int(re.findall(r"\d+", place)[0])
    Tenant.objects.filter(pk=workspace.tenant.pk).update(**leaves)
    if not leaves:
        with workspace.scope():
            Conversation.objects.filter(pk=pk).update(model="gone")
    before = len(upstream.calls)
    answer = workspace.api().chat("more", conversation_id=pk)
    assert (answer.status_code, answer.json()["error"]) == ((403, "forbidden") if leaves else (422, "model_not_priced"))
    page = browser.post("/", {"prompt": "kept words", "conversation_id": pk, "model": "big" if leaves else "gone"})
    assert page.status_code == answer.status_code
    assert ">kept words</textarea>" in page.content.decode()
    assert len(upstream.calls) == before
    assert workspace.ledger()["reserved"] == 0


def test_the_page_offers_models_with_prices_and_remembers_the_one_that_was_used(workspace, upstream):
    browser = workspace.client(workspace.owner)
    page = browser.get("/").content.decode()
    assert re.findall(r'<option value="([\w-]+)"( selected)?[ >]', page) == [
        ("test-model", " selected"),
        ("big", ""),
        ("small", ""),
    ]
    assert "big · $10.00 in, $40.00 out per million tokens" in page
    place = browser.post("/", {"prompt": "hello", "model": "small"})["Location"]
    pk = int(re.findall(r"\d+", place)[0])
    assert asked(upstream)[0] == own(workspace, pk)[0] == "small"
    assert '<option value="small" selected' in browser.get(place).content.decode()
    # Another one in the same conversation; then the workspace's, which it follows from then on.
    browser.post("/", {"prompt": "more", "model": "big", "conversation_id": pk})
    assert asked(upstream)[0] == own(workspace, pk)[0] == "big"
    browser.post("/", {"prompt": "more", "model": "test-model", "conversation_id": pk})
    assert (asked(upstream)[0], own(workspace, pk)[0]) == ("test-model", "")
    # What was not chosen is not kept.
    other = browser.post("/", {"prompt": "hello", "model": "test-model"})["Location"]
    assert own(workspace, int(re.findall(r"\d+", other)[0])) == ("", "", None)


def test_the_page_shows_only_what_the_workspace_may_call(workspace):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(allowed_models=["big", "small"])
    page = workspace.client(workspace.owner).get("/").content.decode()
    assert "test-model · cannot be called here now" in page
    Tenant.objects.filter(pk=workspace.tenant.pk).update(allowed_models=["test-model"])
    assert 'name="model"' not in workspace.client(workspace.owner).get("/").content.decode()


def test_an_owner_sets_their_conversation_and_nobody_else_does(workspace, globex, upstream):
    pk = workspace.api().chat("hello").json()["conversation_id"]
    place, body = f"/c/{pk}/settings/", {"model": "big", "system": "Be\r\nkind.", "temperature": "1.5"}
    browser = workspace.client(workspace.owner)
    assert browser.post(place, body)["Location"] == f"/c/{pk}/"
    assert own(workspace, pk) == ("big", "Be\nkind.", Decimal("1.50"))
    assert "Be\nkind.</textarea>" in browser.get(place).content.decode()
    member = workspace.client(workspace.member("other@x.example", "member"))
    assert member.get(place).status_code == member.post(place, BLANK).status_code == 404
    assert "Be\nkind." not in globex.client(globex.owner).get(place).content.decode()
    globex.client(globex.owner).post(place, BLANK)
    assert own(workspace, pk)[0] == "big"
    browser.post(place, BLANK)
    assert own(workspace, pk) == ("", "", None)


@pytest.mark.parametrize(
    "wrong", [{"temperature": "2.01"}, {"temperature": "warm"}, {"system": "y" * (SYSTEM_MAX + 1)}, {"model": "gone"}]
)
def test_what_cannot_be_set_is_a_400_that_keeps_what_was_typed(workspace, wrong):
    answer = workspace.client(workspace.owner).post(SHARED, {"system": "typed", **wrong})
    page = answer.content.decode()
    assert answer.status_code == 400
    assert "autofocus" in page
    assert ("y" * 100 if "system" in wrong else "typed") in page
    assert Tenant.objects.get(pk=workspace.tenant.pk).chat_settings == {}


def test_who_may_change_the_workspace_sets_its_chat_and_the_trail_says_so_without_the_prompt(workspace, globex):
    wish(workspace, titles="kept")
    for role in ("member", "viewer"):
        one = workspace.client(workspace.member(f"{role}@x.example", role))
        assert one.post(SHARED, BLANK).status_code == 403
    browser = workspace.client(workspace.member("admin@x.example", "admin"))
    body = {"model": "big", "system": "A secret way.", "temperature": "0.3"}
    for _ in range(2):
        assert browser.post(SHARED, body)["Location"] == SHARED
    assert Tenant.objects.get(pk=workspace.tenant.pk).chat_settings == {
        "titles": "kept",
        "model": "big",
        "system": "A secret way.",
        "temperature": "0.3",
    }
    with workspace.scope():
        (event,) = AuditEvent.objects.filter(event="settings.chat_changed")
        assert event.details == {
            "changed": ["model", "system prompt", "temperature"],
            "model": "big",
            "temperature": "0.3",
        }
    browser.post(SHARED, BLANK)
    assert Tenant.objects.get(pk=workspace.tenant.pk).chat_settings == {"titles": "kept"}
    assert Tenant.objects.get(pk=globex.tenant.pk).chat_settings == {}
