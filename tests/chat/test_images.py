"""Images of a message: which models are given them, what is kept and sent of them, whose they are, what they cost."""

import base64
import io
import json
import struct
import zlib

import pytest
from PIL import Image

from chat import attachments
from chat.images import made_anew
from chat.models import Attachment
from chat.trimming import Room, fitting
from chat.unread import Unread
from tenants.models import Tenant
from tests.chat.test_files import added, upload
from tests.support.cast import events_of
from tests.support.factories import WorkspaceFactory, said

EACH = 700  # tokens of an image, by the operator's word

CAT = 'Image "cat.png" is attached to this message.\n\n'


@pytest.fixture(autouse=True)
def seeing(upstream, settings):
    """A model that takes images beside the default one, which takes none."""
    settings.LLM_PRICES = {**settings.LLM_PRICES, "seer": settings.LLM_PRICES["test-model"]}
    settings.LLM_DIALECT = {"seer": {"image_tokens": EACH}}
    return upstream


@pytest.fixture(scope="module")
def home(app):
    """A workspace for all of these that change nothing of it."""
    return WorkspaceFactory()


@pytest.fixture(autouse=True)
def _nothing_waits(home):
    yield
    with home.scope():
        Attachment.objects.filter(message_id=None).delete()


def picture(form="PNG", size=(4, 3), says=None, **how):
    """`says`: what the head of a PNG says of its size."""
    into = io.BytesIO()
    Image.new("RGB", size, "red").save(into, form, **how)
    raw = into.getvalue()
    if says is None:
        return raw
    head = b"IHDR" + struct.pack(">II", *says) + raw[24:29]
    return raw[:12] + head + struct.pack(">I", zlib.crc32(head)) + raw[33:]


PICTURE = picture()


def cat(workspace, user=None, raw=PICTURE):
    return added(workspace, user, name="cat.png", raw=raw, model="seer")


def ask(workspace, words="what is it?", **more):
    return workspace.api().chat(words, **{"model": "seer", **more})


def image_of(part):
    assert part["type"] == "image_url"
    head, _, data = part["image_url"]["url"].partition(",")
    return head, base64.b64decode(data, validate=True)


def held(answer):
    return next(data for name, data in events_of(answer) if name == "held")


# --- what is kept ---------------------------------------------------------------------------------------------------


