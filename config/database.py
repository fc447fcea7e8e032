"""Which database this process connects to, and as whom.

Owns the two roles' addresses and how one becomes Django's entry. Starts nothing, and must not import Django's settings
(they import this) nor any app.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

from config.env import envstr, state_dir

# Of every connection by TCP. A server whose machine dies, or that a failover leaves behind, says no word: TCP asks
# after it in two hours, and until then whoever waits for an answer keeps a place of the pool, though another server
# answers long since. It is given up before a process that cannot say that it lives is taken for dead (the engine's
# SILENT_SECONDS): its calls would be swept under it. What DATABASE_URL says of these goes before.
NOTICED_WHEN_DEAD = {
    "connect_timeout": "5",
    "keepalives_idle": "4",
    "keepalives_interval": "2",
    "keepalives_count": "2",
    "tcp_user_timeout": "8000",
}

_is_owner = False


def act_as_owner() -> None:
    """Connect as the role that owns the tables. manage.py says so for its commands, before settings are read.

    Whoever says nothing, such as web and plane, gets the narrow role: a server of a builder's own is then no owner by
    oversight.
    """
    global _is_owner
    _is_owner = True


def embedded_database() -> bool:
    return not envstr("DATABASE_URL")


def database_url() -> str:
    """Of this process, by its role. Computes only: nothing is started."""
    return owner_database_url() if _is_owner else serving_database_url()


def serving_database_url() -> str:
    """DATABASE_URL, else the address of the embedded server."""
    if url := envstr("DATABASE_URL"):
        return url
    if envstr("DATABASE_OWNER_URL"):
        raise ImproperlyConfigured("DATABASE_URL is not set: with DATABASE_OWNER_URL given, write web's and plane's.")
    from config.stack.postgres import serving_embedded_url  # the laptop's; production sets DATABASE_URL

    return serving_embedded_url(state_dir())


def owner_database_url() -> str:
    """DATABASE_OWNER_URL; where there is none, one role does everything. Or the address of the embedded server."""
    if url := envstr("DATABASE_OWNER_URL") or envstr("DATABASE_URL"):
        return url
    from config.stack.postgres import embedded_database_url

    return embedded_database_url(state_dir())


def serving_role() -> str:
    """The narrow role of web and plane, which the owner grants what they need; empty where the owner serves."""
    if not (embedded_database() or envstr("DATABASE_OWNER_URL")):
        return ""
    web, command = database_from_url(serving_database_url()), database_from_url(owner_database_url())
    if web["NAME"] != command["NAME"]:
        raise ImproperlyConfigured(
            f"DATABASE_URL names the database {web['NAME']!r} and DATABASE_OWNER_URL {command['NAME']!r}: write one, "
            "or web serves another than the commands migrate."
        )
    serving, owner = web["USER"], command["USER"]
    if not serving:
        raise ImproperlyConfigured("DATABASE_URL names no user: with DATABASE_OWNER_URL given, write whom web is.")
    return "" if serving == owner else str(serving)


def database_from_url(url: str) -> dict[str, Any]:
    """The entry for `DATABASES`, without an engine.

    `postgresql://user:password@host:port/name?host=/socket/dir&sslmode=require`; what stands in the query and
    is not `host` goes to psycopg as it is.
    """
    try:
        parts = urlsplit(url)
        port = str(parts.port or "")
    except ValueError:
        parts, port = urlsplit(""), ""
    database = unquote(parts.path.lstrip("/"))
    if parts.scheme not in {"postgres", "postgresql"} or not database:
        raise ImproperlyConfigured(
            "DATABASE_URL must read postgresql://user:password@host:5432/name, and so must DATABASE_OWNER_URL."
        )
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    return {
        "NAME": database,
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": query.pop("host", None) or unquote(parts.hostname or ""),
        "PORT": port,
        "OPTIONS": query,
    }
