"""What views of the admin plane get and give: typed requests, methods by table, query values, SQL calls, pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

from django.core.exceptions import ValidationError
from django.core.handlers.wsgi import WSGIRequest
from django.db import DataError, IntegrityError, OperationalError, connection, transaction
from django.db.models import F, Q, QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse

from billing.authority.database import STATEMENTS, TRY_AGAIN, refused_by
from billing.authority.errors import Refusal, from_database, invalid
from billing.authority.wire import parse_instant

ATTEMPTS = 5


class ReceivedRequest(WSGIRequest):
    """What the plane's handler makes of each request. One whose Content-Type cannot be read has none: Django reads it
    before any of our code runs, and the server would answer in its own words."""

    def _set_content_type_params(self, meta: dict[str, Any]) -> None:
        self.content_type, self.content_params = "", {}
        with suppress(ValueError):
            super()._set_content_type_params(meta)  # type: ignore[misc]


class AdminRequest(HttpRequest):
    """A request that went through the middleware."""

    request_id: str
    trace_id: str
    answers_to: str  # whom the trail names as the caller: a tenant, or one of the two below


ADMIN = "__admin__"
UNKNOWN = "__unauth__"


def by_method(**views: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """One path, a view for each method. A wrong method is refused before any key is looked at."""

    def dispatch(request: AdminRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        method = "GET" if request.method == "HEAD" else str(request.method)
        if method == "OPTIONS":
            response = HttpResponse(
                headers={"Allow": ", ".join([*views, *(["HEAD"] if "GET" in views else []), method])}
            )
            del response["Content-Type"]  # there is no content
            return response
        if method not in views:
            allow = ", ".join(views)
            raise Refusal(405, "INVALID_REQUEST", f"Use one of {allow} here.", headers={"Allow": allow})
        if method in ("POST", "PATCH", "PUT") and request.body and request.content_type != "application/json":
            raise Refusal(415, "INVALID_REQUEST", "Send the body as application/json.")
        return views[method](request, *args, **kwargs)

    return dispatch


def call(
    operation: str, parameters: Mapping[str, Any], *, then: Callable[[dict[str, Any]], None] | None = None
) -> HttpResponse:
    """Run one SQL operation and what it is told by, in one transaction, and answer with what it says."""

    def act() -> HttpResponse:
        status, body = run(operation, parameters)
        if status >= 400:
            raise from_database(status, json.loads(body))
        if then is not None:
            then(json.loads(body))
        return HttpResponse(body, status=status, content_type="application/json")

    return durably(act)


def run(operation: str, parameters: Mapping[str, Any]) -> tuple[int, str]:
    """One SQL operation inside the caller's transaction: its status and its body as text."""
    with connection.cursor() as cursor:
        cursor.execute(STATEMENTS[operation], parameters)
        status, _, body = cursor.fetchone()
    return int(status), str(body)


Result = TypeVar("Result")


def durably(act: Callable[[], Result]) -> Result:
    """Act in a transaction of its own, and once more when another one won the race for a key or a lock."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with transaction.atomic(durable=True):
                return act()
        except (IntegrityError, OperationalError) as error:
            if attempt == ATTEMPTS or not isinstance(error.__cause__, TRY_AGAIN):
                raise
        except DataError as error:
            raise refused_by(error.__cause__) from error  # type: ignore[arg-type]
    raise AssertionError("unreachable")


def required(request: AdminRequest, name: str) -> str:
    value = request.GET.get(name)
    if value is None:
        raise invalid(f"Add {name}= to the query.")
    return value


def choice(request: AdminRequest, name: str, allowed: Mapping[str, Any] | tuple[str, ...], default: str) -> str:
    value = request.GET.get(name, default)
    if value not in allowed:
        raise invalid(f"{name}: write one of {', '.join(allowed)}.")
    return value


def flag(request: AdminRequest, name: str) -> bool | None:
    value = request.GET.get(name, "").lower()
    if value not in ("", "true", "false"):
        raise invalid(f"{name}: write true or false.")
    return None if not value else value == "true"


def page(
    request: AdminRequest, rows: QuerySet[Any], name: str, show: Callable[[Any], Any], *,
    sorts: Mapping[str, Any], default: str, identity: str,
) -> JsonResponse:  # fmt: skip
    """One page of rows. The cursor is the public id of the last row shown; it is looked up among the same rows, so
    another list's cursor is refused. The default sort need not be one that can be asked for."""
    order_by = sorts.get(default, F(default))
    if "sort_by" in request.GET:
        order_by = sorts[choice(request, "sort_by", tuple(sorts), "")]
    descending = choice(request, "sort_dir", ("asc", "desc"), "desc") == "desc"
    limit = _limit(request)
    rows = rows.annotate(sort_value=order_by)
    if cursor := request.GET.get("cursor"):
        last = _last_shown(rows, identity, cursor)
        if last is None:
            raise invalid("The cursor belongs to no row of this list. Start again without it.")
        side = "lt" if descending else "gt"
        rows = rows.filter(Q(**{f"sort_value__{side}": last[0]}) | Q(sort_value=last[0], **{f"pk__{side}": last[1]}))
    order = ["-sort_value", "-pk"] if descending else ["sort_value", "pk"]
    found = list(rows.order_by(*order)[: limit + 1])
    shown, more = found[:limit], len(found) > limit
    body: dict[str, Any] = {name: [show(row) for row in shown], "has_more": more}
    if more:
        body["next_cursor"] = str(getattr(shown[-1], identity.partition("__")[0]))
    return JsonResponse(body)


def moment(request: AdminRequest, name: str) -> datetime | None:
    text = request.GET.get(name, "").strip().replace(" ", "+")
    try:
        return parse_instant(text) if text else None
    except ValueError as error:
        raise invalid(f"{name}: {error}.") from None


def search(request: AdminRequest) -> str:
    text = request.GET.get("search", "")
    if len(text) > 128:
        raise invalid("search is longer than 128 characters.")
    return text


def _limit(request: AdminRequest) -> int:
    """Out of range is brought into range; what is no number is refused."""
    text = request.GET.get("limit", "").strip() or "50"
    try:
        return min(max(int(text), 1), 100)
    except ValueError:
        raise invalid(f"limit is {text!r}: write a whole number from 1 to 100.") from None


def _last_shown(rows: QuerySet[Any], identity: str, cursor: str) -> Any:
    try:
        return rows.filter(**{identity: cursor}).values_list("sort_value", "pk").first()
    except (ValidationError, ValueError):  # no id of this kind, or U+0000 in it
        return None


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