def told_where():
    """What a telephone writes beside the pixels: a maker, a place on earth, and that the picture lies on its side."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "SecretPhone", 6
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.0), 3: "E", 4: (13.0, 22.0, 0.0)})
    return exif


@pytest.mark.parametrize(
    ("form", "kind", "how"),
    [
        ("JPEG", "jpeg", {"exif": told_where(), "comment": b"SecretPhone"}),
        ("PNG", "png", {"exif": told_where()}),
        ("WEBP", "png", {"exif": told_where(), "xmp": b"<x>SecretPhone</x>"}),
        ("GIF", "png", {"comment": b"SecretPhone"}),
    ],
)
def test_nothing_but_the_pixels_is_kept_and_they_stand_upright(form, kind, how):
    raw = picture(form, (40, 20), **how)
    assert b"SecretPhone" in raw
    found, made = made_anew(raw + b"<script>alert(1)</script>")
    assert found == kind
    assert b"SecretPhone" not in made
    assert b"<script>" not in made
    image = Image.open(io.BytesIO(made))
    assert image.size == ((40, 20) if form == "GIF" else (20, 40))
    assert (dict(image.getexif()), image.info.get("comment"), image.info.get("icc_profile")) == ({}, None, None)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "damaged"),
        (picture("JPEG", (400, 400))[:-400], "damaged"),
        (picture(says=(12_000, 12_000)), "50 million pixels"),
        (picture(says=(60_000, 60_000)), "50 million pixels"),
    ],
)
def test_what_is_no_image_or_unpacks_into_gigabytes_is_refused_with_words(raw, why):
    with pytest.raises(Unread, match=why):
        made_anew(raw)


def test_a_large_one_is_made_as_small_as_models_look_at(home):
    raw = picture("JPEG", (5_000, 100))
    kind, made = made_anew(raw)
    assert (kind, Image.open(io.BytesIO(made)).size) == ("jpeg", (2_048, 41))


# --- which models take them -----------------------------------------------------------------------------------------


def test_an_image_is_taken_by_its_bytes_where_the_model_takes_them_and_else_models_that_do_are_named(workspace):
    refused = upload(workspace, name="cat.txt", raw=PICTURE)
    assert (refused.status_code, refused.json()["error"], refused.json()["models"]) == (
        400,
        "images_not_taken",
        ["seer"],
    )
    assert "Choose seer" in refused.json()["message"]
    answer = upload(workspace, name="cat.txt", raw=PICTURE, model="seer").json()
    assert (answer["kind"], answer["name"]) == ("png", "cat.txt")
    assert answer["tokens"] > EACH
    assert answer["price"] == answer["tokens"] * 1_000
    assert 'alt="cat.txt"' in answer["html"]
    # The model of the conversation, and of the workspace, where the form names none; and none that is not allowed.
    with workspace.scope():
        conversation = workspace.owner.conversations.create(title="q", model="seer").pk
    assert upload(workspace, raw=PICTURE, conversation_id=conversation).status_code == 200
    Tenant.objects.filter(pk=workspace.tenant.pk).update(chat_settings={"model": "seer"})
    assert upload(workspace, raw=PICTURE).status_code == 200
    Tenant.objects.filter(pk=workspace.tenant.pk).update(allowed_models=["test-model"])
    refused = upload(workspace, raw=PICTURE, model="test-model").json()
    assert (refused["models"], "No model here takes them" in refused["message"]) == ([], True)


def test_a_group_takes_images_where_each_of_its_members_does(home, settings):
    priced = {"price": settings.LLM_PRICES["seer"], "context": None, "kinds": ["chat"]}
    settings.MODELS = {
        "dearer": {**priced, "dialect": {"model": "m", "image_tokens": 3 * EACH}},
        "both": {"fallback": ["seer", "dearer"]},
        "half": {"fallback": ["seer", "test-model"]},
    }
    assert upload(home, raw=PICTURE, model="half").json()["models"] == ["both", "dearer", "seer"]
    tokens = upload(home, raw=PICTURE, model="both").json()["tokens"]
    assert tokens > 3 * EACH, "any of them may be the one that answers"


def test_a_model_that_takes_none_is_not_asked_and_nothing_is_lost(home, upstream):
    pk = cat(home)
    for path in ("/api/chat/", "/api/chat/price/"):
        refused = home.api().post(path, {"prompt": "what is it?", "files": [pk]})
        assert (refused.status_code, refused.json()["error"]) == (400, "images_not_taken")
    browser = home.client(home.owner)
    page = browser.post("/", {"prompt": "half a thou", "files": [pk]})
    assert page.status_code == 400
    assert ">half a thou</textarea>" in page.content.decode()
    assert "Choose seer" in page.content.decode()
    assert f'name="files" value="{pk}"' in page.content.decode()
    assert "<span data-file-not-taken>not taken by <span data-file-model>test-model</span>" in page.content.decode()
    assert upstream.calls == []
    assert home.ledger()["reserved"] == 0


# --- sent, held and paid --------------------------------------------------------------------------------------------


def test_an_image_is_sent_beside_the_words_and_what_is_held_is_what_was_said_and_covers_the_bill(home, upstream):
    pk = cat(home)
    asked = {"prompt": "what is it?", "files": [pk], "model": "seer"}
    alone = home.api().post("/api/chat/price/", {**asked, "files": []}).json()
    price = home.api().post("/api/chat/price/", asked).json()
    with home.scope():
        file = Attachment.objects.get(pk=pk)
        assert price["most"] - alone["most"] == attachments.price_of(attachments.tokens_for(file, "seer"), "seer")
        kept = bytes(file.image)
    assert price["likely"] - alone["likely"] > EACH * 1_000
    bound = price["most"] // 1_000 - 4 * price["max_tokens"]
    upstream.usage = {"prompt_tokens": bound, "completion_tokens": 512}  # as much as could be billed
    answer = ask(home, files=[pk], stream=True)
    assert held(answer)["reserved"] == price["most"]
    line = home.settled()[-1]
    assert (line.cost, line.outcome) == (price["most"], "exact")
    (message,) = upstream.calls[0]["messages"]
    assert message["content"][0] == {"type": "text", "text": f"{CAT}what is it?"}
    assert image_of(message["content"][1]) == ("data:image/png;base64", kept)
    assert len(message["content"]) == 2


def test_a_call_with_images_teaches_no_ratio_and_no_server_is_asked_to_count_its_words(workspace, upstream):
    from billing.engine.loop import here, run

    async def ratio():
        return here().habits.of("seer", "chat").input_ratio

    upstream.usage = {"prompt_tokens": 900, "completion_tokens": 4}
    before = run(ratio())
    first = ask(workspace, files=[cat(workspace)]).json()
    assert run(ratio()) == before
    later = {"prompt": "and?", "conversation_id": first["conversation_id"], "model": "test-model"}
    assert workspace.api().post("/api/chat/price/", later).json()["input_tokens"] < 200, "a model that is shown none"
    upstream.tokenizer = 5
    workspace.leave(100_000)
    refused = ask(workspace, files=[cat(workspace)])
    assert (refused.status_code, upstream.tokenized) == (402, [])


def test_a_later_turn_sends_the_image_again_and_only_to_a_model_that_takes_them(home, upstream):
    first = ask(home, files=[cat(home)]).json()
    named = {"conversation_id": first["conversation_id"]}
    later = held(ask(home, "and then?", **named, stream=True))["reserved"]
    message = {**named, "message_id": first["answer_id"]}
    home.api().post("/api/chat/again/", {**message, "model": "seer"})
    home.api().post("/api/chat/continue/", {**message, "model": "seer"})
    assert len(upstream.calls) == 4
    for call in upstream.calls:
        words, image = call["messages"][0]["content"]
        assert words["text"] == f"{CAT}what is it?"
        assert image_of(image)[0] == "data:image/png;base64"
    assert later > EACH * 1_000
    blind = {**named, "model": "test-model"}
    assert held(ask(home, "and now?", **blind, parent_id=first["answer_id"], stream=True))["reserved"] < later
    told = upstream.calls[-1]["messages"][0]["content"]
    assert told == 'Image "cat.png" is left out here.\n\nwhat is it?'
    refused = home.api().post("/api/chat/again/", {**message, "model": "test-model"})
    assert refused.json()["error"] == "images_not_taken"


def test_an_edited_question_takes_its_image_along_and_each_is_deleted_with_its_turn(home, upstream):
    pk = cat(home)
    first = ask(home, files=[pk]).json()
    edited = ask(home, "two", files=[pk], conversation_id=first["conversation_id"], parent_id=0).json()
    assert image_of(upstream.calls[-1]["messages"][0]["content"][1])[1]
    browser, place = home.client(home.owner), f"/c/{first['conversation_id']}/"
    with home.scope():
        copy = Attachment.objects.get(message_id=edited["question_id"]).pk
    browser.post(f"{place}delete-turn/", {"message_id": first["question_id"]})
    assert browser.get(f"/c/files/{pk}/picture/").status_code == 404
    assert browser.get(f"/c/files/{copy}/picture/").content.startswith(b"\x89PNG")
    browser.post(f"{place}delete/")
    assert browser.get(f"/c/files/{copy}/picture/").status_code == 404


def test_images_of_earlier_messages_take_room_by_the_operator_s_figure_and_no_call_has_too_many_bytes(
    home, upstream, settings
):
    settings.CHAT_HISTORY_TOKENS = 2 * EACH + 200
    with home.scope():
        conversation = home.owner.conversations.create(title="q", model="seer")
        for _ in range(3):
            answer = said(conversation, "look")
            conversation.messages.filter(pk=answer.parent_id).update(files_tokens=40)
            conversation.attachments.create(
                owner=home.owner, message_id=answer.parent_id, name="cat.png", kind="png", bytes=len(PICTURE),
                image=PICTURE, tokens=40,
            )  # fmt: skip
    assert held(ask(home, "and?", conversation_id=conversation.pk, stream=True))["left_out"] == 1, (
        "an answer alone goes along"
    )
    assert json.dumps(upstream.calls[-1]).count("data:image/png") == 2
    room = Room(10_000, image_tokens=EACH, image_bytes=5)

    class Two:
        bytes = 2

    assert fitting(["x"] * 4, room, lambda text: text, images_of=lambda _: [Two]) == 2


def test_the_page_of_an_edited_question_has_its_files_until_they_are_taken_away(home, upstream):
    first = ask(home, files=[cat(home), added(home)]).json()
    browser, place = home.client(home.owner), f"/c/{first['conversation_id']}/"
    with home.scope():
        pks = list(Attachment.objects.filter(message_id=first["question_id"]).values_list("pk", flat=True))
    page = browser.get(place, {"edit": first["question_id"]}).content.decode()
    assert [f'name="files" value="{pk}"' in page for pk in pks] == [True, True]
    assert 'name="files"' not in browser.get(place).content.decode()
    sent = {"conversation_id": first["conversation_id"], "parent_id": 0, "prompt": "two", "files": pks}
    assert f'value="{pks[1]}"' in browser.post("/", {**sent, "max_tokens": "x"}).content.decode(), (
        "a refused one has them"
    )
    assert browser.post(f"/c/files/{pks[1]}/remove/", sent)["Location"] == place
    page = browser.get(place).content.decode()
    assert [f'name="files" value="{pk}"' in page for pk in pks] == [True, False]
    assert browser.post("/", {**sent, "model": "seer", "files": pks[:1]})["Location"] == place
    assert upstream.calls[-1]["messages"][0]["content"][0]["text"] == f"{CAT}two"
    with home.scope():
        assert Attachment.objects.filter(pk__in=pks).count() == 2, "the first version keeps its own"


# --- seen -----------------------------------------------------------------------------------------------------------


def test_a_picture_is_served_so_that_it_is_nothing_but_one_and_asked_for_again_each_time(home):
    pk = cat(home)
    browser = home.client(home.owner)
    answer = browser.get(f"/c/files/{pk}/picture/")
    assert (answer["Content-Type"], answer["X-Content-Type-Options"]) == ("image/png", "nosniff")
    assert answer["Content-Security-Policy"].startswith("default-src 'none'")
    assert "sandbox" in answer["Content-Security-Policy"]
    assert (answer["Cache-Control"], "Cookie" in answer["Vary"]) == ("private, no-cache", True)
    assert Image.open(io.BytesIO(answer.content)).size == (4, 3)
    again = browser.get(f"/c/files/{pk}/picture/", headers={"If-None-Match": answer["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    download = browser.get(f"/c/files/{pk}/")
    assert (download["Content-Type"], download.content) == ("application/octet-stream", answer.content)
    assert browser.get(f"/c/files/{added(home)}/picture/").status_code == 404, "no image"


def test_a_picture_is_for_who_may_read_its_conversation_and_for_nobody_else(home, globex):
    bob = home.member("bob@x.example", "viewer")
    asked = ask(home, files=[cat(home)]).json()
    unsent = cat(home)
    with home.scope():
        pk = Attachment.objects.get(message_id=asked["question_id"]).pk
    place, seen = f"/c/files/{pk}/picture/", f'src="/c/files/{pk}/picture/"'
    owner, other, neighbour = home.client(home.owner), home.client(bob), globex.client(globex.owner)
    assert seen in owner.get(f"/c/{asked['conversation_id']}/").content.decode()
    assert other.get(place).status_code == 404
    with globex.scope():  # the same number is another's there
        Attachment.objects.filter(pk=pk).delete()
    assert neighbour.get(place).status_code == 404
    assert home.client().get(place).status_code in (302, 401, 404)
    owner.post(f"/c/{asked['conversation_id']}/share/")
    page = other.get(f"/shared/{asked['conversation_id']}/").content.decode()
    assert seen in page
    assert 'alt="cat.png"' in page
    assert other.get(place).status_code == 200
    assert other.get(f"/c/files/{unsent}/picture/").status_code == 404
    assert other.get(f"/c/files/{pk}/").status_code == 404, "the words of files stay their owner's"
    owner.post(f"/c/{asked['conversation_id']}/unshare/")
    headers = {"If-None-Match": owner.get(place)["ETag"]}
    assert other.get(place, headers=headers).status_code == 404


def test_an_export_names_the_files(home):
    asked = ask(home, files=[cat(home), added(home, name="a `b`.md")]).json()
    export = f"/c/{asked['conversation_id']}/export/"
    browser = home.client(home.owner)
    assert "- PNG picture: `cat.png`\n- Markdown: `a 'b'.md`" in browser.get(f"{export}?as=md").content.decode()
    first = browser.get(f"{export}?as=json").json()["messages"][0]
    assert first["files"] == [{"name": "cat.png", "kind": "png"}, {"name": "a `b`.md", "kind": "markdown"}]


def test_a_workspace_s_room_counts_the_bytes_of_images(home, monkeypatch):
    cat(home)
    with home.scope():
        words = sum(Attachment.objects.values_list("tokens", flat=True))
    monkeypatch.setattr(attachments, "WORKSPACE_BYTES", words + 1)
    with pytest.raises(Unread, match="room for files is full"):
        cat(home)
