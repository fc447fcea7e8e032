"""The planes' own documents: complete, valid, and kept. Generated calls find no failure and no answer outside them.

The authority is one of this module's own, with a database of its own: generated calls change settings of the whole
server. Everything is derived from a fixed seed, so a run is the same each time but for ids.
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
import psycopg
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from psycopg.conninfo import conninfo_to_dict
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup

from billing.authority.openapi.document import ADMIN, RUNTIME
from billing.authority.runtime.app import ROUTES
from tests.support.authority import ROOT, AuthorityProcess
from tests.support.openapi import CONFORMANCE, fetch
from tests.support.openapi_room import Room

PLANES = {"runtime": RUNTIME, "admin": ADMIN}
OPERATIONS = [(name, route) for name, plane in PLANES.items() for route in plane.operations]
AT_LIMITS, AT_RANDOM = 70, 8  # calls of each operation; at random, of each mode
SEED = 1
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
    given_to = conninfo_to_dict(database_url)
    name = f"{given_to['dbname']}_openapi"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        connection.execute(f'CREATE DATABASE "{name}"')
    process = AuthorityProcess(database_url.replace(f"/{given_to['dbname']}?", f"/{name}?"), "admin-key-of-this-room")
    process.start()
    room = Room(process)
    yield room
    room.close()
    process.stop()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="module")
def session():
    with requests.Session() as session:
        yield session


@pytest.fixture(scope="module")
def documents(room):
    urls = {"runtime": room.process.runtime_url, "admin": room.process.admin_url}
    return {plane: fetch(url, room.process.admin_key) for plane, url in urls.items()}


@pytest.fixture(scope="module")
def schemas(documents):
    return {plane: loaded(document) for plane, document in documents.items()}


def loaded(document: dict[str, Any]) -> Any:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.seed = SEED
    schema.config.generation.with_security_parameters = False  # the room has the keys
    return schema


def calls_of(operation: Any, rng: Random) -> list[Any]:
    """Values at the limits of each field and past them, and some more at random."""
    modes, config = list(GenerationMode), operation.schema.config.generation
    cases = list(operation.schema.iter_coverage_cases(operation, generation_modes=modes, generation_config=config))
    cases = [case for case in cases if case.method == operation.method.upper()]
    cases = rng.sample(cases, min(AT_LIMITS, len(cases)))
    for mode in modes:

        @settings(
            max_examples=AT_RANDOM,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def collect(case: Any) -> None:
            cases.append(case)

        collect()
    return cases


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
    for url in (room.process.runtime_url, room.process.admin_url):
        answer = requests.get(f"{url}/api-docs", headers=headers, timeout=20)
        assert (answer.status_code, answer.json()["error"]) == (401, "UNAUTHORIZED")


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
    rng = Random(f"{SEED} {plane} {route}")
    url = room.process.runtime_url if plane == "runtime" else room.process.admin_url
    faults: dict[str, str] = {}
    for case in calls_of(schemas[plane][path][method], rng):
        credentials = room.dress(case, rng)
        answer = case.call(base_url=url, session=session, headers=credentials, timeout=30)
        statuses.setdefault(f"{plane} {route}", Counter())[answer.status_code] += 1
        try:
            case.validate_response(answer, checks=[not_a_server_error, *CONFORMANCE])
        except FailureGroup as group:
            for failure in group.exceptions:
                curl = case.as_curl_command(credentials)
                faults.setdefault(f"{failure.title} {answer.status_code}", f"{failure}\n{curl}\n{answer.text[:300]}")
    assert not faults, "\n\n".join(list(faults.values())[:4])


def test_the_calls_were_good_enough_to_be_taken(statuses, capsys):
    """Each operation answered with success more than once: a run of refusals alone would prove little."""
    if set(statuses) != {f"{plane} {route}" for plane, route in OPERATIONS}:
        pytest.skip("only a part of the operations was called")
    with capsys.disabled():
        print(f"\nopenapi: {sum(counter.total() for counter in statuses.values())} calls, {len(statuses)} operations")
    taken = {name: sum(n for status, n in counter.items() if status < 300) for name, counter in statuses.items()}
    assert not {name: statuses[name] for name, times in taken.items() if times < 3}
