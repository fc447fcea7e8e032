"""A webhook's secrets: shown once, sealed in the table, opened for a delivery alone; and what another key does."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import uuid
from contextlib import contextmanager

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from psycopg.types.json import Jsonb

from billing import keys
from billing.authority.sealing import SealError, seal, unseal
from tests.support.authority import ROOT, AuthorityProbe, AuthorityProcess
from tests.support.databases import drop_database
from tests.support.receiver import OPEN, QUICK, eventually, signature, subscribe
from tests.support.roles import superuser_url

ANOTHER_KEY = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVoxMjM0NTY="
NOWHERE = "https://203.0.113.10/x"


@pytest.fixture
def secret() -> str:
    return f"secret-{uuid.uuid4().hex}"


@pytest.fixture
def token() -> str:
    """What the receiver wants to see in a header of its own."""
    return f"token-{uuid.uuid4().hex}"


def path_of(made, more: str = "") -> str:
    return f"/v1/admin/webhooks/{made['subscription']['subscription_id']}{more}"


def deliveries(probe, made):
    return probe.admin.get(path_of(made, "/deliveries")).json()["deliveries"]


def stored_open(connection, text: str) -> list[str]:
    """The tables of which some row shows it: as it is, or as mere hex or base64 of it."""
    forms = [text, text.encode().hex(), base64.b64encode(text.encode()).decode().rstrip("=")]
    found = []
    for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'authority'").fetchall():
        rows = connection.execute(f"SELECT t::text FROM authority.{name} t").fetchall()  # noqa: S608 - a table of ours
        if any(form in row for (row,) in rows for form in forms):
            found.append(name)
    return sorted(found)


@pytest.mark.usefixtures("loopback_allowed")
def test_neither_secret_nor_header_is_in_a_table_a_log_or_another_answer(
    acme, authority, probe, receiver, secret, token
):
    made = subscribe(probe, acme.tenant_id, receiver.url, signing_secret=secret, headers={"X-Token": token})
    assert (made["signing_secret"], made["subscription"]["headers"]) == (secret, {"X-Token": token})
    hook = path_of(made)
    said = [probe.admin.patch(hook, json={"signing_secret": secret, "headers": {"X-Token": token}}).text]
    said += [probe.admin.patch(hook, json={"signing_secret": secret * 9}).text]
    said += [probe.admin.patch(hook, json={"signing_secret": secret, "headers": {"X-Token": f"{token}\n"}}).text]
    [listed] = probe.admin.get("/v1/admin/webhooks", params={"tenant_id": acme.tenant_id}).json()["subscriptions"]
    assert listed.pop("headers") == {"X-Token": token}  # a list shows them, as in the reference servers
    said += [str(listed)]
    said += [probe.admin.get(hook).text, probe.admin.post(f"{hook}/test").text]
    receiver.statuses = [500]
    probe.fund(acme.tenant_id, "CREDIT", 5)
    assert receiver.wait_for(3)[2][0]["x-token"] == token
    for path in ("events", "audit/logs"):
        said += [probe.admin.get(f"/v1/admin/{path}", params={"tenant_id": acme.tenant_id}).text]
    said += [probe.admin.get(f"{hook}/deliveries").text, authority.output]
    assert not [text for text in said if secret in text or token in text]
    with psycopg.connect(authority.database_url) as connection:
        assert stored_open(connection, receiver.url) == ["audit_entry", "subscription"]  # it does look
        assert stored_open(connection, secret) == stored_open(connection, token) == []


@pytest.mark.usefixtures("loopback_allowed")
def test_a_changed_secret_and_changed_headers_are_used_from_then_on(acme, probe, receiver, secret, token):
    made = subscribe(probe, acme.tenant_id, receiver.url, headers={"X-Old": "1"})
    changed = probe.admin.patch(path_of(made), json={"signing_secret": secret, "headers": {"X-Token": token}})
    assert changed.json()["headers"] == {"X-Token": "********"}
    probe.fund(acme.tenant_id, "CREDIT", 5)
    headers, body = receiver.wait_for(1)[0]
    assert headers["x-cycles-signature"] == signature(secret, body)
    assert (headers["x-token"], headers.get("x-old")) == (token, None)


@pytest.mark.usefixtures("loopback_allowed")
@pytest.mark.parametrize("column", ["sealed_secret", "sealed_headers"])
def test_what_another_key_sealed_fails_its_own_deliveries_until_it_is_given_anew(
    acme, open_account, probe, receiver, settings, sql, secret, token, column
):
    neighbour = open_account("globex")
    mine = subscribe(probe, acme.tenant_id, receiver.url, headers={"X-Token": token})
    theirs = subscribe(probe, neighbour.tenant_id, receiver.url)
    settings.KEY_SEALING_KEY = ANOTHER_KEY
    foreign = seal(secret) if column == "sealed_secret" else Jsonb({"X-Token": seal(token)})
    identity = mine["subscription"]["subscription_id"]
    where = "WHERE subscription_id = %s RETURNING 1"
    sql(f"UPDATE subscription SET {column} = %s {where}", foreign, identity)  # noqa: S608 - a column of ours
    for account in (acme, neighbour):
        probe.fund(account.tenant_id, "CREDIT", 5)
    assert eventually(lambda: deliveries(probe, mine)[0]["status"] == "FAILED")
    failed = deliveries(probe, mine)[0]
    assert (failed["attempts"], failed.get("response_status")) == (1 + QUICK["max_retries"], None)
    assert "KEY_SEALING_KEY" in failed["error_message"]
    assert "signing_secret" in failed["error_message"]
    assert [headers["x-cycles-signature"] for headers, _ in receiver.wait_for(1)] == [
        signature(theirs["signing_secret"], receiver.got[0][1])
    ]
    listed = probe.admin.get("/v1/admin/webhooks", params={"tenant_id": acme.tenant_id}).json()["subscriptions"]
    assert listed[0]["headers"] == {"X-Token": token if column == "sealed_secret" else "********"}
    tried = probe.admin.post(path_of(mine, "/test")).json()
    assert (tried["success"], tried["error_message"]) == (False, failed["error_message"])
    probe.admin.patch(path_of(mine), json={"signing_secret": secret, "headers": {"X-Token": token}})
    assert probe.admin.post(path_of(mine, "/test")).json()["success"] is True
    assert receiver.got[1][0]["x-cycles-signature"] == signature(secret, receiver.got[1][1])


def test_the_app_and_the_authority_cannot_open_each_others_seals(settings):
    assert unseal(seal("a secret")) == "a secret"
    assert seal("a secret") != seal("a secret")
    with pytest.raises(SealError):
        unseal(keys.seal("a secret"))
    with pytest.raises(ImproperlyConfigured):
        keys.unseal(seal("a secret"))


@pytest.fixture
def own_database(database_url):
    """A database that no other authority works on."""
    name = f"sealed_{uuid.uuid4().hex[:8]}"
    base, _, query = database_url.partition("?")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield f"{base.rpartition('/')[0]}/{name}?{query}"
        drop_database(connection, name)


@contextmanager
def running(database_url: str):
    process = AuthorityProcess(database_url, "admin-key-of-this-test")
    process.start()
    probe = AuthorityProbe(process)
    try:
        probe.admin.put("/v1/admin/config/webhook-security", json=OPEN)
        yield probe
    finally:
        probe.close()
        process.stop()


@pytest.mark.slow
def test_a_webhook_is_signed_with_its_secret_after_a_restart(own_database, receiver, secret):
    with running(own_database) as probe:
        probe.create_tenant("acme")
        probe.create_budget("acme", 1_000)
        subscribe(probe, "acme", receiver.url, signing_secret=secret)
    with running(own_database) as probe:
        probe.fund("acme", "CREDIT", 5)
        headers, body = receiver.wait_for(1)[0]
    assert headers["x-cycles-signature"] == signature(secret, body)


def migrate(database_url: str, target: str) -> None:
    environment = {
        **os.environ, "DJANGO_SETTINGS_MODULE": "config.settings_authority", "DATABASE_URL": database_url,
    }  # fmt: skip
    command = [sys.executable, "manage.py", "migrate", "authority", target]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PLAIN = """
