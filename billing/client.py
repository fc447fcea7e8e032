"""One client of the budget authority for all tenants and the house, and what its answers mean.

Owns routing (each call goes under its tenant's key), `translate` (every outside failure sorted in one place) and the
process's default client. Asks nothing of the context or the ORM inside a call: creates and extends run in bare
threads. Must not know which authority answers.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connection
from pydantic import BaseModel
from runcycles import CyclesClient, CyclesConfig, set_default_client
from runcycles.exceptions import CyclesProtocolError
from runcycles.response import CyclesResponse

from billing.errors import (
    AuthorityMisconfigured,
    AuthorityUnavailable,
    BudgetDenied,
    BudgetError,
    NoHouseAccount,
    NoTenantBound,
    NotProvisioned,
    OnHold,
    RateLimited,
)
from billing.keys import unseal
from billing.models import Account
from billing.money import UNIT
from billing.subjects import scopes_of
from billing.warmth import Word, doors, name_of
from tenants.connections import own_connection_params
from tenants.context import current_tenant
from tenants.kept import Keep, Params, Query, Row, fetched, of_tenant
from tenants.models import Tenant

logger = logging.getLogger(__name__)

# Under its own name here, so that the edges can catch it without speaking the client's language.
AuthorityRefusal = CyclesProtocolError
Body = BaseModel | dict[str, Any]
# Splits "<tenant>~<id>": no tenant id and no UUID has one, and a path takes it unescaped.
SEPARATOR = "~"
# Begins what a refusal says that was meant for the house: to those who ask in a workspace it must not look like theirs.
HOUSE_WAS_REFUSED = "[house]"
# Whom a paid function names as its payer: current_subject_tenant or house_subject_tenant, and none of one's own.
WhoPays = Callable[..., str]
# Of a request that did not leave this machine.
NOT_SENT = "NOT_SENT"
# Of one that was sent and had no answer in time.
NO_ANSWER = "NO_ANSWER"
# The client gives a create up after its time-outs and 5 s; what waits longer for a cold key is sent for nobody.
LINE_SECONDS = 4.0


class KeyRing:
    """Authority keys by subject tenant, in memory, bounded. The calling thread fills it before it calls.

    A miss happens in a background thread (a journal replayed after a restart); `find` then resolves it on a
    connection of its own, for such a thread would keep a pooled one for ever.
    """

    def __init__(self, find: Callable[[str], str | None], *, size: int = 4_096) -> None:
        self._find = find
        self._size = size
        self._keys: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()
        self._finding = threading.Lock()

    def put(self, subject_tenant: str, key: str) -> None:
        with self._lock:
            self._keys[subject_tenant] = key
            self._keys.move_to_end(subject_tenant)
            while len(self._keys) > self._size:
                self._keys.popitem(last=False)

    def get(self, subject_tenant: str) -> str | None:
        key = self._known(subject_tenant)
        if key is not None:
            return key
        # One at a time: a replayed journal has a thread for each entry, and each would open a connection at once.
        with self._finding:
            key = self._known(subject_tenant) or self._find(subject_tenant)
            if key is not None:
                self.put(subject_tenant, key)
        return key

    def _known(self, subject_tenant: str) -> str | None:
        with self._lock:
            return self._keys.get(subject_tenant)

    def forget(self, subject_tenant: str) -> None:
        with self._lock:
            self._keys.pop(subject_tenant, None)


class RoutedClient(CyclesClient):
    """A CyclesClient in which each call travels under the key of the tenant it is for.

    Create, event and decide are routed by the body's `subject.tenant`; create answers `"<tenant>~<id>"` as the
    reservation's id, which commit, release, extend and get split again. Refusals of its own come back as answers,
    never as exceptions: the client retries an exception and reports it as "remained ambiguous", without a code.
    """

    def __init__(self, config: CyclesConfig, keys: KeyRing) -> None:
        super().__init__(config)
        self.keys = keys
        # Instead of the parent's: a proxy named in the environment would see every key, and cannot know loopback.
        headers, timeout = self._http.headers, self._http.timeout
        self._http.close()
        self._http = httpx.Client(base_url=config.base_url, headers=headers, timeout=timeout, trust_env=False)
        self._patience = {
            Word.GO: timeout,
            Word.ALONE: httpx.Timeout(**{**timeout.as_dict(), "read": settings.CYCLES_COLD_READ_TIMEOUT}),
        }
        self._line_seconds = config.connect_timeout + config.read_timeout + LINE_SECONDS

    def create_reservation(self, request: Body) -> CyclesResponse:
        body = _as_dict(request)
        tenant = _subject_tenant(body)
        response = self._send("POST", "/v1/reservations", tenant, body=body)
        if response.is_success and isinstance(response.body, dict) and "reservation_id" in response.body:
            response.body["reservation_id"] = f"{tenant}{SEPARATOR}{response.body['reservation_id']}"
        return response

    def decide(self, request: Body) -> CyclesResponse:
        body = _as_dict(request)
        return self._send("POST", "/v1/decide", _subject_tenant(body), body=body)

    def create_event(self, request: Body) -> CyclesResponse:
        body = _as_dict(request)
        return self._send("POST", "/v1/events", _subject_tenant(body), body=body)

    def commit_reservation(self, reservation_id: str, request: Body) -> CyclesResponse:
        return self._settle(reservation_id, "commit", request)

    def release_reservation(self, reservation_id: str, request: Body) -> CyclesResponse:
        return self._settle(reservation_id, "release", request)

    def extend_reservation(self, reservation_id: str, request: Body) -> CyclesResponse:
        return self._settle(reservation_id, "extend", request)

    def get_reservation(self, reservation_id: str) -> CyclesResponse:
        tenant, _, plain = reservation_id.rpartition(SEPARATOR)
        return self._send("GET", f"/v1/reservations/{plain}", tenant)

    def list_reservations(self, **query_params: str) -> CyclesResponse:
        return self._send("GET", "/v1/reservations", query_params.get("tenant"), params=query_params)

    def get_balances(self, **query_params: str) -> CyclesResponse:
        return self._send("GET", "/v1/balances", query_params.get("tenant"), params=query_params)

    def _settle(self, reservation_id: str, step: str, request: Body) -> CyclesResponse:
        tenant, _, plain = reservation_id.rpartition(SEPARATOR)
        return self._send("POST", f"/v1/reservations/{plain}/{step}", tenant, body=_as_dict(request))

    def _send(
        self,
        method: str,
        path: str,
        tenant: str | None,
        *,
        body: dict[str, Any] | None = None,
        params: dict[str, str] | None = None,
    ) -> CyclesResponse:
        if not tenant:
            return _own_refusal("NO_TENANT_BOUND", "No tenant is named: pass tenant=current_subject_tenant.")
        try:
            key = self.keys.get(tenant)
        except psycopg.Error as exc:
            return CyclesResponse.transport_error(exc)
        if key is None:
            return _own_refusal("UNKNOWN_TENANT", "No account has this subject tenant.")
        headers = {"X-Cycles-API-Key": key}
        if body and body.get("idempotency_key"):
            headers["X-Idempotency-Key"] = body["idempotency_key"]
        with doors.turn(name_of(key)) as turn:
            word = turn.wait(self._line_seconds)
            if word is Word.NO:
                return _own_refusal(NOT_SENT, "The authority cannot be reached.", status=503)
            request = self._http.build_request(
                method, path, json=body, params=params, headers=headers, timeout=self._patience[word]
            )
            response = self._exchange(request)
            turn.over(answered=_is_answer(response))
        if response.status == 401:
            # Revoked or rotated elsewhere: the next call reads the account again.
            self.keys.forget(tenant)
        return response if response.is_success or tenant != settings.CYCLES_TENANT else _marked(response)

    def _exchange(self, request: httpx.Request) -> CyclesResponse:
        method, path = request.method, request.url.path
        try:
            return self._handle_response(self._http.send(request))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
            if not isinstance(exc, httpx.PoolTimeout):
                doors.all_cold()
            logger.warning("The authority cannot be reached: %s %s: %s", method, path, type(exc).__name__)
            return _own_refusal(NOT_SENT, "The authority cannot be reached.", status=503)
        except httpx.TimeoutException as exc:
            logger.warning("The authority gave no answer: %s %s: %s", method, path, type(exc).__name__)
            return _no_answer(exc, path)
        except httpx.HTTPError as exc:
            logger.warning("The authority cannot be reached: %s %s: %s", method, path, type(exc).__name__)
            return CyclesResponse.transport_error(exc)


def _marked(response: CyclesResponse) -> CyclesResponse:
    response.error_message = f"{HOUSE_WAS_REFUSED} {response.error_message}"
    if isinstance(response.body, dict):
        response.body["message"] = response.error_message
    return response


def is_of_the_house(refused: CyclesProtocolError) -> bool:
    return HOUSE_WAS_REFUSED in str(refused)


def _as_dict(request: Body) -> dict[str, Any]:
    return request.model_dump(exclude_none=True) if isinstance(request, BaseModel) else request


def _subject_tenant(body: dict[str, Any]) -> str | None:
    return (body.get("subject") or {}).get("tenant")


def _is_answer(response: CyclesResponse) -> bool:
    """Whether these are the authority's words, and not ours, nor a proxy's page."""
    return isinstance(response.body, dict) and response.body.get("error") not in (NOT_SENT, NO_ANSWER)


def _no_answer(exc: Exception, path: str) -> CyclesResponse:
    """Of a time-out. As 429 with a Retry-After: all else that may be repeated, the client repeats at once.

    The server may work on it still. A create that is held after all ends with its lease; a commit comes again later.
    """
    if path.endswith("/extend"):
        return CyclesResponse.transport_error(exc)  # the client paces these itself, by the lease that is left
    seconds = math.ceil(settings.CYCLES_COLD_READ_TIMEOUT)
    body = {"error": NO_ANSWER, "message": "The authority gave no answer in time."}
    return CyclesResponse.http_error(429, body["message"], body, headers={"retry-after": str(seconds)})


def _own_refusal(code: str, message: str, *, status: int = 400) -> CyclesResponse:
    body = {"error": code, "message": message}
    return CyclesResponse.http_error(status, message, body, headers={})


# --- the process's client -------------------------------------------------------------------------------------------

_client: RoutedClient | None = None
_client_lock = threading.Lock()


def default_client() -> RoutedClient:
    """The process's one client."""
    if _client is None:
        install_default_client()
    assert _client is not None
    return _client


