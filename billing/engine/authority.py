"""The authority's runtime plane, asked without blocking: one call, one answer, sorted.

Owns the wire: bodies, keys, time-outs, and what each answer means for the money. Must not know which authority
answers, or decide what is charged. Nothing is repeated here. Who goes first under a cold key is billing.warmth's.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, TypeGuard
from urllib.parse import urlencode

from django.conf import settings
from pydantic_core import from_json, to_json
from runcycles import ErrorCode
from runcycles.response import CyclesResponse

from billing.client import DENIED, NOT_ACTIVE, NOT_SENT, error_for
from billing.engine.exchange import Answer, Broken, NotSent
from billing.engine.http import Http
from billing.errors import OnHold
from billing.money import UNIT
from billing.subjects import scopes_of
from billing.warmth import Turn, Word, doors, name_of

logger = logging.getLogger(__name__)

# Shorter than either plane keeps an idle connection: the next request then never meets a closing one. Ours keep it for
# 75 s, the real servers for 60 s, as their Tomcat does.
KEEP_ALIVE_SECONDS = 45.0
# Requests at the same time, to each plane. Thousands at once would time out at the authority's door, and not be known
# to be unsent; and an admin plane that hangs would take the places of those who want to pay.
AT_ONCE = 64
PLACE_SECONDS = 2.0
# Of a request that stayed here, for so many others are under way. Nobody knows whether the authority is there.
NO_PLACE = "NO_PLACE"
# How long a call waits behind others' cold keys, counted in answers of the slowest.
COLD_CALLS_AHEAD = 2
TTL_MS = 60_000
# Of an answer: a page of a list is far below.
ANSWER_BYTES = 16 * 1024 * 1024
# More than any lease; a clock can still be counted on by it.
MOST_MS = 10**12


@dataclass(frozen=True, slots=True)
class Payer:
    """Whose money it is: an account that is active, with its key at the authority and its schema; or the house."""

    account_id: int | None
    tenant_id: int | None
    slug: str
    schema: str
    subject_tenant: str
    plan: str
    key: str = field(repr=False)
    # Its allowance is not granted yet: what a refusal says, and nothing else, depends on it.
    waits: bool = False
    # When its budget starts anew, in ISO 8601; None where that is not known.
    resets_at: str | None = None
    # The models that it may call, by name; None: all that can be called here.
    models: frozenset[str] | None = None

    @property
    def is_house(self) -> bool:
        return self.account_id is None

    @property
    def in_logs(self) -> dict[str, str]:
        """`extra` of a line about its call: in web, jobs and commands no tenant is bound to the engine's loop."""
        return {"tenant": self.slug}


@dataclass(frozen=True, slots=True)
class Held:
    """A reservation as the authority granted it."""

    reservation_id: str
    ttl_ms: int
    caps: dict[str, Any]
    balances: list[Any]


