"""The cast: acme, globex the neighbour who must never be seen, Alice of acme, Bob of globex."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

import pyotp
from django.test import Client
from django.utils import timezone

from billing.ledgers import ledgers_of
from billing.models import Account, Hold
from billing.money import UNIT
from billing.topups import top_up
from billing.usage.models import UsageLine
from tenants.context import tenant_scope
from tenants.hosts import host_for
from tenants.sealing import seal, unseal
from tenants.users.keys import create_key, digest
from tenants.users.models import Totp, User
from tests.support.plane import PlaneClient

PASSWORD = "correct horse battery staple"


class Workspace:
    """A tenant with its account, and short ways to act as its people and programs."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.tenant = account.tenant
        self.slug: str = account.tenant.slug
        self.host = host_for(self.slug)

    def scope(self):
        return tenant_scope(self.tenant)

    @property
    def owner(self) -> User:
        with self.scope():
            return User.objects.get(email=self.account.owner_email)

    def member(self, email: str, role: str = "member") -> User:
        with self.scope():
            return User.objects.get_or_create(email=email, defaults={"role": role})[0]

    def with_second_step(self, user: User) -> User:
        """Who is asked for a code after the password from now on; `client` answers it."""
        now = timezone.now()
        with self.scope():
            Totp.objects.create(user=user, sealed_secret=seal(pyotp.random_base32()), confirmed_at=now)
            User.objects.filter(pk=user.pk).update(second_step_at=now)
        user.second_step_at = now
        return user

    def key(self, user: User | None = None, **facts: Any) -> str:
        with self.scope():
            return create_key(user or self.owner, **{"name": "test", **facts})[1]

    def old_key(self, user: User | None = None) -> str:
        """A key as they were before they named their tenant."""
        secret = f"tk_{secrets.token_urlsafe(32)}"
        with self.scope():
            (user or self.owner).api_keys.create(name="old", prefix=secret[:11], digest=digest(secret))
        return secret

    def client(self, user: User | None = None, *, csrf: bool = False) -> Client:
        """A browser on the workspace's host, signed in as `user` if one is given."""
        client = Client(headers={"host": self.host}, enforce_csrf_checks=csrf)
        if user is not None:
            user.set_password(PASSWORD)
            with self.scope():
                user.save(update_fields=["password"])
            answer = client.post("/login/", {"email": user.email, "password": PASSWORD})
            assert answer.status_code == 302 or csrf, answer.content
            if answer.headers.get("Location", "").startswith("/login/code/"):
                self._take_second_step(client, user)
        return client

    def _take_second_step(self, client: Client, user: User) -> None:
        with self.scope():
            totp = Totp.objects.get(user=user)
            Totp.objects.filter(pk=totp.pk).update(last_interval=0)  # of this half minute, one may have been used
        answer = client.post("/login/code/", {"code": pyotp.TOTP(unseal(totp.sealed_secret)).now()})
        assert answer.status_code == 302, answer.content

    def plane(self, browser: Client) -> PlaneClient:
        """The same browser at the plane: its cookies, and not the header that CSRF asks for."""
        plane = PlaneClient(headers={"host": self.host})
        plane.cookies = browser.cookies
        return plane

    def api(self, key: str | None = None, *, bare: bool = False, alone: bool = False) -> Api:
        """A program with a key: on the workspace's host, on the bare one with X-Tenant-ID, or there by it alone."""
        headers = {"host": "localhost"} if bare or alone else {"host": self.host}
        if bare:
            headers["x-tenant-id"] = self.slug
        return Api({**headers, "authorization": f"Bearer {key or self.key()}"})

    # --- what the ledger and the schema say ---

    def ledger(self) -> dict[str, Any]:
        """{scope, allocated, spent, reserved, remaining, unit} of the tenant's own."""
        (ledger,) = ledgers_of([self.account.scope])
        return ledger.as_budget()

    def lines(self) -> list[UsageLine]:
        with self.scope():
            return list(UsageLine.objects.order_by("pk"))

    def holds(self) -> int:
        return Hold.objects.filter(account=self.account).count()

    def settled(self, *, lines: int | None = None, seconds: float = 30.0) -> list[UsageLine]:
        """The lines, once no call of the workspace is held or under way. Settling belongs to no request, so that a
        reader who left must wait for it; with `lines`, for so many of them too.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            is_over = not self.holds() and not self.ledger()["reserved"]
            found = self.lines()  # after it: a call may end between the two
            if is_over and (lines is None or len(found) >= lines):
                return found
            time.sleep(0.02)
        raise AssertionError(f"not settled in {seconds} s: {self.holds()} holds, {self.ledger()}, {self.lines()}")

    def leave(self, microcents: int) -> None:
        """Bring what remains to exactly `microcents`, by a real top-up or a real event."""
        from billing.client import default_client

        ledger = self.ledger()
        missing = microcents - ledger["remaining"]
        if missing > 0:
            top_up(self.account, amount=missing, key=f"leave-{ledger['allocated']}-{ledger['spent']}")
        elif missing < 0:
            answer = default_client().create_event(
                {
                    "idempotency_key": f"leave-{ledger['allocated']}-{ledger['spent']}",
                    "subject": {"tenant": self.account.subject_tenant},
                    "action": {"kind": "test", "name": "spend"},
                    "actual": {"unit": UNIT, "amount": -missing},
                }
            )
            assert answer.status == 201, answer
        assert self.ledger()["remaining"] == microcents


class Api:
    """JSON in, JSON out: from the plane what it serves, all else from web, as the front sends it."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.client = Client(headers=headers)
        self.plane = PlaneClient(headers=headers)

    def get(self, path: str, **extra: Any) -> Any:
        return (self.plane if path.startswith("/v1/") else self.client).get(path, **extra)

    def post(self, path: str, body: Any, **extra: Any) -> Any:
        content = body if isinstance(body, str | bytes) else json.dumps(body)
        if path.startswith(("/api/chat/", "/v1/")):
            return self.plane.post(path, content, **extra)
        return self.client.post(path, content, content_type="application/json", **extra)

    def chat(self, prompt: str = "hello", **fields: Any) -> Any:
        return self.post("/api/chat/", {"prompt": prompt, **fields})

    def summarize(self, text: str = "a long text", **fields: Any) -> Any:
        return self.post("/api/summarize/", {"text": text, **fields})


def events_of(response: Any) -> list[tuple[str, Any]]:
    """The server-sent events of a streamed answer, comments left out."""
    found = []
    for block in b"".join(response.streaming_content).decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "data" in lines:
            found.append((lines.get("event", "message"), json.loads(lines["data"])))
    return found
