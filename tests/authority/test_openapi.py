"""The planes' own documents: complete, valid, and kept. Generated calls find no failure and no answer outside them.

Everything is derived from a fixed seed, so a run is the same each time but for ids.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from random import Random
from typing import Any

import jsonschema_rs
import pytest
import requests
import schemathesis

from billing.authority.openapi.document import ADMIN, RUNTIME
from billing.authority.runtime.app import ROUTES
from tests.support.authority import ROOT
from tests.support.openapi import Contract, calls_of, failures, fetch, loaded
from tests.support.openapi_room import open_room

PLANES = {"runtime": RUNTIME, "admin": ADMIN}
OPERATIONS = [(name, route) for name, plane in PLANES.items() for route in plane.operations]
PROBES = ("/actuator/health/liveness", "/actuator/health/readiness")
# The admin plane's models belong to its own process.
URLS = """
import django, inspect, json
django.setup()
from billing.authority.admin.urls import urlpatterns
print(json.dumps([(str(each.pattern), method) for each in urlpatterns
                  for method in inspect.getclosurevars(each.callback).nonlocals["views"]]))
"""
BROKEN = """
SELECT l.scope, l.unit, l.reserved, l.remaining FROM ledger l
WHERE l.remaining <> l.allocated - l.spent - l.reserved - l.debt
   OR l.reserved <> (SELECT coalesce(sum(r.reserved), 0) FROM reservation r
                     WHERE r.tenant_id = l.tenant_id AND r.unit = l.unit AND r.status = 'ACTIVE'
                       AND l.scope = ANY (r.budgeted))
"""
# Of a ledger whose figures no operator set: all that was spent was committed or booked.
UNBOOKED = """
SELECT l.scope, l.unit, l.spent, l.debt FROM ledger l
WHERE l.scope = %s AND l.spent + l.debt <>
    (SELECT coalesce(sum(r.committed), 0) FROM reservation r WHERE r.unit = l.unit AND l.scope = ANY (r.budgeted))
  + (SELECT coalesce(sum(e.charged), 0) FROM event e WHERE e.unit = l.unit AND l.scope = ANY (e.budgeted))
"""


@pytest.fixture(scope="module")
def room(database_url):
    with open_room(database_url, "openapi") as room:
        yield room


@pytest.fixture(scope="module")
def session():
    with requests.Session() as session:
        yield session


@pytest.fixture(scope="module")
def documents(room):
    return {plane: fetch(room.url(plane), room.process.admin_key) for plane in PLANES}


@pytest.fixture(scope="module")
def schemas(documents):
    return {plane: loaded(document) for plane, document in documents.items()}


@pytest.mark.parametrize("plane", PLANES)
def test_a_document_is_valid_and_each_operation_has_a_name_of_its_own(documents, plane):
    schemathesis.openapi.from_dict(documents[plane]).validate()
    for schema in documents[plane]["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)
    names = [operation["operationId"] for path in documents[plane]["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))


def test_every_path_and_method_of_the_runtime_plane_is_in_its_document_and_nothing_else(documents):
    beside = {("GET", path) for path in ("/actuator/health", *PROBES, "/api-docs")}
    served = {(method, pattern.pattern.replace("([^/]+)", "{}")) for pattern, methods in ROUTES for method in methods}
    assert written(documents["runtime"]) == served | beside


def test_every_path_and_method_of_the_admin_plane_is_in_its_document_and_nothing_else(documents):
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings_authority"}
    table = subprocess.run(
        [sys.executable, "-c", URLS], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    served = {(method, "/" + re.sub(r"<str:\w+>", "{}", path)) for path, method in json.loads(table.stdout)}
    assert written(documents["admin"]) == served


def written(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path))
        for path, operations in document["paths"].items()
        for method in operations
    }


@pytest.mark.parametrize("headers", [{}, {"X-Admin-API-Key": "wrong"}, {"X-Cycles-API-Key": "wrong"}])
def test_a_document_is_for_operators(room, headers):
    for plane in PLANES:
        answer = requests.get(f"{room.url(plane)}/api-docs", headers=headers, timeout=20)
        assert (answer.status_code, answer.json()["error"]) == (401, "UNAUTHORIZED")


def test_a_request_line_that_is_too_long_is_answered_as_documented(room, documents):
    answer = room.probe.admin.get("/v1/admin/tenants", params={"search": "a" * 5_000})
    assert answer.status_code == 414
    assert Contract(documents["admin"]).faults(answer) == []


@pytest.fixture(scope="module")
def statuses(room):
    """How often each operation answered what; and after all calls, that no ledger was harmed."""
    seen: dict[str, Counter[int]] = {}
    before = ledgers(room, room.globex.tenant_id)
    yield seen
    assert ledgers(room, room.globex.tenant_id) == before
    with room.tables() as connection:
        assert connection.execute(BROKEN).fetchall() == []
        assert connection.execute(UNBOOKED, [room.chat]).fetchall() == []


def ledgers(room, tenant_id: str) -> list[Any]:
    with room.tables() as connection:
        rows = connection.execute(
            "SELECT l.* FROM ledger l JOIN tenant t ON t.id = l.tenant_id WHERE t.tenant_id = %s ORDER BY l.id",
            [tenant_id],
        )
        return list(rows.fetchall())


@pytest.mark.parametrize(("plane", "route"), OPERATIONS, ids=lambda value: value)
def test_no_call_finds_a_failure_or_an_answer_outside_the_document(room, schemas, statuses, session, plane, route):
    method, path = route.split(" ")
    rng, opens = Random(f"{plane} {route}"), PLANES[plane].operations[route].opens.value
    faults: dict[str, str] = {}
    at_limits = 30 if path.endswith("/test") else 70  # a test delivery is slow: it asks for the receiver's address
    for case in calls_of(schemas[plane][path][method], rng, at_limits=at_limits, at_random=8):
        credentials = room.dress(case, rng, opens)
        answer = case.call(base_url=room.url(plane), session=session, headers=credentials, timeout=30)
        statuses.setdefault(f"{plane} {route}", Counter())[answer.status_code] += 1
        for failure in failures(case, answer):
            words = f"{failure}\n{case.as_curl_command(credentials)}\n{answer.text[:300]}"
            faults.setdefault(f"{failure.title} {answer.status_code}", words)
    assert not faults, "\n\n".join(list(faults.values())[:4])


def test_the_calls_were_good_enough_to_be_taken(statuses, say):
    """Each operation answered with success more than once: a run of refusals alone would prove little."""
    if set(statuses) != {f"{plane} {route}" for plane, route in OPERATIONS}:
        pytest.skip("only a part of the operations was called")
    say(f"openapi: {sum(counter.total() for counter in statuses.values())} calls, {len(statuses)} operations")
    taken = {name: sum(n for status, n in counter.items() if status < 300) for name, counter in statuses.items()}
    assert not {name: statuses[name] for name, times in taken.items() if times < 3}