def install_default_client() -> None:
    """Make the routed client the one that plain `@cycles` uses. Connects to nothing.

    Plain `@cycles` keeps its first client for ever; this one is right for every tenant.
    """
    global _client
    with _client_lock:
        _client = RoutedClient(
            CyclesConfig(
                base_url=settings.CYCLES_BASE_URL,
                # One journal identity for all tenants; each request carries its own tenant's key instead.
                api_key="routed",
                # No tenant here, not even the house's: a `tenant=` that returns None would silently book to it.
                tenant=None,
                app=settings.CYCLES_APP or None,
                connect_timeout=settings.CYCLES_CONNECT_TIMEOUT,
                read_timeout=settings.CYCLES_READ_TIMEOUT,
                retry_enabled=settings.CYCLES_RETRY_ENABLED,
                retry_max_attempts=settings.CYCLES_RETRY_MAX_ATTEMPTS,
                retry_initial_delay=settings.CYCLES_RETRY_INITIAL_DELAY,
                retry_multiplier=settings.CYCLES_RETRY_MULTIPLIER,
                retry_max_delay=settings.CYCLES_RETRY_MAX_DELAY,
                retry_flush_timeout=settings.CYCLES_RETRY_FLUSH_TIMEOUT,
                journal_enabled=settings.CYCLES_JOURNAL_ENABLED,
                journal_dir=settings.CYCLES_JOURNAL_DIR,
            ),
            KeyRing(_find_key),
        )
        set_default_client(_client)


