"""A room for generated calls: a tenant with all that can be asked about, spare things to spoil, and the keys.

`dress` puts real ids into a generated call, so that not everything is just unknown. It also keeps calls away from what
they must not spoil: bulk actions mean spare tenants only, closing and revoking is done to spare things, and a webhook's
URL leads to a name that no resolver knows.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from billing.authority.keys import PERMISSIONS
from tests.authority.conftest import Account
from tests.support.authority import UNIT, AuthorityProbe, AuthorityProcess, RuntimeCaller
from tests.support.databases import drop_database

SPARE = "spare-"
HOOK = {"url": "https://hooks.acme.example/in", "event_types": ["budget.funded", "reservation.denied"]}
SECURITY = "/v1/admin/config/webhook-security"
AMOUNTS = ("estimate", "actual", "amount", "allocated", "overdraft_limit", "spent")


@contextmanager
def open_room(database_url: str, name: str) -> Iterator[Room]:
    """An authority of its own with a database of its own: generated calls change settings of the whole server."""
    shared = str(conninfo_to_dict(database_url)["dbname"])
    own = f"{shared}_{name}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        drop_database(connection, own)
        connection.execute(f'CREATE DATABASE "{own}"')
        process = AuthorityProcess(database_url.replace(f"/{shared}?", f"/{own}?"), "admin-key-of-this-room")
        process.start()
        room = Room(process)
        yield room
        room.close()
        process.stop()
        drop_database(connection, own)


class Room:
    """Everything belongs to acme, but for what is spare and what is globex's."""

    def __init__(self, process: AuthorityProcess) -> None:
        self.process = process
        self.probe = AuthorityProbe(process)
        self.acme, self.globex = self._account("acme"), self._account("globex")
        self.globex.app.commit(self.globex.app.hold(100), 100)
        self.globex.app.hold(150, ttl_ms=86_400_000)
        self.chat, self.ops = f"{self.acme.scope}/app:chat", f"{self.acme.scope}/app:ops"
        for scope in (self.chat, self.ops):
            self.probe.create_budget(self.acme.tenant_id, 10**12, scope)
        self.probe.set_caps(self.chat, {"max_tokens": 100, "tool_denylist": ["shell"]})
        self.policy = self._make("/v1/admin/policies", name="p", scope_pattern=f"{self.acme.scope}/*")["policy_id"]
        self.hook = self._hook()
        self.spares = [self._spare()]
        self._numbers = itertools.count()
        self._may_be_restricted = True
        self.acme.app.decide(10**15, app="chat")
        self.acme.app.commit(self.acme.app.hold(5, app="chat", metadata={"a": 1}), 5)
        self.acme.app.release(self.acme.app.hold(5, app="chat"))
        self.acme.app.hold(5, app="chat")
        self.event = self.probe.admin.get("/v1/admin/events").json()["events"][0]["event_id"]

    def url(self, plane: str) -> str:
        return self.process.runtime_url if plane == "runtime" else self.process.admin_url

    def close(self) -> None:
        self.probe.close()
        self.acme.app.http.close()
        self.globex.app.http.close()

    def tables(self) -> psycopg.Connection[Any]:
        """A look past the wire."""
        return psycopg.connect(self.process.database_url, options="-c search_path=authority")

    def _account(self, name: str) -> Account:
        tenant_id = f"{name}-{uuid.uuid4().hex[:10]}"
        self.probe.create_tenant(tenant_id)
        self.probe.create_budget(tenant_id, 10**12 if name == "acme" else 1_000)
        key = self.probe.create_key(tenant_id, permissions=sorted(PERMISSIONS))
        app = RuntimeCaller(self.process.runtime_url, tenant_id, key["key_secret"])
        return Account(tenant_id, key["key_id"], app, self.probe)

    def _spare(self) -> str:
        """A tenant that may be closed, with a budget, a hold, a key and a webhook that end with it."""
        spare = self._account(SPARE.rstrip("-"))
        spare.app.hold(1)
        spare.app.http.close()
        self.probe.admin.post("/v1/admin/webhooks", params={"tenant_id": spare.tenant_id}, json=HOOK)
        return spare.tenant_id

    def _make(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.probe.admin.post(path, json={"tenant_id": self.acme.tenant_id, **body})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def _hook(self) -> str:
        answer = self.probe.admin.post("/v1/admin/webhooks", params={"tenant_id": self.acme.tenant_id}, json=HOOK)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["subscription"]["subscription_id"])

    def _hold(self, amount: int) -> str:
        answer = self.acme.app.reserve(amount, app="chat", overage_policy="ALLOW_IF_AVAILABLE")
        if answer.status_code == 409:  # an earlier call used it up; any funding lifts what stands in the way
            for scope in (self.acme.scope, self.chat):
                self.probe.fund(self.acme.tenant_id, "CREDIT", 10**6, scope=scope)
            answer = self.acme.app.reserve(amount, app="chat", overage_policy="ALLOW_IF_AVAILABLE")
        return str(answer.json()["reservation_id"])

    def spare(self, rng: Random) -> str:
        if rng.random() < 0.1:
            self.spares.append(self._spare())
        return str(rng.choice(self.spares))

    def identity(self, name: str, method: str, path: str, rng: Random) -> str:
        """A real id for this place of a path; a fresh one where the call ends what it names."""
        if name == "tenant_id":
            return self.acme.tenant_id if method == "GET" else self.spare(rng)
        if name == "key_id":
            return str(self._make("/v1/admin/api-keys", name="spare")["key_id"])
        if name == "reservation_id":
            return self._hold(rng.randint(0, 50))
        if name == "subscription_id":
            return self._hook() if method == "DELETE" else self.hook
        return str(self.policy if name == "policy_id" else self.event)

    def word(self, name: str, operation: str, rng: Random) -> Any:
        """A real value for this field of a query or a body, or None where any will do."""
        scope = rng.choice((self.ops, f"{self.acme.scope}/app:new{next(self._numbers)}"))
        if operation == "POST /v1/admin/tenants" and name == "tenant_id":
            return f"{SPARE}{next(self._numbers)}"
        if name == "idempotency_key":
            return uuid.UUID(int=rng.getrandbits(128)).hex
        if name in AMOUNTS:
            return {"unit": UNIT, "amount": rng.randint(0, 50)}
        return {
            "subject": {"tenant": self.acme.tenant_id, "app": "chat"},
            "tenant_id": self.acme.tenant_id,
            "tenant": self.acme.tenant_id,
            "app": "chat",
            "unit": UNIT,
            "scope": scope if operation == "POST /v1/admin/budgets" else self.ops,
            "scope_prefix": self.acme.scope,
            "scope_pattern": f"{self.acme.scope}/*",
            "key_secret": self.acme.app.key,
            "permissions": ["balances:read"],
            **HOOK,
        }.get(name)

    def dress(self, case: Any, rng: Random, opens: tuple[str, ...]) -> dict[str, str]:
        """Put real values in, and give the credentials to send along: those of one of the kinds that open it."""
        operation = case.operation.label
        often = 0.5 if case.meta.generation.mode.is_negative else 0.85
        for name in case.path_parameters or {}:
            if rng.random() < often:
                case.path_parameters[name] = self.identity(name, case.method, case.path, rng)
        for fields in (case.query, case.body):
            for name in fields if isinstance(fields, dict) else ():
                word = self.word(name, operation, rng)
                if word is not None and rng.random() < often:
                    fields[name] = word
        self._restrain(case, rng)
        if case.path.endswith("/webhooks") or "{subscription_id}" in case.path:
            self._let_webhooks_go_anywhere()
        if case.path == SECURITY:
            self._may_be_restricted = True
        if operation.endswith("freeze"):
            self._turn(frozen=operation.endswith("unfreeze"))
        return self._credentials(case, rng, opens)

    def _let_webhooks_go_anywhere(self) -> None:
        """Where an earlier call may have restricted them."""
        if self._may_be_restricted:
            answer = self.probe.admin.put(SECURITY, json={"allowed_url_patterns": []})
            self._may_be_restricted = answer.status_code != 200

    def _turn(self, *, frozen: bool) -> None:
        """Into the state that the call ends; it may be in it already."""
        path = f"/v1/admin/budgets/{'freeze' if frozen else 'unfreeze'}"
        self.probe.admin.post(path, params={"scope": self.ops, "unit": UNIT})

    def _restrain(self, case: Any, rng: Random) -> None:
        body = case.body
        if not isinstance(body, dict):
            return
        if isinstance(body.get("url"), str):
            body["url"] = HOOK["url"]
        if rng.random() < 0.7:  # it goes with one operation of five only, and then in the amount's unit
            body.pop("spent", None)
        if "X-Idempotency-Key" in (case.headers or {}) and rng.random() < 0.9:
            del case.headers["X-Idempotency-Key"]
        if case.path.endswith("/bulk-action") and isinstance(body.get("filter"), dict):
            name = "search" if "/tenants/" in case.path else "tenant_id"
            body["filter"][name] = SPARE if name == "search" else self.spare(rng)
            body.pop("expected_count", None) if rng.random() < 0.8 else None

    def _credentials(self, case: Any, rng: Random, names: tuple[str, ...]) -> dict[str, str]:
        keys = {
            "TenantKey": {"X-Cycles-API-Key": self.acme.app.key},
            "AdminKey": {"X-Admin-API-Key": self.process.admin_key},
        }
        if not names or rng.random() < 0.03:
            return {}
        chosen = rng.choice(names)
        if chosen == "TenantKey" and "AdminKey" in names and isinstance(case.body, dict):
            case.body.pop("tenant_id", None)
        if rng.random() < 0.03:
            return dict.fromkeys(keys[chosen], "cyc_live_nobody")
        return keys[chosen]
