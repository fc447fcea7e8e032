"""The embedded authority for tests: started as a process as in production, reached over HTTP alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.ports import free_port
from tests.support.said import said_so_far

ROOT = Path(__file__).resolve().parent.parent.parent
UNIT = "USD_MICROCENTS"
START_SECONDS = 120.0  # of one that never does: a busy machine may take most of a minute
SEALING_KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="  # for who runs without the tests' settings


class AuthorityProcess:
    """`manage.py authority` on free loopback ports, against the given database."""

    def __init__(
        self, database_url: str, admin_key: str, *, state_dir: Path | None = None, gather: bool | None = None
    ) -> None:
        self.gather = gather  # none: as the environment says, so that a whole run can be made either way
        self.database_url = database_url
        self.admin_key = admin_key
        self.state_dir = state_dir
        self.runtime_port, self.admin_port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._log: Any = None
        self._alive = -1  # ends with us, however we end: an authority that was left over kept the next run's database

    @property
    def runtime_url(self) -> str:
        return f"http://127.0.0.1:{self.runtime_port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def output(self) -> str:
        """What the process and its planes said so far."""
        return said_so_far(self._log)

    def start(self) -> None:
        environment = {
            "KEY_SEALING_KEY": SEALING_KEY,
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "config.settings_authority",
            "DATABASE_URL": self.database_url,
            "CYCLES_ADMIN_API_KEY": self.admin_key,
            "DB_POOL_MAX": "2",
        }
        if self.gather is not None:
            environment["AUTHORITY_GATHER"] = "on" if self.gather else "off"
        if self.state_dir is not None:
            environment["STATE_DIR"] = str(self.state_dir)
        command = [sys.executable, "manage.py", "authority"]
        command += ["--runtime-port", str(self.runtime_port), "--admin-port", str(self.admin_port)]
        self.let_go()
        watched, self._alive = os.pipe()
        command += ["--watch", str(watched)]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - read as long as this object lives
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[watched],
        )
        os.close(watched)
        self._wait()

    def stop(self) -> int | None:
        """Ask it to end, as a supervisor does; give its exit code."""
        if self.process is None:
            return None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """End the starter without a chance to clean up. The planes must notice by themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def crash(self) -> None:
        """All of it ends at once, without a chance to clean up."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def let_go(self) -> None:
        """As if this process had ended."""
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def pause(self) -> None:
        """It keeps its connections and answers nothing."""
        self._signal_planes(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_planes(signal.SIGCONT)

    def _signal_planes(self, number: int) -> None:
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children(recursive=True):
            child.send_signal(number)

    def _wait(self) -> None:
        assert self.process is not None
        until = time.monotonic() + START_SECONDS
        for url in (self.runtime_url, self.admin_url):
            while not ready(url):
                if self.process.poll() is not None or time.monotonic() > until:
                    self.process.kill()
                    raise RuntimeError(f"the authority did not start:\n{self.output}")
                time.sleep(0.05)


def authority_variables(authority: Any) -> dict[str, str]:
    """For a process of the app: its authority, whose admin key it has from this process's environment."""
    return {"CYCLES_BASE_URL": authority.runtime_url, "CYCLES_ADMIN_URL": authority.admin_url}