def _find_key(subject_tenant: str) -> str | None:
    """The house's key, by the settings; else an account's, read on a connection of its own that is closed again."""
    if settings.CYCLES_TENANT and subject_tenant == settings.CYCLES_TENANT:
        return str(settings.CYCLES_API_KEY)
    with psycopg.connect(**own_connection_params(), autocommit=True) as own:
        row = own.execute(
            "SELECT sealed_key FROM public.billing_account WHERE subject_tenant = %s AND sealed_key <> ''",
            [subject_tenant],
        ).fetchone()
    return unseal(row[0]) if row else None


_ACCOUNT = "SELECT {columns} FROM public.billing_account WHERE tenant_id = %s"
# A hash that waits for its owner's row is nothing to keep.
_ACCOUNT_FIELDS = [field.attname for field in Account._meta.concrete_fields if field.attname != "owner_password"]
_KEEP_ACCOUNT = Keep(
    tags=lambda row: (of_tenant(row[_ACCOUNT_FIELDS.index("tenant_id")]),),
    # Those of others are looked at for a moment, while they are set up or reopened.
    seconds=lambda row: math.inf if row[_ACCOUNT_FIELDS.index("status")] == Account.Status.ACTIVE else 0,
)


@functools.cache
def _account_sql() -> str:
    return _ACCOUNT.format(columns=", ".join(_ACCOUNT_FIELDS))


