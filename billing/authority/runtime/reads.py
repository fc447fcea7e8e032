"""What the runtime plane shows: balances, one reservation, pages of reservations. Reads only."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from billing.asking import Row
from billing.authority.errors import Refusal, invalid
from billing.authority.runtime.http import Answer, Call
from billing.authority.runtime.operations import known_id
from billing.authority.runtime.pool import Pool
from billing.authority.scopes import LEVELS
from billing.authority.wire import parse_instant, parse_limit

STATUSES = ("ACTIVE", "COMMITTED", "RELEASED", "EXPIRED")
SORTS = {
    "reservation_id": 'r.id::text COLLATE "C"',
    "tenant": "t.tenant_id",
    "scope_path": 'r.scopes[cardinality(r.scopes)] COLLATE "C"',
    "status": 'r.status COLLATE "C"',
    "reserved": "r.reserved",
    "created_at_ms": "r.created_at_ms",
    "expires_at_ms": "r.expires_at_ms",
}
NUMBERS = {"reserved", "created_at_ms", "expires_at_ms"}
CURSOR = {"sort": str, "dir": str, "filters": str, "value": object, "id": str}
TIMES = {
    "from": ("r.created_at_ms", ">="),
    "to": ("r.created_at_ms", "<="),
    "expires_from": ("r.expires_at_ms", ">="),
    "expires_to": ("r.expires_at_ms", "<="),
    "finalized_from": ("r.finalized_at_ms", ">="),
    "finalized_to": ("r.finalized_at_ms", "<="),
}
COLUMNS = """r.id::text, r.status, r.idempotency_key, r.subject, r.action, r.unit, r.reserved, r.committed,
    r.created_at_ms, r.expires_at_ms, r.finalized_at_ms, r.scopes, r.metadata, r.committed_metadata, t.tenant_id"""


async def balances(pool: Pool, call: Call, tenant: str) -> Answer:
    """Every ledger of the tenant whose path has all the given segments: descendants, all units, frozen and closed."""
    segments = [f"{level}:{call.query[level].lower()}" for level in LEVELS if level in call.query]
    check_owner(call.query.get("tenant"), tenant)
    if not segments:
        raise invalid(f"Give at least one of {', '.join(LEVELS)} in the query.")
    if call.query.get("include_children", "").lower() not in ("", "true", "false"):
        raise invalid("include_children: write true or false.")
    limit = parse_limit(call.query.get("limit"), default=50, largest=200)
    after = read_cursor(call.query.get("cursor"), {"scope": str, "unit": str}) or {"scope": "", "unit": ""}
    rows = await pool.rows(
        """SELECT balances_of(ARRAY[l]) -> 0, l.scope, l.unit FROM ledger l JOIN tenant t ON t.id = l.tenant_id
        WHERE t.tenant_id = %(tenant)s AND string_to_array(l.scope, '/') @> %(segments)s::text[]
            AND (l.scope, l.unit) > (%(after_scope)s, %(after_unit)s)
        ORDER BY l.scope, l.unit LIMIT %(limit)s""",
        {
            "tenant": tenant,
            "segments": segments,
            "after_scope": after["scope"],
            "after_unit": after["unit"],
            "limit": limit + 1,
        },
    )
    page = rows[:limit]
    more = len(rows) > limit
    cursor = write_cursor({"scope": page[-1][1], "unit": page[-1][2]}) if more else None
    body = {"balances": [row[0] for row in page], "has_more": more, "next_cursor": cursor}
    return Answer(200, json.dumps(body), tenant)


async def reservation(pool: Pool, call: Call, reservation_id: str, tenant: str | None) -> Answer:
    """One reservation. An expired one is 410: it can be seen in the list only. No tenant: an operator asks."""
    rows = await pool.rows(
        f"SELECT {COLUMNS} FROM reservation r JOIN tenant t ON t.id = r.tenant_id WHERE r.id = %(id)s::uuid",  # noqa: S608
        {"id": known_id(reservation_id)},
    )
    if not rows:
        raise Refusal(404, "NOT_FOUND", facts={"what": "reservation"})
    if tenant is not None and rows[0][-1] != tenant:
        raise Refusal(403, "FORBIDDEN")
    if rows[0][1] == "EXPIRED":
        raise Refusal(410, "RESERVATION_EXPIRED")
    return Answer(200, json.dumps(_row(rows[0], {"metadata", "committed_metadata"})), tenant)


async def reservations(pool: Pool, call: Call, tenant: str | None) -> Answer:
    """A page of one tenant's reservations, filtered and sorted. A cursor is bound to both."""
    query = call.query
    owner = tenant
    if tenant is None:
        owner = query.get("tenant", "").strip()
        if not owner:
            raise invalid("An admin key must name the tenant: add tenant= to the query.")
    else:
        check_owner(query.get("tenant"), tenant)
        if query.get("tenant") == "":
            owner = ""
    limit = parse_limit(query.get("limit"), default=50, largest=200)
    where, parameters = _filters(query)
    sort, direction, asked = _order(query)
    filters = _fingerprint(owner, where, parameters)
    cursor = read_cursor(query.get("cursor"), CURSOR)
    if cursor:
        if asked and (cursor["sort"], cursor["dir"], cursor["filters"]) != (sort, direction, filters):
            raise invalid("The cursor belongs to another sort or filter. Start again without it.")
        sort, direction = cursor["sort"], cursor["dir"]
        known = sort in SORTS and direction in ("asc", "desc")
        if not known or type(cursor["value"]) is not (int if sort in NUMBERS else str):
            raise invalid("The cursor cannot be read. Start again without it.")
        comparison = ">" if direction == "asc" else "<"
        where.append(f"({SORTS[sort]}, r.id::text) {comparison} (%(after_value)s, %(after_id)s)")
        parameters |= {"after_value": cursor["value"], "after_id": cursor["id"]}
    conditions = " AND ".join(["t.tenant_id = %(owner)s", *where])
    rows = await pool.rows(
        f"""SELECT {COLUMNS}, {SORTS[sort]} FROM reservation r JOIN tenant t ON t.id = r.tenant_id
        WHERE {conditions} ORDER BY {SORTS[sort]} {direction}, r.id::text {direction} LIMIT %(limit)s""",  # noqa: S608
        {"owner": owner, **parameters, "limit": limit + 1},
    )
    page, more = rows[:limit], len(rows) > limit
    follow = None
    if more:
        last = page[-1]
        follow = write_cursor({"sort": sort, "dir": direction, "filters": filters, "value": last[-1], "id": last[0]})
    included = {part.strip() for part in query.get("include", "").split(",")}
    body = {
        "reservations": [_row(row[:-1], included) for row in page],
        "has_more": more,
        "next_cursor": follow,
    }
    return Answer(200, json.dumps(body), tenant)


