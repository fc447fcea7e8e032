"""The same person, key or question however it is typed, at every door; and nothing that nobody can see."""

import json
import unicodedata
import uuid

import pytest
from django.contrib.auth.hashers import MD5PasswordHasher, make_password
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.test import Client

from tenants.users.models import ApiKey, User
from tests.support.factories import WorkspaceFactory

COMPOSED = "Café déjà\u00a0vu, naïve"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED).replace("\u00a0", " ")
UNSEEN = ["\u200b", "\u200b\u2060 \ufeff", "\u3164", "\u00ad\u200d", " \u2800\n"]

pytestmark = pytest.mark.usefixtures("app", "upstream", "sign_ups")


@pytest.fixture(scope="module")
def room(app):
    return WorkspaceFactory()


def sign_up(**changes):
    slug = f"sp-{uuid.uuid4().hex[:10]}"
    fields = {"name": "Sp", "slug": slug, "email": f"a@{slug}.example", "password": "long enough words", **changes}
    return slug, fields


def by_api(fields):
    body = json.dumps(fields)
    return Client(headers={"host": "localhost"}).post("/api/signup/", body, content_type="application/json")


def by_page(fields):
    return Client(headers={"host": "localhost"}).post("/signup/", fields, follow=True)


def logs_in(slug, email, password):
    client = Client(headers={"host": f"{slug}.localhost"})
    return client.post("/login/", {"email": email, "password": password}).status_code == 302


@pytest.mark.parametrize("door", [by_api, by_page])
def test_who_signed_up_logs_in_in_every_spelling(door):
    domain = f"{uuid.uuid4().hex[:8]}-müller.example"
    slug, fields = sign_up(email=f"Zoe@{domain}", password=DECOMPOSED)
    assert door(fields).status_code in (200, 201)
    punycode = domain.encode("idna").decode()
    for email in (f"zoe@{domain}", f"ZOE@{punycode}", f"zo\u200be@{unicodedata.normalize('NFD', domain)}"):
        for password in (COMPOSED, DECOMPOSED):
            assert logs_in(slug, email, password), (email, password)
    assert not logs_in(slug, f"zoe@{domain}", COMPOSED.upper())


@pytest.mark.parametrize("door", [by_api, by_page])
@pytest.mark.parametrize("field", ["name", "email", "password"])
def test_nothing_to_see_is_nothing_written(door, field):
    for text in (*UNSEEN, "\u200b" * 12, " " * 12):
        _, fields = sign_up(**{field: text})
        assert door(fields).status_code == 400, (field, text)


def test_a_workspaces_name_is_one_line_without_clutter():
    slug, fields = sign_up(name=" \u202eGlobe\u200bx \n  Cafe\u0301 ")
    assert by_api(fields).status_code == 201
    page = Client(headers={"host": f"{slug}.localhost"}).get("/login/").content.decode()
    assert "Log in to Globex Café<" in page


@pytest.mark.parametrize(
    ("stored", "typed"),
    [
        (DECOMPOSED, [DECOMPOSED, unicodedata.normalize("NFC", DECOMPOSED)]),
        (COMPOSED, [COMPOSED]),
        (unicodedata.normalize("NFC", DECOMPOSED), [COMPOSED, DECOMPOSED]),
        ("   \u200b      ", ["   \u200b      "]),
    ],
)
def test_a_password_that_was_hashed_in_another_form_still_opens(room, stored, typed):
    with room.scope():
        email = f"{uuid.uuid4().hex[:8]}@old.example"
        User.objects.create(email=email, password=make_password(stored))
    for password in typed:
        assert logs_in(room.slug, email, password), password
    assert not logs_in(room.slug, email, "another password")


def test_an_address_that_was_stored_in_another_form_still_opens(room):
    domain = f"{uuid.uuid4().hex[:8]}-müller.example"
    with room.scope():
        for name, stored in (("nfc", domain), ("nfd", unicodedata.normalize("NFD", domain))):
            User.objects.create(email=f"{name}@{stored}", password=make_password("a fine password"))
    for name in ("nfc", "nfd"):
        for typed in (domain, unicodedata.normalize("NFD", domain), domain.upper()):
            assert logs_in(room.slug, f"{name}@{typed}", "a fine password"), (name, typed)


def test_nobodys_address_takes_as_many_hashes_as_a_members(room, monkeypatch):
    """The time would tell a stranger who is a member: a password in several forms is compared several times."""
    hashed = []
    encode = MD5PasswordHasher.encode
    monkeypatch.setattr(MD5PasswordHasher, "encode", lambda *args: hashed.append(args) or encode(*args))
    email = room.owner.email
    for password, count in (("wrong but plain", 1), ("wrong and naïve", 2), ("wrong, nai\u0308ve\u00a0too", 2)):
        for address in (email, "nobody@nowhere.example"):
            hashed.clear()
            assert not logs_in(room.slug, address, password)
            assert len(hashed) == count, (address, password)


def test_a_members_new_password_is_hashed_in_its_normal_form(room):
    """As the admin, `changepassword` and `createsuperuser` do."""
    with room.scope():
        user = User.objects.create_user(f"{uuid.uuid4().hex[:8]}@new.example", DECOMPOSED)
        user.set_password(COMPOSED)
        assert user.check_password(DECOMPOSED)
        user.set_password(None)
        assert not user.has_usable_password()
        assert not user.check_password(None)
    for text in (" " * 12, "\u200b" * 12):
        with pytest.raises(ValidationError, match="can be seen"):
            validate_password(text)


def test_a_keys_name_can_be_seen(room, capsys):
    client, wanted = room.client(room.owner), {"scopes": ["chat"], "life": "never"}
    for text in UNSEEN:
        assert client.post("/settings/keys/", {**wanted, "name": text}).status_code == 400
        with pytest.raises(CommandError, match="can be seen"):
            call_command("api_key", room.slug, name=text)
    assert client.post("/settings/keys/", {**wanted, "name": "\u200bSer\u00adver  Cafe\u0301"}).status_code == 302
    with room.scope():
        assert ApiKey.objects.latest("pk").name == "Server Café"
    call_command("api_key", room.slug, email=room.owner.email.upper() + "\u200b")
    assert capsys.readouterr().out.startswith("tk_")


def test_a_prompt_that_nobody_can_see_is_refused_and_costs_nothing(room, upstream):
    client, api = room.client(room.owner), room.api()
    spent = room.ledger()["spent"]
    for text in UNSEEN:
        for answer in (api.chat(text), api.summarize(text)):
            assert (answer.status_code, answer.json()["error"]) == (400, "invalid")
        assert client.post("/", {"prompt": text}).status_code == 400
    assert room.ledger()["spent"] == spent
    assert upstream.calls == []


def test_a_prompt_is_sent_as_it_was_written(room, upstream):
    text = "Cafe\u0301 \u200b👩\u200d💻\u202e"
    assert room.api().chat(text).status_code == 200
    assert upstream.calls[-1]["messages"][-1]["content"] == text