def account_row(tenant: Any) -> Account | None:
    """The tenant's account, to be read and not written: its row may have been kept for a moment (tenants.kept), but not
    where a transaction may have written it.
    """
    keep = None if connection.in_atomic_block else _KEEP_ACCOUNT
    row = fetched(Query(_account_sql(), (tenant.pk,), keep), _first_row)
    return None if row is None else Account.from_db(DEFAULT_DB_ALIAS, _ACCOUNT_FIELDS, row)


def _first_row(sql: str, params: Params) -> Row | None:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        row: Row | None = cursor.fetchone()
        return row


def account_of(tenant: Any) -> Account:
    """account_row, where it is ACTIVE; its key made known to the client. Raises OnHold or NotProvisioned."""
    account = account_row(tenant)
    if account is None or account.status == Account.Status.PENDING:
        raise NotProvisioned
    if account.status != Account.Status.ACTIVE:
        raise OnHold(account.scope)
    try:
        key = unseal(account.sealed_key)
    except ImproperlyConfigured:
        logger.exception("No account's authority key can be read")
        raise AuthorityMisconfigured from None
    default_client().keys.put(account.subject_tenant, key)
    return account


def current_subject_tenant(*args: Any, **kwargs: Any) -> str:
    """For `@cycles(tenant=current_subject_tenant)`: who pays for the code that runs now.

    Raises NoTenantBound or OnHold before the client is asked: raised inside it they would lose their names.
    """
    tenant = current_tenant()
    if tenant is None:
        raise NoTenantBound
    return account_of(tenant).subject_tenant


def house_subject_tenant(*args: Any, **kwargs: Any) -> str:
    """For `@cycles(tenant=house_subject_tenant)` and `guarded`'s: the house pays, whoever is bound. Never a fallback.

    Raises NoHouseAccount: its variables are not set, or name a customer, who would pay.
    """
    if not (settings.CYCLES_TENANT and settings.CYCLES_API_KEY):
        raise NoHouseAccount
    if Account.objects.filter(subject_tenant__iexact=settings.CYCLES_TENANT).exists():
        raise NoHouseAccount(NoHouseAccount.IS_A_CUSTOMER)
    return str(settings.CYCLES_TENANT)