def ready(url: str) -> bool:
    """Whether a plane at this address says that it can work."""
    try:
        return httpx.get(f"{url}/actuator/health/readiness", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


class AuthorityProbe:
    """An operator's hand and a bystander's eye: makes tenants, keys and budgets, and reads ledgers."""

    def __init__(self, process: AuthorityProcess) -> None:
        self.admin = httpx.Client(
            base_url=process.admin_url, headers={"X-Admin-API-Key": process.admin_key}, timeout=20
        )
        self.runtime = httpx.Client(base_url=process.runtime_url, timeout=20)

    def close(self) -> None:
        self.admin.close()
        self.runtime.close()

    def create_tenant(self, tenant_id: str, name: str = "A tenant", **settings: Any) -> dict[str, Any]:
        return self._admin("POST", "/v1/admin/tenants", {"tenant_id": tenant_id, "name": name, **settings})

    def change_tenant(self, tenant_id: str, **changes: Any) -> dict[str, Any]:
        return self._admin("PATCH", f"/v1/admin/tenants/{tenant_id}", changes)

    def create_key(self, tenant_id: str, name: str = "a key", **settings: Any) -> dict[str, Any]:
        """The key as it is answered once: `key_secret` is in no later answer."""
        return self._admin("POST", "/v1/admin/api-keys", {"tenant_id": tenant_id, "name": name, **settings})

    def revoke_key(self, key_id: str) -> dict[str, Any]:
        return self._admin("DELETE", f"/v1/admin/api-keys/{key_id}")

    def create_budget(
        self, tenant_id: str, allocated: int, scope: str | None = None, unit: str = UNIT, **settings: Any
    ) -> dict[str, Any]:
        body = {
            "tenant_id": tenant_id,
            "scope": scope or f"tenant:{tenant_id}",
            "unit": unit,
            "allocated": {"unit": unit, "amount": allocated},
            **settings,
        }
        return self._admin("POST", "/v1/admin/budgets", body)

    def fund(self, tenant_id: str, operation: str, amount: int, *, scope: str | None = None, **more: Any) -> Any:
        query = {"tenant_id": tenant_id, "scope": scope or f"tenant:{tenant_id}", "unit": UNIT}
        body = {"operation": operation, "amount": {"unit": UNIT, "amount": amount}, **more}
        return self._admin("POST", "/v1/admin/budgets/fund", body, params=query)

    def freeze(self, scope: str, unit: str = UNIT, *, frozen: bool = True) -> dict[str, Any]:
        path = f"/v1/admin/budgets/{'freeze' if frozen else 'unfreeze'}"
        return self._admin("POST", path, {}, params={"scope": scope, "unit": unit})

    def set_caps(self, scope: str, caps: dict[str, Any], unit: str = UNIT) -> dict[str, Any]:
        return self._admin("PUT", "/v1/x-embedded/budgets/caps", caps, params={"scope": scope, "unit": unit})

    def lookup(self, scope: str, unit: str = UNIT) -> dict[str, Any]:
        return self._admin("GET", "/v1/admin/budgets/lookup", params={"scope": scope, "unit": unit})

    def figures(self, scope: str, unit: str = UNIT) -> dict[str, int]:
        """A ledger's amounts as plain numbers."""
        ledger = self.lookup(scope, unit)
        return {name: value["amount"] for name, value in ledger.items() if isinstance(value, dict)}

    def balance(self, tenant_id: str, key: str) -> list[dict[str, Any]]:
        """What the tenant itself is shown."""
        answer = self.runtime.get("/v1/balances", params={"tenant": tenant_id}, headers={"X-Cycles-API-Key": key})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["balances"])

    def _admin(self, method: str, path: str, body: Any = None, params: Any = None) -> dict[str, Any]:
        answer = self.admin.request(method, path, json=body, params=params)
        assert answer.status_code in (200, 201), f"{method} {path}: {answer.status_code} {answer.text}"
        return dict(answer.json())


class RuntimeCaller:
    """One tenant's app, calling the runtime plane under its key."""

    def __init__(self, url: str, tenant_id: str, key: str) -> None:
        self.tenant_id = tenant_id
        self.key = key
        self.http = httpx.Client(base_url=url, headers={"X-Cycles-API-Key": key}, timeout=20)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return self.http.post(path, json={"idempotency_key": uuid.uuid4().hex, **body}, headers=headers)

    def request_body(self, amount: int, figure: str = "estimate", **more: Any) -> dict[str, Any]:
        """A request for an amount; levels below the tenant are given as app=…, workspace=…"""
        levels = {k: more.pop(k) for k in ("workspace", "app", "workflow") if k in more}
        return {
            "subject": {"tenant": self.tenant_id, **levels},
            "action": {"kind": "llm.completion", "name": "test-model"},
            figure: {"unit": more.pop("unit", UNIT), "amount": amount},
            **more,
        }

    def reserve(self, amount: int, **more: Any) -> httpx.Response:
        return self.post("/v1/reservations", self.request_body(amount, **more))

    def hold(self, amount: int, **more: Any) -> str:
        """A reservation that must succeed; its id."""
        answer = self.reserve(amount, **more)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["reservation_id"])

    def decide(self, amount: int, **more: Any) -> httpx.Response:
        return self.post("/v1/decide", self.request_body(amount, **more))

    def event(self, amount: int, **more: Any) -> httpx.Response:
        return self.post("/v1/events", self.request_body(amount, "actual", **more))

    def commit(self, reservation: str, amount: int, *, unit: str = UNIT, **more: Any) -> httpx.Response:
        body = {"actual": {"unit": unit, "amount": amount}, **more}
        return self.post(f"/v1/reservations/{reservation}/commit", body)

    def release(self, reservation: str, **more: Any) -> httpx.Response:
        return self.post(f"/v1/reservations/{reservation}/release", more)

    def extend(self, reservation: str, by_ms: int, **more: Any) -> httpx.Response:
        return self.post(f"/v1/reservations/{reservation}/extend", {"extend_by_ms": by_ms, **more})