def check_owner(asked: str | None, tenant: str) -> None:
    if asked and asked != tenant:
        raise Refusal(403, "FORBIDDEN")


def _filters(query: Mapping[str, str]) -> tuple[list[str], dict[str, object]]:
    """Conditions, and the values of the parameters they name: each by its name in the query."""
    where: list[str] = []
    parameters: dict[str, object] = {}
    if "status" in query:
        if query["status"] not in STATUSES:
            raise invalid(f"status: write one of {', '.join(STATUSES)}.")
        where.append("r.status = %(status)s")
        parameters["status"] = query["status"]
    if "idempotency_key" in query:
        where.append("r.idempotency_key = %(idempotency_key)s")
        parameters["idempotency_key"] = query["idempotency_key"]
    for level in LEVELS[1:]:
        if level in query:
            where.append(f"%({level})s = ANY (string_to_array(r.scopes[cardinality(r.scopes)], '/'))")
            parameters[level] = f"{level}:{query[level].lower()}"
    moments = {name: _moment(name, query[name]) for name in TIMES if query.get(name, "").strip()}
    for start, end in (("from", "to"), ("expires_from", "expires_to"), ("finalized_from", "finalized_to")):
        if start in moments and end in moments and moments[start] > moments[end]:
            raise invalid(f"{start} lies after {end}.")
    for name, moment in moments.items():
        column, comparison = TIMES[name]
        where.append(f"{column} {comparison} %({name})s")
        parameters[name] = moment
    return where, parameters


def _moment(name: str, text: str) -> int:
    try:
        return int(parse_instant(text.replace(" ", "+")).timestamp() * 1000)
    except ValueError as error:
        raise invalid(f"{name}: {error}.") from None


def _order(query: Mapping[str, str]) -> tuple[str, str, bool]:
    """The sort, and whether it was asked for: without it a cursor goes on in its own."""
    sort = query.get("sort_by", "created_at_ms").lower()
    direction = query.get("sort_dir", "desc").lower()
    if sort not in SORTS:
        raise invalid(f"sort_by: write one of {', '.join(SORTS)}.")
    if direction not in ("asc", "desc"):
        raise invalid("sort_dir: write asc or desc.")
    return sort, direction, "sort_by" in query or "sort_dir" in query


def _fingerprint(owner: str | None, where: list[str], parameters: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps([owner, where, parameters]).encode()).hexdigest()[:16]


def _row(row: Row, included: set[str]) -> dict[str, Any]:
    (identity, status, key, subject, action, unit, reserved, committed, created, expires, finalized, scopes,
     metadata, committed_metadata, _) = row  # fmt: skip
    shown: dict[str, Any] = {
        "reservation_id": identity,
        "status": status,
        "idempotency_key": key,
        "subject": {**dict.fromkeys([*LEVELS, "dimensions"]), **json.loads(subject)},
        "action": {"tags": None, **json.loads(action)},
        "reserved": {"unit": unit, "amount": reserved},
        "created_at_ms": created,
        "expires_at_ms": expires,
        "scope_path": scopes[-1],
        "affected_scopes": scopes,
    }
    if committed is not None:
        shown["committed"] = {"unit": unit, "amount": committed}
    if finalized is not None:
        shown["finalized_at_ms"] = finalized
    if metadata is not None and "metadata" in included:
        shown["metadata"] = json.loads(metadata)
    if committed_metadata is not None and "committed_metadata" in included:
        shown["committed_metadata"] = json.loads(committed_metadata)
    return shown


def write_cursor(place: Mapping[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def read_cursor(text: str | None, fields: Mapping[str, type]) -> dict[str, Any] | None:
    """A cursor's place; it is a caller's text, so only its shape is believed."""
    if not text:
        return None
    try:
        place = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, RecursionError):
        place = None
    if not isinstance(place, dict) or sorted(place) != sorted(fields):
        raise invalid("The cursor cannot be read. Start again without it.")
    if not all(isinstance(place[name], kind) for name, kind in fields.items()):
        raise invalid("The cursor cannot be read. Start again without it.")
    return place