def who_pays(tenant: Tenant | WhoPays | None) -> Tenant | None:
    """The tenant that pays; None is the house, and only where it is named: no tenant bound is an error and no house."""
    if tenant is house_subject_tenant:
        return None
    if isinstance(tenant, Tenant):
        return tenant
    if tenant is not None:
        refuse_unless_payer(tenant)
    bound = current_tenant()
    if bound is None:
        raise NoTenantBound
    return bound


def refuse_unless_payer(tenant: object) -> None:
    """Raises TypeError: with a function of one's own, or an id, a typing mistake would decide whose money is spent."""
    if tenant is not current_subject_tenant and tenant is not house_subject_tenant:
        raise TypeError(
            f"tenant {tenant!r}: write current_subject_tenant or house_subject_tenant, or leave it out. For a certain "
            "tenant enter tenants.context.tenant_scope(tenant)."
        )


# --- what its answers mean ------------------------------------------------------------------------------------------


_FIGURES = ("scope", "allocated", "spent", "reserved", "remaining", "needed", "affordable_max_tokens")
NO_FIGURES: dict[str, Any] = dict.fromkeys(_FIGURES)
DENIED = {"BUDGET_EXCEEDED", "OVERDRAFT_LIMIT_EXCEEDED", "DEBT_OUTSTANDING"}
ON_HOLD = {"BUDGET_FROZEN", "BUDGET_CLOSED", "TENANT_CLOSED"}
# Of a tenant, as the admin plane says it.
NOT_ACTIVE = {"SUSPENDED", "CLOSED"}
_MISCONFIGURED = {
    "NOT_FOUND",
    "BUDGET_NOT_FOUND",
    "UNIT_MISMATCH",
    "FORBIDDEN",
    "UNAUTHORIZED",
    "UNKNOWN_TENANT",
    "INVALID_REQUEST",
}


def translate(exc: CyclesProtocolError, *, subject_tenant: str | None = None) -> BudgetError:
    """Sorts every failure of the authority:

    - it said no: BudgetDenied, without figures; billing.ledgers has them
    - the customer is on hold: OnHold (a 401's text is the one that must be read)
    - we are set up wrong: AuthorityMisconfigured, logged as an error
    - too many requests: RateLimited
    - anything else, or no answer: AuthorityUnavailable
    """
    return error_for(exc.error_code or exc.reason_code or "", exc.status, str(exc), subject_tenant)


def denial(response: CyclesResponse, *, subject_tenant: str) -> BudgetError | None:
    """What a decide's answer means: None to go on, else the error to raise. No answer is no permission."""
    body = response.body if isinstance(response.body, dict) else {}
    if response.is_success and body.get("decision") in ("ALLOW", "ALLOW_WITH_CAPS"):
        return None
    code = body.get("reason_code") or body.get("error")
    return error_for(str(code or ""), response.status, response.error_message or "", subject_tenant)


def error_for(code: str, status: int, message: str, subject_tenant: str | None) -> BudgetError:
    """The error that an answer which grants nothing means, without the figures of a denial."""
    if code == "NO_TENANT_BOUND":
        return NoTenantBound()
    if code in DENIED:
        reason = "does_not_fit" if code == "BUDGET_EXCEEDED" else "over_limit"
        return BudgetDenied(reason=reason, budget={**NO_FIGURES, "unit": UNIT})
    if status == 401 and ("TENANT_SUSPENDED" in message or "TENANT_CLOSED" in message):
        return OnHold(scopes_of({"tenant": subject_tenant})[0] if subject_tenant else None)
    if code in ON_HOLD:
        return OnHold()
    if code == NO_ANSWER:
        return AuthorityUnavailable()
    if code == "LIMIT_EXCEEDED" or status == 429:
        return RateLimited()
    if code in _MISCONFIGURED and "INTERNAL_ERROR" not in message:
        logger.error("The authority refuses us: %s %s for %s", status, code, subject_tenant)
        return AuthorityMisconfigured()
    return AuthorityUnavailable()
