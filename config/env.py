"""Reading the environment: typed, and loud on nonsense.

Owns how a variable becomes a value. Must not import Django's settings (they import this) nor any app.
Every reader raises `ImproperlyConfigured` with a sentence that names the variable and says what to write.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation, Overflow
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
# Of a model's name, or a provider's.
LONGEST_NAME = 200
MICROCENTS_PER_USD = 100_000_000

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


def envstr(name: str, default: str = "") -> str:
    """The text of a variable; an empty one counts as unset, as compose files write `NAME=`."""
    return os.environ.get(name, "").strip() or default


def envbool(name: str, default: bool) -> bool:
    raw = envstr(name).lower()
    if not raw:
        return default
    if raw in _TRUE:
        return True
    if raw in _FALSE:
        return False
    raise ImproperlyConfigured(f"{name} is {raw!r}: write on or off.")


def envint(name: str, default: int | None, *, minimum: int = 0, maximum: int = 2**31) -> int | None:
    raw = envstr(name)
    if not raw:
        return default
    # Python refuses to read thousands of digits, by a ValueError that names no variable.
    if not raw.isascii() or not raw.isdigit() or len(raw) > 20 or not minimum <= int(raw) <= maximum:
        raise ImproperlyConfigured(f"{name} is {raw!r}: write a whole number from {minimum} to {maximum}.")
    return int(raw)


def envport(name: str, default: int) -> int:
    return envint(name, default, minimum=1, maximum=65535) or default


def envseconds(name: str, default: float, *, or_none: bool = False) -> float:
    """Seconds above 0; with `or_none` 0 as well, which is not to wait at all."""
    value = _envfloat(name, default)
    if not (0 < value <= 3600 or (or_none and value == 0)):
        least = "from 0" if or_none else "above 0"
        raise ImproperlyConfigured(f"{name} is {envstr(name)!r}: write seconds {least}, for example 2.0.")
    return value


def envrate(name: str, default: str) -> tuple[int, float]:
    """`20/60`: so many at once, then one each so many seconds."""
    raw = envstr(name, default)
    found = re.fullmatch(r"([1-9][0-9]{0,8})/([0-9]{1,8}(?:\.[0-9]{1,3})?)", raw, re.ASCII)
    if not found or float(found[2]) <= 0:
        raise ImproperlyConfigured(
            f"{name} is {raw!r}: write how many may come at once, after how many seconds one more, such as {default}."
        )
    return int(found[1]), float(found[2])


def envusd(name: str, default: str) -> int:
    """An amount of USD, exact, as microcents; 0 is an amount."""
    raw = envstr(name, default)
    try:
        return _microcents(name, raw)
    except ValueError:
        raise ImproperlyConfigured(f"{name} is {raw!r}: write USD from 0 on, for example {default}.") from None


def envfactor(name: str, default: float) -> float:
    value = _envfloat(name, default)
    if not 1 <= value <= 100:
        raise ImproperlyConfigured(f"{name} is {envstr(name)!r}: write a number from 1 to 100, for example 2.0.")
    return value


def _envfloat(name: str, default: float) -> float:
    """-1.0 for what is none: no reader takes it."""
    raw = envstr(name)
    try:
        return float(raw) if raw else default
    except ValueError:
        return -1.0


def envurl(name: str, default: str = "") -> str:
    """An http(s) address without a trailing slash."""
    raw = envstr(name, default)
    if not raw:
        return ""
    if not _is_url(raw):
        raise ImproperlyConfigured(f"{name} is {raw!r}: write an address such as http://localhost:8000.")
    return raw.rstrip("/")


def _is_url(raw: str) -> bool:
    try:
        parts = urlsplit(raw)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    is_plain = raw.isprintable() and " " not in raw
    return good and is_plain and not ("@" in parts.netloc or parts.query or parts.fragment)


def envorigin(name: str, default: str) -> str:
    """Scheme, host and port alone, as browsers write an Origin: in lower case, without a default port."""
    url = envurl(name, default)
    parts = urlsplit(url)
    if parts.path:
        raise ImproperlyConfigured(f"{name} is {url!r}: write it without a path.")
    usual = {"http": 80, "https": 443}[parts.scheme]
    port = f":{parts.port}" if parts.port and parts.port != usual else ""
    return f"{parts.scheme}://{parts.hostname}{port}"


_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


def envdomain(name: str, default: str) -> str:
    """A host name in lower case, without a port."""
    value = envstr(name, default).lower().rstrip(".")
    if not _DOMAIN.fullmatch(value):
        raise ImproperlyConfigured(f"{name} is {value!r}: write a host name such as example.com.")
    return value


def envaddress(name: str, default: str) -> str:
    """One e-mail address, without a name beside it."""
    raw = envstr(name, default)
    local, _, domain = raw.rpartition("@")
    if not re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}", local) or not _DOMAIN.fullmatch(domain.lower()):
        raise ImproperlyConfigured(f"{name} is {raw!r}: write one address such as no-reply@example.com.")
    return raw


def envchoice(name: str, default: str, choices: tuple[str, ...]) -> str:
    raw = envstr(name, default).lower()
    if raw not in choices:
        raise ImproperlyConfigured(f"{name} is {raw!r}: write {', '.join(choices[:-1])} or {choices[-1]}.")
    return raw


def envhosts(name: str, default: list[str]) -> list[str]:
    """Hosts as Django compares them: `a.example`, `.example` for all below, `*` for any."""
    hosts = [host.strip().lower() for host in envstr(name).split(",") if host.strip()]
    for host in hosts:
        is_v6 = re.fullmatch(r"\[[0-9a-f:.]+\]", host)
        # Whatever else is written matches no request, and every page is then refused.
        if not (host == "*" or is_v6 or _DOMAIN.fullmatch(host.removeprefix("."))):
            raise ImproperlyConfigured(
                f"{name} has {host!r}: write host names without scheme or port; .example.com is all below it."
            )
    return hosts or default


def envproxies(name: str) -> str:
    """Whose word the front takes about a client: private_ranges, addresses, networks, separated by spaces."""
    words = envstr(name).split()
    for word in words:
        try:
            good = word == "private_ranges" or ip_network(word, strict=False).prefixlen > 0
        except ValueError:
            good = False
        if not good:
            raise ImproperlyConfigured(
                f"{name} has {word!r}: write private_ranges, or the addresses of your proxies, such as 10.0.0.5 or "
                "10.0.0.0/8. A network of everybody lets each client say who it is."
            )
    return " ".join(words)


def state_dir() -> Path:
    """Where the laptop's parts keep their data; relative paths count from the project's root."""
    return (BASE_DIR / envstr("STATE_DIR", ".local")).resolve()


def envsecret(name: str) -> str:
    """A secret: the variable, else the file that `make run` made in STATE_DIR; never a default.

    A secret with a built-in default is one that production runs with by accident.
    """
    if value := envstr(name):
        return value
    try:
        return (state_dir() / "secrets" / name).read_text().strip()
    except OSError:
        raise ImproperlyConfigured(f"{name} is not set. Set it, or start once with `make run`.") from None


def envbrand(name: str, default: str) -> str:
    """What keys begin with, before their first underscore."""
    value = envstr(name, default)
    if not re.fullmatch(r"[a-z][a-z0-9]{0,11}", value):
        raise ImproperlyConfigured(
            f"{name} is {value!r}: write 1 to 12 lower-case letters and digits, a letter first, such as {default}."
        )
    return value


def envsubject(name: str) -> str:
    """A value of a subject at the authority, such as a tenant's id or a feature's name; it has no default."""
    raw = envstr(name)
    if raw and not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?", raw):
        raise ImproperlyConfigured(
            f"{name} is {raw!r}: write 1 to 128 of A-Z a-z 0-9 _ . - with no sign at either end."
        )
    return raw


def envkey(name: str) -> str:
    """A key that a header says after `Bearer`, and so without spaces. No refusal quotes it."""
    key = _for_a_header(name, envstr(name))
    if " " in key:
        raise ImproperlyConfigured(f"{name} is no key: write it without spaces, and without the word Bearer.")
    return key


def envsecretkey(name: str) -> str:
    """A secret that is all of a header."""
    return _for_a_header(name, envsecret(name))


def _for_a_header(name: str, key: str) -> str:
    """A line break would end the header, and nothing but ASCII is sure to arrive."""
    if not key.isascii() or not key.isprintable():
        raise ImproperlyConfigured(f"{name} is no key: write it in one line and in ASCII.")
    return key


def envsealingkey(name: str) -> str:
    """A secret of 32 bytes in URL-safe base64, as Fernet makes them."""
    value = envsecret(name)
    try:
        good = len(base64.b64decode(value, altchars=b"-_", validate=True)) == 32
    except ValueError:
        good = False
    if not good:
        raise ImproperlyConfigured(f"{name} must be 32 bytes in URL-safe base64, as Fernet.generate_key() makes them.")
    return value


def envprices(name: str) -> dict[str, dict[str, int]]:
    """Prices by model: `{"m": {"input": 0.15, "output": "0.60"}}`, USD per million tokens; `cached_input` and
    `reasoning` may stand beside.

    Returns microcents per million tokens. Decimals are read exactly, never as floats; what is not a whole
    number of microcents, negative or missing is refused, for an unpriced side is an unlimited one.
    """
    return envtable(name, _price, number=Decimal, example='{"gpt-4o-mini": {"input": 0.15, "output": 0.60}}')


def envtable(
    name: str, read: Callable[[str, Any], dict[str, Any]], *, example: str, number: Callable[[str], Any] | None = None
) -> dict[str, dict[str, Any]]:
    """A JSON object, each of its entries as `read(key, given)` returns it; `number` reads numbers, else json does.

    `read` refuses by ValueError, whose words must quote no secret. json's own words quote nothing of the text.
    """
    raw = envstr(name)
    if not raw:
        return {}
    try:
        table = json.loads(raw, parse_float=number, parse_int=number, object_pairs_hook=_once)
        if not isinstance(table, dict):
            raise TypeError("it is no object")
        # They stand in lists and answers of ours: one that cannot be written there would break all of these.
        if not all(1 <= len(key) <= LONGEST_NAME and key.isprintable() and key == key.strip() for key in table):
            raise ValueError(f"each name in it has 1 to {LONGEST_NAME} printable letters, with no space at either end")
        return {key: read(key, given) for key, given in table.items()}
    except ArithmeticError:
        # Decimal's own words are the name of a class.
        raise ImproperlyConfigured(f"{name} has a number that is too large: write JSON such as {example}.") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise ImproperlyConfigured(f"{name} cannot be read ({exc}): write JSON such as {example}.") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands there twice")
    return table


def _price(model: str, sides: Any) -> dict[str, int]:
    # One misspelt is a price not set.
    if not isinstance(sides, dict) or not {"input", "output"} <= set(sides) <= _SIDES:
        raise ValueError(f"{model} needs input and output, may have cached_input and reasoning, and nothing else")
    return {side: _microcents(f"{model}, {side}", value) for side, value in sides.items()}


_SIDES = {"input", "output", "cached_input", "reasoning"}


def _microcents(what: str, usd: Any) -> int:
    try:
        if isinstance(usd, bool) or not isinstance(usd, Decimal | str):
            raise TypeError
        amount = Decimal(usd) * MICROCENTS_PER_USD
    except Overflow:
        raise ValueError(f"{what}: {usd} is no price: at least 0, at most 8 decimals") from None
    except (TypeError, InvalidOperation):
        raise ValueError(f"{what}: {usd!r} is no number of USD") from None
    if not amount.is_finite() or amount < 0 or amount != amount.to_integral_value() or amount > 10**15:
        raise ValueError(f"{what}: {usd} is no price: at least 0, at most 8 decimals")
    return int(amount)


RATES = ("requests", "tokens", "concurrent")
MOST_RATE = 1_000_000_000


def envrates(name: str) -> dict[str, int]:
    """How much a key may ask for: `{"requests": 60, "tokens": 100000, "concurrent": 10}`, the first two a minute.

    What is left out has no limit. A name misspelt is a limit not set, so it is refused.
    """
    raw = envstr(name)
    if not raw:
        return {}
    try:
        rates = json.loads(raw, object_pairs_hook=_once)
        if not isinstance(rates, dict):
            raise TypeError("it is no object")
        for rate, figure in rates.items():
            if rate not in RATES:
                raise ValueError(f"{rate[:40]} is none of {', '.join(RATES)}")
            if type(figure) is not int or not 1 <= figure <= MOST_RATE:
                raise ValueError(f"{rate} must be a whole number from 1 to {MOST_RATE}")
    except (ValueError, TypeError, RecursionError) as exc:
        example = '{"requests": 60, "tokens": 100000, "concurrent": 10}'
        raise ImproperlyConfigured(f"{name} cannot be read ({exc}): write JSON such as {example}.") from None
    return dict(rates)


def envdialects(name: str) -> dict[str, dict[str, Any]]:
    """How models are spoken to: `{"m": {"max_tokens_name": "max_completion_tokens", "idle_seconds": 120}}`.

    Each key may be left out; an unknown one is refused, for a setting misspelt is a setting not made. No refusal
    quotes the value: it may hold a key.
    """
    return envtable(name, _dialect, example='{"some-model": {"max_tokens_name": "max_completion_tokens"}}')


def _dialect(model: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"{model[:40]} must have an object")
    for key, value in given.items():
        if key not in _DIALECT:
            raise ValueError(f"{key[:40]} is none of {', '.join(_DIALECT)}")
        is_good, wanted = _DIALECT[key]
        if not is_good(value):
            raise ValueError(f"{key} must be {wanted}")
    if "base_url" in given:
        return {**given, "base_url": given["base_url"].rstrip("/")}
    return dict(given)


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 3600


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name.strip() for name in value)


_MAX_TOKENS_NAMES = ("max_tokens", "max_completion_tokens")
_DIALECT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_tokens_name": (lambda value: value in _MAX_TOKENS_NAMES, " or ".join(_MAX_TOKENS_NAMES)),
    "stream_options": (_is_bool, "true or false"),
    "temperature": (_is_bool, "true or false"),
    "first_byte_seconds": (_is_seconds, "seconds from above 0 to 3600"),
    "idle_seconds": (_is_seconds, "seconds from above 0 to 3600"),
    "bills_after_cut": (_is_bool, "true or false"),
    "base_url": (lambda value: isinstance(value, str) and _is_url(value), "an address such as http://localhost:8000"),
    # It stands in a header: a line break within would end it.
    "api_key": (
        lambda value: isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value,
        "a key's text, without spaces",
    ),
    "extra_fields": (_is_names, "a list of names of fields"),
    "hosted_tools": (_is_names, "a list of types of tools"),
    "image_tokens": (lambda value: type(value) is int and 0 < value <= 1_000_000, "tokens from 1 to 1000000"),
}