INSERT INTO authority.subscription (subscription_id, tenant_id, url, event_types, signing_secret, headers, retry_policy,
    disable_after_failures, consecutive_failures, status)
VALUES (%s, 'acme', %s, '["budget.funded"]', %s, %s, %s, 10, 0, 'ACTIVE')
"""


@pytest.mark.slow
def test_what_was_stored_open_is_sealed_by_the_migration_and_still_signs(own_database, receiver, secret, token):
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA authority")
        migrate(own_database, "0006_leaner")
        connection.execute(PLAIN, ["whsub_1", receiver.url, secret, Jsonb({"X-Token": token}), Jsonb(QUICK)])
        connection.execute(PLAIN, ["whsub_2", NOWHERE, f"{secret}-2", None, Jsonb(QUICK)])
        asked = "SELECT signing_secret, headers FROM authority.subscription ORDER BY id"
        before = connection.execute(asked).fetchall()
        assert stored_open(connection, token) == ["subscription"]
        with running(own_database) as probe:  # migrates, as each start does
            probe.create_tenant("acme")
            probe.create_budget("acme", 1_000)
            probe.fund("acme", "CREDIT", 5)
            headers, body = receiver.wait_for(1)[0]
        assert (headers["x-cycles-signature"], headers["x-token"]) == (signature(secret, body), token)
        assert stored_open(connection, secret) == stored_open(connection, token) == []
        if url := superuser_url(own_database):
            with psycopg.connect(url, autocommit=True) as superuser:
                assert not _left_in_the_file(superuser, secret)
        migrate(own_database, "0006_leaner")
        assert connection.execute(asked).fetchall() == before


def _left_in_the_file(connection, text: str) -> bool:
    """Also where no query looks: in rows that are dead but not gone."""
    connection.execute("CHECKPOINT")
    (stored,) = connection.execute(
        "SELECT pg_read_binary_file(pg_relation_filepath('authority.subscription'))"
    ).fetchone()
    assert b"whsub_1" in stored
    return text.encode() in stored
