"""Every statement of the plain SQL, held to the models: what it names exists, and what must not be null is given."""

import json
import re
import threading

import psycopg
import pytest
from django.apps import apps
from django.db import connection
from django.db.backends.utils import CursorWrapper

from billing.engine import loop, statements
from billing.engine.loop import here
from billing.engine.statements import (
    ANSWERED,
    FINAL,
    GIVEN_BACK,
    HABITS,
    LEARN,
    REGISTER,
    SETTLE,
    TOKENS_CORRECTED,
    dispatch_statement,
    in_schema,
)
from billing.engine.store import Store
from chat import turns
from tests.support.lossy import LossyProxy
from tests.support.money import eventually, on_loop

FILES_SENT = turns.FILES_SENT.replace("SENT", turns.FILE_SENT.replace("#", "0"))
KEEPS = {
    "a question": turns.QUESTION + turns.ANSWER + turns.HEAD_MOVED,
    "a first question": turns.CONVERSATION_ROW + turns.QUESTION + turns.ANSWER,
    "a question with files": turns.QUESTION + turns.ANSWER + FILES_SENT + turns.HEAD_MOVED,
    "an answer again": turns.FURTHER_ANSWER + turns.HEAD_MOVED,
    "a question + ANSWERED": turns.QUESTION + turns.ANSWER + turns.HEAD_MOVED + ANSWERED,
    "ANSWERED": ANSWERED,
    "GIVEN_BACK": GIVEN_BACK,
}


