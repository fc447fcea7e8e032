"""The published specifications, where they lie beside the project: what differs from them is listed, with its reason.

They are not part of the project. Where the reference servers answer otherwise than published, the recordings count.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from random import Random
from typing import Any

import pytest
import requests
import yaml
from schemathesis.openapi.checks import JsonSchemaError, UndefinedStatusCode

from billing.authority.openapi.document import ADMIN, RUNTIME
from tests.support.authority import ROOT
from tests.support.openapi import calls_of, failures, loaded
from tests.support.openapi_room import open_room

FOLDER = ROOT.parent / "shared" / "cycles" / "openapi"
PUBLISHED = {"runtime": ("cycles-protocol-v*.yaml", RUNTIME), "admin": ("cycles-governance-admin-v*.yaml", ADMIN)}
ANY = "*"
_NULLS = "a level that is not set is null, as recorded"
_LAST = "on the last page it is null, as recorded"
_MEDIA = "another content type is 415; the reference servers fail with 500 there, as recorded"
_LINE = "a request line that is too long is refused by the listener, before any operation"
# Operation, what is seen, why. Seen is a status that was not published, or a status, a place and what it breaks there.
DIFFERENCES = {
    "runtime": [
        ("GET /v1/evidence/{evidence_id}", "401", "signed evidence is no part of this authority; no key, no word"),
        ("GET /v1/.well-known/cycles-jwks.json", "401", "nor are its keys"),
        ("GET /v1/reservations", "200 reservations.N.subject.* type", _NULLS),
        ("GET /v1/reservations", "200 reservations.N.action.tags type", _NULLS),
        ("GET /v1/reservations", "200 next_cursor type", _LAST),
        ("GET /v1/reservations/{reservation_id}", "200 subject.* type", _NULLS),
        ("GET /v1/reservations/{reservation_id}", "200 action.tags type", _NULLS),
        ("GET /v1/balances", "200 next_cursor type", _LAST),
        (ANY, "415", _MEDIA),
    ],
    "admin": [
        ("GET /v1/balances", "200 next_cursor type", _LAST),
        ("POST /v1/admin/api-keys", "404", "an unknown tenant is TENANT_NOT_FOUND, as recorded"),
        ("DELETE /v1/admin/api-keys/{key_id}", "200 revoked_reason maxLength", "the reason is kept as it was given"),
        (ANY, "414", _LINE),
    ],
}

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the published specifications are not beside the project, in ../shared/cycles/openapi"
)


@pytest.fixture(scope="module")
def room(database_url):
    with open_room(database_url, "published") as room:
        yield room


@pytest.mark.parametrize("plane", PUBLISHED)
def test_nothing_differs_from_the_published_specification_but_what_is_listed(room, plane):
    seen = differences(room, plane)
    listed = DIFFERENCES[plane]
    unlisted = {
        f"{route}: {what}": example
        for (route, what), example in seen.items()
        if not any(fits(route, what, each) for each in listed)
    }
    assert not unlisted, "\n".join(f"{what}: {example}" for what, example in unlisted.items())
    # What is so for any operation is up to the few calls that happen to ask for it.
    named = [each for each in listed if each[0] != ANY]
    in_vain = [each for each in named if not any(fits(route, what, each) for route, what in seen)]
    assert not in_vain, "listed, but no longer so"


def fits(route: str, what: str, difference: tuple[str, str, str]) -> bool:
    return difference[0] in (route, ANY) and fnmatchcase(what, difference[1])


def differences(room: Any, plane: str) -> dict[tuple[str, str], str]:
    """Each kind of difference, with one answer that shows it."""
    pattern, ours = PUBLISHED[plane]
    (file,) = FOLDER.glob(pattern)
    schema = loaded(yaml.safe_load(file.read_text(encoding="utf-8")))
    found: dict[tuple[str, str], str] = {}
    with requests.Session() as session:
        for each in schema.get_all_operations():
            operation = each.ok()
            known = ours.operations.get(operation.label)
            rng, opens = Random(operation.label), known.opens.value if known else ()
            for case in calls_of(operation, rng, at_limits=60, at_random=5):
                credentials = room.dress(case, rng, opens)
                answer = case.call(base_url=room.url(plane), session=session, headers=credentials, timeout=30)
                for failure in failures(case, answer):
                    found.setdefault((operation.label, what_of(failure, answer.status_code)), answer.text[:300])
    return found


def what_of(failure: Any, status: int) -> str:
    if isinstance(failure, JsonSchemaError):
        place = ".".join("N" if isinstance(part, int) else part for part in failure.instance_path)
        return f"{status} {place} {failure.schema_path[-1]}"
    return str(status) if isinstance(failure, UndefinedStatusCode) else f"{status} {failure.title}"
