"""The addresses: every pattern of the three urlconfs, whatever app it is of. Asks Django alone; makes no request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import RegexPattern

from tenants.roles import Action
from tenants.users.actions import action_of, mark_of

# Served without a pattern: health, static files, what is not there.
UNROUTED = ("healthz", "readyz", "static/site.css", "nothing/", "api/nothing/")
# Served beside Django, so that no urlconf has them.
V1 = ("v1/models", "v1/chat/completions", "v1/embeddings")
_ARGUMENT = re.compile(r"<(?:\w+:)?(\w+)>")


@dataclass(frozen=True)
class Pattern:
    """One address of one door: `web` is a workspace's host, `bare` the bare host, `plane` what buys."""

    door: str
    route: str
    view: str = ""
    is_regex: bool = False
    callback: Any = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.door} /{self.route}"

    @property
    def names(self) -> list[str]:
        """Of its arguments."""
        return _ARGUMENT.findall(self.route)

    def needs(self, method: str) -> Action | None:
        """What the view says it is, of tenants.roles; an operation of an API that says nothing buys. None: a page for
        anybody, or the bare host's own.
        """
        if self.door == "bare" or self.callback is None:
            return None
        named: Action | None = mark_of(self.callback, method, "needs")
        return action_of(self.callback, method) if self.door == "plane" else named

    def path(self, args: dict[str, Any]) -> str:
        """The address with its arguments filled in."""
        return "/" + _ARGUMENT.sub(lambda found: quote(str(args[found[1]]), safe="/"), self.route)


def urlconfs() -> dict[str, str]:
    return {"web": settings.ROOT_URLCONF, "bare": settings.PUBLIC_SCHEMA_URLCONF, "plane": settings.PLANE_URLCONF}


def patterns() -> list[Pattern]:
    found = [one for door, conf in urlconfs().items() for one in _walk(door, get_resolver(conf).url_patterns)]
    return list(dict.fromkeys(found))


def unrouted() -> list[Pattern]:
    return [Pattern("web", route) for route in UNROUTED] + [Pattern("plane", route) for route in V1]


def _walk(door: str, entries: Iterable[Any], before: str = "", is_regex: bool = False) -> Iterator[Pattern]:
    for entry in entries:
        route = before + str(entry.pattern)
        of_regex = is_regex or isinstance(entry.pattern, RegexPattern)
        if isinstance(entry, URLResolver):
            yield from _walk(door, entry.url_patterns, route, of_regex)
        elif isinstance(entry, URLPattern):
            yield Pattern(door, route, _name_of(entry.callback), of_regex, entry.callback)


def _name_of(view: Any) -> str:
    view = getattr(view, "func", view)  # ninja's are partials
    return f"{view.__module__}.{getattr(view, '__qualname__', type(view).__name__)}"