def whole_statements():
    """Each by its name, with its gaps filled as they are when it is run."""
    found = {
        name: text
        for module in (statements, turns)
        for name, text in vars(module).items()
        if name.isupper() and isinstance(text, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", text)
    }
    assert len(found) > 10
    kept = {f"SETTLE with {name}": SETTLE.replace("{keep}", text) for name, text in KEEPS.items()}
    kept["SETTLE with TOKENS_CORRECTED"] = SETTLE.replace("{first}", TOKENS_CORRECTED)
    kept |= {f"FINAL with {name}": FINAL.replace("{keep}", KEEPS[name]) for name in ("ANSWERED", "GIVEN_BACK")}
    numbered = {
        f"DISPATCH of a new conversation, {facts}": dispatch_statement(turns.NEW_ID, turns.NEW_MESSAGES, **facts)
        for facts in ({"is_claimed": claimed, "is_counted": counted} for claimed in (0, 1) for counted in (0, 1))
    }
    return {**found, **kept, **numbered}


@pytest.fixture
def sql(acme):
    """A connection that puts parameters into the text, as EXPLAIN wants them, without a search path to help."""
    wanted = {k: v for k, v in connection.get_connection_params().items() if k not in ("cursor_factory", "pool")}
    with psycopg.connect(**{**wanted, "cursor_factory": psycopg.ClientCursor}, autocommit=True) as own:
        own.execute("SET search_path TO pg_catalog")
        yield own


@pytest.mark.parametrize("name", whole_statements())
def test_a_statement_is_understood_by_the_database_of_the_models(acme, sql, name):
    text = whole_statements()[name]
    for gap in ("{keep}", "{number}", "{first}"):
        text = text.replace(gap, "")
    text = text.replace("{numbers}", "NULL")
    text = in_schema(text, acme.tenant.schema_name)
    named = set(re.findall(r"%\((\w+)\)s", text))
    params = dict.fromkeys(named) if named else [None] * len(re.findall(r"%s", text))
    sql.execute(f"EXPLAIN {text}", params)


def inserts():
    texts = [*whole_statements().values()]
    return {
        match["table"]: {column.strip() for column in match["columns"].split(",")}
        for text in texts
        for match in re.finditer(r"INSERT INTO \S+?\.(?P<table>\w+)(?: AS \w+)? \((?P<columns>[^)]*)\)", text)
    }


def test_every_insert_is_looked_at():
    assert set(inserts()) == {
        "billing_hold",
        "billing_process",
        "billing_habit",
        "billing_houseline",
        "usage_usageline",
        "usage_repeat",
        "chat_conversation",
        "chat_message",
        "chat_attachment",
    }


@pytest.mark.parametrize("table", inserts())
def test_an_insert_names_every_column_that_must_not_be_null(table):
    model = next(model for model in apps.get_models() if model._meta.db_table == table)
    columns = {field.column: field for field in model._meta.concrete_fields}
    assert inserts()[table] <= set(columns)
    must = {name for name, field in columns.items() if not field.null and not field.has_db_default()}
    given_by_the_database = {name for name, field in columns.items() if field.get_internal_type() == "BigAutoField"}
    assert must - given_by_the_database - inserts()[table] == set()


@pytest.mark.parametrize("name", ["a; DROP", "Upper", 'quo"te', "", "a" * 64, "x.y", "1x"])
def test_a_schema_s_name_is_checked_before_it_stands_in_a_statement(name):
    with pytest.raises(ValueError, match="schema"):
        in_schema("SELECT * FROM {schema}.t", name)


# --- how many ---


@pytest.fixture
def counted(app, workspace, authority, settings, monkeypatch):
    """The statements and the requests to either plane of the authority, from here on; the timer's are left out."""
    loop.stop()  # and with it what calls of earlier tests have left to do
    ran, of_the_timer, the_test = [], {REGISTER, HABITS, LEARN}, threading.get_ident()
    fetch, execute = Store.fetch, CursorWrapper.execute

    async def counting(self, query, params=None):
        if query not in of_the_timer:
            ran.append(" ".join(query.split())[:70])
        return await fetch(self, query, params)

    def counting_those_of_threads(self, sql, params=None):
        if threading.get_ident() != the_test:
            ran.append(f"by Django: {sql}"[:70])
        return execute(self, sql, params)

    monkeypatch.setattr(Store, "fetch", counting)
    monkeypatch.setattr(CursorWrapper, "execute", counting_those_of_threads)
    before = settings.CYCLES_BASE_URL, settings.CYCLES_ADMIN_URL
    of_ours = {"only": [workspace]}
    with LossyProxy(authority.runtime_url, **of_ours) as runtime, LossyProxy(authority.admin_url, **of_ours) as admin:
        settings.CYCLES_BASE_URL, settings.CYCLES_ADMIN_URL = runtime.url, admin.url
        yield ran, runtime.seen, admin.seen
        settings.CYCLES_BASE_URL, settings.CYCLES_ADMIN_URL = before


def is_quiet(workspace):
    """Its calls are booked, and the engine does nothing more for them."""
    return workspace.holds() == 0 and on_loop(lambda: not here()._tasks)


@pytest.mark.parametrize(
    ("asks", "stream", "again"),
    [
        *(("a key", stream, again) for stream in (False, True) for again in (False, True)),
        ("a limited key", True, True),
        ("a key with rates", True, True),
        ("a browser", True, False),
    ],
)
def test_a_call_makes_few_statements_and_two_requests(workspace, upstream, model, counted, stream, again, asks):
    """Workspace, key with its member and account, hold, line; a browser's session is one more than a key, and so is a
    conversation that goes on.
    """
    ran, runtime, admin = counted
    browser, secret = workspace.client(workspace.owner), workspace.key()
    plane, headers = workspace.api(secret).plane, {}
    if asks == "a browser":
        browser.get("/")
        plane, headers = workspace.plane(browser), {"x-csrftoken": browser.cookies["csrftoken"].value}
    if asks == "a limited key":
        with workspace.scope():
            pk = workspace.owner.api_keys.latest("pk").pk
        for address in (f"keys/{pk}", f"members/{workspace.owner.pk}"):
            assert browser.post(f"/settings/{address}/limit/", {"amount": "0.50"}).status_code == 302

    if asks == "a key with rates":
        with workspace.scope():
            workspace.owner.api_keys.update(rates={"requests": 100, "tokens": 100_000, "concurrent": 10})

    def chat(**fields):
        return plane.post("/api/chat/", json.dumps({"prompt": "hello", **fields}), headers=headers)

    conversation = chat().json()["conversation_id"]
    assert eventually(lambda: is_quiet(workspace))
    for seen in counted:
        seen.clear()
    response = chat(stream=stream, **({"conversation_id": conversation} if again else {}))
    assert response.status_code == 200
    assert response.content
    assert eventually(lambda: is_quiet(workspace))
    assert len(ran) == 4 + again + (asks == "a browser"), ran
    assert len(upstream.calls) == 2, "one for each question"
    asked = [(method, re.sub(r"[0-9a-f-]{36}", "…", path)) for method, path in runtime]
    assert asked == [("POST", "/v1/reservations"), ("POST", "/v1/reservations/…/commit")]
    assert admin == []


def test_a_key_costs_a_call_one_statement_and_its_repeat_asks_the_authority_nothing(workspace, upstream, counted):
    ran, runtime, admin = counted
    api = workspace.api()

    def asked(**headers):
        assert eventually(lambda: is_quiet(workspace))
        for seen in counted:
            seen.clear()
        assert api.post("/api/chat/", {"prompt": "hello"}, headers=headers).status_code == 200
        assert eventually(lambda: is_quiet(workspace))
        return len(ran), len(runtime) + len(admin)

    asked()
    statements, requests = asked()
    assert asked(**{"idempotency-key": "k-1"}) == (statements + 1, requests)
    again, none = asked(**{"idempotency-key": "k-1"})
    assert (again <= statements, none) == (True, 0)
    assert len(upstream.calls) == 3
