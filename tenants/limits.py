"""How often somebody may do something: the one place where tries are counted, for all doors.

Owns the table `Limit`, its statements, and how long whoever is refused must wait. Must not know what is limited, nor
what a figure should be: who keeps a door names its limits there. An entry is one statement on the database's clock, so
that all processes count together; the row's key is an HMAC, for a list of who tried where is nobody's to read.

    SIGN_UPS = Rate("sign-up-address", burst=20, every=60.0)        # 20 at once, then one a minute
    take(SIGN_UPS, address_of(request))                             # raises RateLimited, with how long to wait

    GUESSES = Tries("log-in", free=5, longest=900.0)                # 5, then after 1, 2, 4 … 900 seconds
    take(GUESSES, workspace, email)                                 # before the answer is worked out: simultaneous
    reset(GUESSES, workspace, email)                                # tries are counted, too; and it was right

Inside a transaction `take` raises RuntimeError: one that is rolled back would have counted nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, ClassVar

from django.conf import settings
from django.db import connection, transaction
from django.http import HttpRequest
from django.utils.crypto import salted_hmac

from tenants.http import RateLimited

Fetch = Callable[[str, Mapping[str, Any]], Awaitable[list[Any]]]

# A row: `free_at`, from when on there is room again; `count`, how many tries; `told`, how many seconds the last who
# asked must wait; `kept_until`, from when on it says nothing.

# When a try is counted, where its row is there: read once for the whole statement, after the row was locked. `now()` is
# when the transaction began. By that clock a try that began before another and is counted after it comes too early, and
# was refused with room left.
_MOMENT = "(SELECT clock_timestamp() AS moment) m"

# Taken as a bucket of `burst` that gains one each `every` seconds. `free_at` is when it is full again, and nothing else
# need be known of it.
_COST = "%(cost)s * %(every)s * interval '1 second'"
_AFTER = f"greatest(l.free_at, m.moment) + {_COST}"
_FITS = f"{_AFTER} <= m.moment + %(burst)s * %(every)s * interval '1 second'"
_TAKE_OF_RATE = f"""
    INSERT INTO public.tenants_limit AS l (key, free_at, count, told, kept_until)
    VALUES (%(key)s, now() + {_COST}, 0, 0, now() + {_COST})
    ON CONFLICT (key) DO UPDATE SET (free_at, kept_until, told) = (SELECT
        CASE WHEN {_FITS} THEN {_AFTER} ELSE l.free_at END,
        CASE WHEN {_FITS} THEN {_AFTER} ELSE l.kept_until END,
        greatest(0, extract(epoch FROM {_AFTER} - m.moment) - %(burst)s * %(every)s)
        FROM {_MOMENT})
    RETURNING told
"""  # noqa: S608  # here and below: of this module's own words alone
_GIVE_BACK_TO_RATE = f"""
    UPDATE public.tenants_limit SET free_at = free_at - {_COST} WHERE key = %(key)s
"""  # noqa: S608

# How long after the n-th try, {n}, the next one may come. The exponent is bounded, for a number that is out of range
# would let nobody in.
_WAIT = """(CASE WHEN {n} < %(free)s THEN 0 ELSE
    least(%(longest)s, %(first)s * power(%(factor)s, least({n} - %(free)s, 60))) END * interval '1 second')"""
_NTH = "(CASE WHEN l.kept_until < m.moment THEN 1 ELSE l.count + 1 END)"
_TAKE_OF_TRIES = f"""
    INSERT INTO public.tenants_limit AS l (key, free_at, count, told, kept_until)
    VALUES (%(key)s, now() + {_WAIT.format(n=1)}, 1, 0, now() + %(forget_after)s * interval '1 second')
    ON CONFLICT (key) DO UPDATE SET (count, free_at, kept_until, told) = (SELECT
        CASE WHEN l.free_at > m.moment THEN l.count ELSE {_NTH} END,
        CASE WHEN l.free_at > m.moment THEN l.free_at ELSE m.moment + {_WAIT.format(n=_NTH)} END,
        CASE WHEN l.free_at > m.moment THEN l.kept_until ELSE m.moment + %(forget_after)s * interval '1 second' END,
        greatest(0, extract(epoch FROM l.free_at - m.moment))
        FROM {_MOMENT})
    RETURNING told