class Authority:
    """Its runtime plane under each payer's key, and its admin plane for look-ups."""

    def __init__(self) -> None:
        self._http: Http | None = None
        self._places, self._admin_places = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(AT_ONCE)

    # Operations. Each takes the very body that a repeat would send again.

    async def reserve(self, payer: Payer, body: dict[str, Any]) -> CyclesResponse:
        return await self._runtime("POST", "/v1/reservations", payer, body)

    async def commit(self, payer: Payer, reservation_id: str, body: dict[str, Any]) -> CyclesResponse:
        return await self._runtime("POST", f"/v1/reservations/{reservation_id}/commit", payer, body)

    async def release(self, payer: Payer, reservation_id: str, body: dict[str, Any]) -> CyclesResponse:
        return await self._runtime("POST", f"/v1/reservations/{reservation_id}/release", payer, body)

    async def extend(self, payer: Payer, reservation_id: str, body: dict[str, Any]) -> CyclesResponse:
        return await self._runtime("POST", f"/v1/reservations/{reservation_id}/extend", payer, body)

    async def event(self, payer: Payer, body: dict[str, Any]) -> CyclesResponse:
        return await self._runtime("POST", "/v1/events", payer, body)

    async def get(self, payer: Payer, reservation_id: str) -> CyclesResponse:
        return await self._runtime("GET", f"/v1/reservations/{reservation_id}", payer, None)

    async def admin(
        self, method: str, path: str, *, params: dict[str, str] | None = None, body: dict[str, Any] | None = None
    ) -> CyclesResponse:
        """A call of the admin plane, under the operator's key."""
        headers = {"X-Admin-API-Key": settings.CYCLES_ADMIN_API_KEY}
        if params:
            path = f"{path}?{urlencode(params)}"
        base, seconds = settings.CYCLES_ADMIN_URL, settings.CYCLES_READ_TIMEOUT
        return await self._send(self._admin_places, method, base, path, headers, body, seconds)

    async def tenant_status(self, subject_tenant: str) -> str | None:
        """ACTIVE, SUSPENDED or CLOSED; None where nobody says."""
        response = await self.admin("GET", f"/v1/admin/tenants/{subject_tenant}")
        status = (response.body or {}).get("status")
        return status if response.is_success and isinstance(status, str) else None

    async def refusal(self, response: CyclesResponse, payer: Payer) -> Exception:
        """The error that an answer, which grants nothing, means to the caller; a denial's figures are another call's.

        A closed tenant's key reads as revoked; only the admin plane tells it from a key that we lost.
        """
        if response.status == 401 and await self.tenant_status(payer.subject_tenant) in NOT_ACTIVE:
            return OnHold(scopes_of({"tenant": payer.subject_tenant})[0])
        return error_for(code_of(response), response.status, response.error_message or "", payer.subject_tenant)

    async def _runtime(self, method: str, path: str, payer: Payer, body: dict[str, Any] | None) -> CyclesResponse:
        headers = {"X-Cycles-API-Key": payer.key}
        if body is not None:
            headers["X-Idempotency-Key"] = body["idempotency_key"]
        with doors.turn(name_of(payer.key)) as turn:
            word = await _told(turn)
            if word is Word.NO:
                return _not_sent()
            seconds = settings.CYCLES_COLD_READ_TIMEOUT if word is Word.ALONE else settings.CYCLES_READ_TIMEOUT
            response = await self._send(self._places, method, settings.CYCLES_BASE_URL, path, headers, body, seconds)
            if code_of(response) == NOT_SENT:
                doors.all_cold()
            turn.over(answered=not response.is_transport_error and not was_not_sent(response))
            return response

    async def _send(
        self,
        places: asyncio.Semaphore,
        method: str,
        base: str,
        path: str,
        headers: dict[str, str],
        body: dict[str, Any] | None,
        seconds: float,
    ) -> CyclesResponse:
        if not places.locked():
            # There is a place, so that nothing is waited for: a clock would only cost its making.
            await places.acquire()
        else:
            try:
                async with asyncio.timeout(PLACE_SECONDS):
                    await places.acquire()
            except TimeoutError:
                return _not_sent(NO_PLACE)
        try:
            return await self._exchange(method, base, path, headers, body, seconds)
        finally:
            places.release()

    async def _exchange(
        self,
        method: str,
        base: str,
        path: str,
        headers: dict[str, str],
        body: dict[str, Any] | None,
        seconds: float,
    ) -> CyclesResponse:
        data = None
        if body is not None:
            data = to_json(body)
            headers["Content-Type"] = "application/json"
        http = self._http or self._open()
        try:
            until = asyncio.get_running_loop().time() + settings.CYCLES_CONNECT_TIMEOUT + seconds
            answer = await http.ask(method, base, path, headers, data, until=until)
            try:
                raw = await answer.read(ANSWER_BYTES, until)
            except BaseException:
                answer.close()
                raise
            answer.release()
            return _response(answer, raw)
        except NotSent as exc:
            logger.warning("The authority cannot be reached: %s: %s", method, exc)
            return _not_sent()
        except (Broken, TimeoutError) as exc:
            logger.warning("The authority gave no answer: %s: %s", method, str(exc) or type(exc).__name__)
            return CyclesResponse.transport_error(exc)

    def _open(self) -> Http:
        # Connecting has a clock of its own; the whole has one in `_exchange`. A proxy would see every key.
        self._http = Http(
            keep_seconds=KEEP_ALIVE_SECONDS, connect_seconds=settings.CYCLES_CONNECT_TIMEOUT, goes_by_proxy=False
        )
        return self._http

    def close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            http.close()


async def _told(turn: Turn) -> Word:
    """Whether and how to go. The time-out of the call itself does not run meanwhile."""
    if turn.word.done():
        return turn.word.result()
    try:
        async with asyncio.timeout(settings.CYCLES_COLD_READ_TIMEOUT * COLD_CALLS_AHEAD):
            # Shielded: cancelled with its caller, it could not be told any more, nor those behind it.
            return await asyncio.shield(asyncio.wrap_future(turn.word))
    except TimeoutError:
        return Word.NO


