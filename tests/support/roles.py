"""One database under its other roles. The fixture `database_url` is the owner's."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings

from config.database import embedded_database, serving_database_url


def serving_url(database_url: str) -> str:
    """As web and plane connect; where this run has one role for all, as that."""
    if not settings.SERVING_ROLE:
        return database_url
    return _as(urlsplit(serving_database_url()).netloc.rpartition("@")[0], database_url)


def command_variables(database_url: str) -> dict[str, str]:
    """For jobs and commands: they work as the owner, and open what they make to web and plane."""
    return {"DATABASE_URL": serving_url(database_url), "DATABASE_OWNER_URL": database_url}


def superuser_url(database_url: str) -> str | None:
    """None on a server that is not ours."""
    return _as("postgres", database_url) if embedded_database() else None


def _as(login: str, database_url: str) -> str:
    parts = urlsplit(database_url)
    return parts._replace(netloc=f"{login}@{parts.netloc.rpartition('@')[2]}").geturl()
