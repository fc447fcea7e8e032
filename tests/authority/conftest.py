"""The cast of the authority's tests: acme acts, globex is the neighbour whose ledger must never move."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import psycopg
import pytest

from tests.support.authority import AuthorityProbe, RuntimeCaller
from tests.support.receiver import OPEN, Receiver

NEIGHBOUR_FIGURES = {
    "allocated": 1_000,
    "remaining": 750,
    "reserved": 150,
    "spent": 100,
    "debt": 0,
    "overdraft_limit": 0,
}


@dataclass
class Account:
    """A tenant with a key and a budget of its own."""

    tenant_id: str
    key_id: str
    app: RuntimeCaller
    probe: AuthorityProbe

    @property
    def scope(self) -> str:
        return f"tenant:{self.tenant_id}"

    def figures(self, scope: str | None = None) -> dict[str, int]:
        return self.probe.figures(scope or self.scope)


@pytest.fixture(scope="session")
def probe(authority):
    probe = AuthorityProbe(authority)
    yield probe
    probe.close()


@pytest.fixture(scope="session")
def open_account(authority, probe):
    """Makes an account of a fresh tenant: ids are never used twice."""

    def make(name: str = "acme", allocated: int = 1_000, **settings) -> Account:
        tenant_id = f"{name}-{uuid.uuid4().hex[:10]}"
        probe.create_tenant(tenant_id, **settings)
        probe.create_budget(tenant_id, allocated)
        key = probe.create_key(tenant_id)
        app = RuntimeCaller(authority.runtime_url, tenant_id, key["key_secret"])
        return Account(tenant_id, key["key_id"], app, probe)

    return make


@pytest.fixture
def acme(open_account):
    return open_account("acme")


@pytest.fixture(scope="session")
def _globex(open_account):
    account = open_account("globex")
    account.app.commit(account.app.hold(100), 100)
    account.app.hold(150, ttl_ms=86_400_000)
    return account


@pytest.fixture(autouse=True)
def globex(_globex):
    """In the room in every test, and untouched when it ends."""
    yield _globex
    assert _globex.figures() == NEIGHBOUR_FIGURES


@pytest.fixture(scope="session")
def sql(authority):
    """A look past the wire, at the authority's own tables."""
    with psycopg.connect(authority.database_url, autocommit=True, options="-c search_path=authority") as connection:
        yield lambda statement, *parameters: connection.execute(statement, parameters).fetchall()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def loopback_allowed(probe):
    """Webhooks may lead to this machine, as long as a test says so."""
    path = "/v1/admin/config/webhook-security"
    before = probe.admin.get(path).json()
    assert probe.admin.put(path, json=OPEN).status_code == 200
    yield
    probe.admin.put(path, json=before)