def _not_sent(code: str = NOT_SENT) -> CyclesResponse:
    return CyclesResponse.http_error(503, "The authority cannot be reached.", {"error": code})


def _response(answer: Answer, raw: bytes) -> CyclesResponse:
    try:
        body = from_json(raw, cache_strings="keys") if raw else {}
    except ValueError:
        body = None
    if not isinstance(body, dict):
        # Not the authority's words, whatever the status says: a proxy's page, or half of an answer.
        return CyclesResponse.transport_error(ValueError("not a JSON object"))
    if 200 <= answer.status < 300:
        return CyclesResponse.success(answer.status, body, answer.headers)
    return CyclesResponse.http_error(answer.status, str(body.get("message", ""))[:300], body, answer.headers)


# --- what an answer means -----------------------------------------------------------------------------------------


def code_of(response: CyclesResponse) -> str:
    return str((response.body or {}).get("error") or "")


def was_not_sent(response: CyclesResponse) -> bool:
    return code_of(response) in (NOT_SENT, NO_PLACE)


def is_lost(response: CyclesResponse) -> bool:
    """Whether nobody can tell what became of it: no answer, or a server's failure on the way."""
    return not was_not_sent(response) and (response.is_transport_error or response.status >= 500)


def timed_out(response: CyclesResponse) -> bool:
    """No answer in time. Whoever was asked may work on it still: the same again at once would only add to that."""
    return isinstance(response.transport_exception, TimeoutError)


def pause_after(response: CyclesResponse, usual: float) -> float:
    """Seconds before the same is sent again."""
    return max(usual, settings.CYCLES_COLD_READ_TIMEOUT) if timed_out(response) else usual


def is_denied(response: CyclesResponse) -> bool:
    return response.status == 409 and code_of(response) in DENIED


def held_of(response: CyclesResponse) -> Held | None:
    """What a reserve granted; None where the answer cannot be read."""
    body = response.body or {}
    reservation_id, ttl_ms = body.get("reservation_id"), body.get("remaining_ttl_ms", TTL_MS)
    good = response.status == 200 and body.get("decision") in ("ALLOW", "ALLOW_WITH_CAPS")
    if not good or not _can_be_kept(reservation_id) or type(ttl_ms) is not int or abs(ttl_ms) > MOST_MS:
        return None
    caps = body.get("caps")
    balances = body.get("balances")
    return Held(
        reservation_id,
        ttl_ms,
        caps if isinstance(caps, dict) else {},
        balances if isinstance(balances, list) else [],
    )


def _can_be_kept(reservation_id: Any) -> TypeGuard[str]:
    """Whether a row can hold it, and a path take it."""
    if not isinstance(reservation_id, str) or not 1 <= len(reservation_id) <= 200:
        return False
    return reservation_id.isascii() and reservation_id.isprintable()


class Landed:
    """What a commit's or release's answer means for the money."""

    YES = "yes"  # it is as asked
    ENDED = "ended"  # it has been settled already, perhaps otherwise: ask what stands there
    LATE = "late"  # expired or unknown: an event takes its place
    NOT_YET = "not yet"  # no answer, or one that may change: repeat the same bytes
    GONE = "gone"  # the tenant is closed: nothing more can be booked


_ENDED = {ErrorCode.RESERVATION_FINALIZED.value, ErrorCode.IDEMPOTENCY_MISMATCH.value}


def landed(response: CyclesResponse) -> str:
    code = code_of(response)
    if response.is_success:
        return Landed.YES
    if response.status == 409 and code in _ENDED:
        return Landed.ENDED
    if response.status == 410 or (response.status == 404 and code == "NOT_FOUND"):
        return Landed.LATE
    if code == "TENANT_CLOSED" or "TENANT_CLOSED" in (response.error_message or ""):
        return Landed.GONE
    return Landed.NOT_YET


def amount(microcents: int) -> dict[str, Any]:
    return {"unit": UNIT, "amount": microcents}


def amount_of(value: Any) -> int | None:
    """Microcents of an amount in an answer."""
    if isinstance(value, dict) and type(value.get("amount")) is int:
        return int(value["amount"])
    return None


def budget_of(balances: list[Any], scope: str) -> dict[str, Any] | None:
    """The `budget` of an answer from the balances that came with a commit; None where the scope is not there."""
    for row in balances:
        if isinstance(row, dict) and row.get("scope_path") == scope:
            figures = {name: amount_of(row.get(name)) for name in ("allocated", "spent", "reserved", "remaining")}
            if None not in figures.values():
                return {"scope": scope, **figures, "unit": UNIT}
    return None