"""  # noqa: S608  # here and below: of this module's own words alone
_GIVE_BACK_TO_TRIES = f"""
    UPDATE public.tenants_limit AS l
    SET count = greatest(l.count - 1, 0), free_at = l.free_at - {_WAIT.format(n="l.count")}
    WHERE key = %(key)s
"""  # noqa: S608
_RESET = "DELETE FROM public.tenants_limit WHERE key = %(key)s"
_REMEMBER = """
    INSERT INTO public.tenants_limit (key, free_at, count, told, kept_until)
    VALUES (%(key)s, now(), 0, 0, now() + %(kept)s * interval '1 second')
    ON CONFLICT (key) DO UPDATE SET kept_until = excluded.kept_until
"""
_IS_KNOWN = "SELECT 1 FROM public.tenants_limit WHERE key = %(key)s AND kept_until >= now()"
_FORGET = "DELETE FROM public.tenants_limit WHERE kept_until < now()"


@dataclass(frozen=True)
class Rate:
    """`burst` at once, then one every `every` seconds. `words` is how a refusal begins."""

    name: str
    burst: int
    every: float
    words: str = "Too many tries."

    take_sql: ClassVar[str] = _TAKE_OF_RATE
    give_back_sql: ClassVar[str] = _GIVE_BACK_TO_RATE

    def __post_init__(self) -> None:
        if self.burst < 1 or self.every <= 0:
            raise ValueError(f"{self.name}: burst must be 1 or more, and every more than 0.")

    @property
    def figures(self) -> dict[str, Any]:
        return {"burst": self.burst, "every": self.every}


@dataclass(frozen=True)
class Tries:
    """`free` at once, then one after `first` seconds, the next after `factor` times as long, until it is `longest`.

    A try that is refused counts for nothing, so that who waits gets in. Forgotten `forget_after` seconds after the last
    try that was let through.
    """

    name: str
    free: int = 5
    first: float = 1.0
    factor: float = 2.0
    longest: float = 900.0
    forget_after: float = 3600.0
    words: str = "Too many tries."

    take_sql: ClassVar[str] = _TAKE_OF_TRIES
    give_back_sql: ClassVar[str] = _GIVE_BACK_TO_TRIES

    def __post_init__(self) -> None:
        if self.free < 1 or not 0 < self.first <= self.longest <= self.forget_after or not 1 <= self.factor <= 10:
            raise ValueError(
                f"{self.name}: free must be 1 or more, factor 1 to 10, and first, longest and forget_after each no "
                "longer than the next."
            )

    @property
    def figures(self) -> dict[str, Any]:
        return {
            "free": self.free,
            "first": self.first,
            "factor": self.factor,
            "longest": self.longest,
            "forget_after": self.forget_after,
        }


def take(limit: Rate | Tries, *who: str | int, cost: int = 1) -> None:
    """Count one try of `who` (or `cost` at once, of a Rate). Raises RateLimited where it is one too many."""
    if cost < 1 or cost > (limit.burst if isinstance(limit, Rate) else 1):
        raise ValueError(f"{limit.name}: cost is {cost}, and can never be had at once.")
    # Durable: see the module's docstring.
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute(limit.take_sql, _params(limit, who, cost))
        (told,) = cursor.fetchone()
    _refuse(limit, told)


async def atake(limit: Rate | Tries, fetch: Fetch, *who: str | int) -> None:
    """The same on the plane, whose connections `fetch` is of: each of its statements is committed by itself."""
    ((told,),) = await fetch(limit.take_sql, _params(limit, who, 1))
    _refuse(limit, told)


def _refuse(limit: Rate | Tries, told: float) -> None:
    if told > 0:
        raise too_soon(limit.words, told)


def give_back(limit: Rate | Tries, *who: str | int, cost: int = 1) -> None:
    """As if one try that was let through had not been: it did no harm, or nothing was tried."""
    _run(limit.give_back_sql, _params(limit, who, cost))


def reset(limit: Rate | Tries, *who: str | int) -> None:
    """As if there had been no try of `who`."""
    _run(_RESET, {"key": key_of(limit.name, who)})


def remember(name: str, *who: str | int, seconds: float) -> None:
    """For so long `is_known` says yes."""
    _run(_REMEMBER, {"key": key_of(name, who), "kept": seconds})


def is_known(name: str, *who: str | int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(_IS_KNOWN, {"key": key_of(name, who)})
        return cursor.fetchone() is not None


def forget_old() -> int:
    """Delete the rows that say nothing any more; how many they were."""
    with connection.cursor() as cursor:
        cursor.execute(_FORGET)
        return int(cursor.rowcount)


def too_soon(words: str, seconds: float) -> RateLimited:
    whole = max(1, math.ceil(seconds))
    return RateLimited(f"{words} Try again in {in_words(whole)}.", retry_after_ms=whole * 1000)


def in_words(seconds: int) -> str:
    if seconds < 120:
        return "a second" if seconds == 1 else f"{seconds} seconds"
    return f"{-(-seconds // 60)} minutes"


def key_of(name: str, who: tuple[str | int, ...]) -> bytes:
    """Written as JSON, so that ("ab", "c") and ("a", "bc") are two."""
    return salted_hmac("tenants.limits", json.dumps([name, *who]), algorithm="sha256").digest()


def _params(limit: Rate | Tries, who: tuple[str | int, ...], cost: int) -> Mapping[str, Any]:
    return {**limit.figures, "key": key_of(limit.name, who), "cost": cost}


def _run(sql: str, params: Mapping[str, Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)


# --- who it is ------------------------------------------------------------------------------------------------------


def address_of(request: HttpRequest) -> str:
    """The client's address, as limits count it; "unknown" where nobody said.

    The front writes X-Real-IP, whatever the client sent. Without it (FRONT=off) the last of X-Forwarded-For is what the
    proxy in its place wrote, and those before are the client's own words.
    """
    if settings.FRONT:
        said = request.headers.get("X-Real-IP", "")
    else:
        said = request.headers.get("X-Forwarded-For", "").rpartition(",")[2]
    address = _parsed(said) or _parsed(request.META.get("REMOTE_ADDR", ""))
    return "unknown" if address is None else _shortened(address, 32, 64)


def masked(address: str) -> str:
    """For logs: enough to see that it is the same network, and not whose it is."""
    parsed = _parsed(address.partition("/")[0])
    return "unknown" if parsed is None else _shortened(parsed, 24, 48)


# How IPv4 is written where only IPv6 is spoken (RFC 6052): all of its clients would be of one network.
_NAT64 = IPv6Network("64:ff9b::/96")
# Some proxies name the port beside it: 192.0.2.1:4711, [2001:db8::1]:4711.
_WITH_PORT = re.compile(r"\[([^\]]+)\](?::\d+)?|([\d.]+):\d+")


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    text = text.strip()
    if found := _WITH_PORT.fullmatch(text):
        text = found[1] or found[2]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return _within(address) or address if isinstance(address, IPv6Address) else address


def _within(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address of a client that may come by either, or by as many networks as it likes (6to4).

    A socket for both families writes IPv4 as ::ffff:192.0.2.1.
    """
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _shortened(address: IPv4Address | IPv6Address, v4: int, v6: int) -> str:
    """Its network: who has one IPv6 address has 2^64."""
    kept = v4 if isinstance(address, IPv4Address) else v6
    bits = address.max_prefixlen
    network = type(address)(int(address) >> (bits - kept) << (bits - kept))
    return str(network) if kept == bits else f"{network}/{kept}"
