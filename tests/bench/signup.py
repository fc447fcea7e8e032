"""`make bench-signup`: from a sign-up to the first answer of a model, beside the same with migrations run for each.

Starts a made-up model and this checkout's product by its own supervisor, twice, each with a database and an authority
of its own: as it is, and with SCHEMA_TEMPLATE=off. Each is grown to as many workspaces as asked for by provisioning,
and then signs up strangers one after another. It removes what it has written.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from tests.bench.authority import own_database
from tests.bench.cells import ROOT, Model
from tests.bench.room import room
from tests.bench.stacks import PASSWORD, Stack

AIM = 0.3  # seconds from the form to the first answer, p50
WARM_UP = 3
KINDS: dict[str, Any] = {"template": {}, "migrations": {"SCHEMA_TEMPLATE": "off"}}
# Without a password, for its hash takes longer than all the rest.
GROW = """
import sys
import django; django.setup()
from billing import provisioning
for number in range(int(sys.argv[1])):
    account = provisioning.register(
        name=f"Grown {number}", slug=f"grown-{number}", email="o@grown.example", plan="trial", owner_password="!"
    )
    assert provisioning.provision(account)
"""


def main() -> None:
    options = parse_arguments()
    with room() as (folder, server):
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; {options.times} sign-ups each; seconds")
        print(HEAD, flush=True)
        for kind in options.kinds:
            run(kind, options, folder, server)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Sign-up to the first answer.")
    parser.add_argument("--tenants", type=int, default=500, help="that are there already (500)")
    parser.add_argument("--times", type=int, default=40, help="sign-ups that are measured (40)")
    parser.add_argument("--only", choices=list(KINDS), help="one of the two")
    parser.add_argument("--quick", action="store_true", help="20 tenants, 10 sign-ups")
    options = parser.parse_args()
    if options.quick:
        options.tenants, options.times = 20, 10
    options.kinds = [options.only] if options.only else list(KINDS)
    return options


def run(kind: str, options: argparse.Namespace, folder: Path, server: Model) -> None:
    with own_database() as url, Stack(kind, ROOT, url, folder, server.port, **KINDS[kind]) as stack:
        print(f"{kind}: making {options.tenants} workspaces …", file=sys.stderr, flush=True)
        # By the template in either case: what is measured is one more.
        env = stack.environment() | {"DJANGO_SETTINGS_MODULE": "config.settings", "SCHEMA_TEMPLATE": "on"}
        command = [sys.executable, "-c", GROW, str(options.tenants)]
        subprocess.run(command, cwd=ROOT, env=env, check=True)
        address = f"http://127.0.0.1:{stack.port}"
        with httpx.Client(base_url=address, headers={"Host": f"localhost:{stack.port}"}, trust_env=False) as client:
            for _ in range(WARM_UP):
                sign_up_and_ask(client)
            report(kind, [sign_up_and_ask(client) for _ in range(options.times)])


def sign_up_and_ask(client: httpx.Client) -> tuple[float, float]:
    """Seconds until the workspace was there, and until its first answer."""
    slug = f"bench-{secrets.token_hex(5)}"
    form = {"name": slug, "slug": slug, "email": f"o@{slug}.example", "password": PASSWORD}
    began = time.perf_counter()
    made = client.post("/api/signup/", json=form, timeout=60)
    made.raise_for_status()
    while made.json()["status"] == "pending":
        time.sleep(0.02)
        made = client.get(httpx.URL(made.json().get("status_url", str(made.url))).path)
    there = time.perf_counter()
    program = {"X-Tenant-ID": slug, "Authorization": f"Bearer {made.json()['api_key']}"}
    answer = client.post("/api/chat/", json={"prompt": "Hello", "max_tokens": 20}, headers=program, timeout=60)
    answer.raise_for_status()
    return there - began, time.perf_counter() - began


HEAD = f"{'schema by':12}{'there p50':>11}{'p95':>8}{'first answer p50':>18}{'p95':>8}"


def report(kind: str, found: list[tuple[float, float]]) -> None:
    there, answered = zip(*found, strict=True)
    (p50_there, p95_there), (p50, p95) = _middle(there), _middle(answered)
    aim = "" if kind != "template" else f"  aim p50 ≤ {AIM:g}: {'met' if p50 <= AIM else 'NOT met'}"
    print(f"{kind:12}{p50_there:11.3f}{p95_there:8.3f}{p50:18.3f}{p95:8.3f}{aim}", flush=True)


def _middle(seconds: tuple[float, ...]) -> tuple[float, float]:
    ordered = sorted(seconds)
    return statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))]


if __name__ == "__main__":
    main()
