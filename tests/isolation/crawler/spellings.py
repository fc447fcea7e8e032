"""The ways to name a workspace in a request: its host in all its forms, the header, and what proxies and clients add.

Makes no request. `names` is what a request really names; forged headers name nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from django.conf import settings

from tenants.hosts import host_for


@dataclass(frozen=True)
class Spelling:
    name: str
    host: str
    headers: dict[str, str] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    # Of the server's environment rather than of a header; web's door alone has one.
    script_name: str = ""

    def __str__(self) -> str:
        return self.name


def spellings(here: str, other: str) -> list[Spelling]:
    """All ways to name `here`, with `other` where two can be named. First the plain host, the bare host, its header."""
    host, foreign, bare = host_for(here), host_for(other), settings.BASE_DOMAIN
    ours, both, nobody = frozenset({here}), frozenset({here, other}), frozenset[str]()
    named, disagreeing = {"x-tenant-id": here}, {"x-tenant-id": other}
    return [
        Spelling("plain host", host, names=ours),
        Spelling("bare host", bare, names=nobody),
        Spelling("bare host with X-Tenant-ID", bare, named, ours),
        Spelling("upper case", host.upper(), names=ours),
        Spelling("trailing dot", f"{host}.", names=ours),
        Spelling("port", f"{host}:8000", names=ours),
        Spelling("www.", f"www.{host}", names=ours),
        Spelling("bare host with the neighbour's X-Tenant-ID", bare, disagreeing, frozenset({other})),
        Spelling("host and X-Tenant-ID agree", host, named, ours),
        Spelling("host and X-Tenant-ID disagree", host, disagreeing, both),
        Spelling("neighbour's host with our X-Tenant-ID", foreign, named, both),
        # A server joins what comes twice.
        Spelling("X-Tenant-ID twice on the bare host", bare, {"x-tenant-id": f"{here},{other}"}, both),
        Spelling("X-Tenant-ID twice", host, {"x-tenant-id": f"{here},{other}"}, both),
        Spelling("X-Forwarded-Host", host, {"x-forwarded-host": foreign, "forwarded": f"host={foreign}"}, ours),
        Spelling("X-HTTP-Method-Override", host, {"x-http-method-override": "DELETE"}, ours),
        Spelling("X-Original-URL", host, {"x-original-url": f"http://{foreign}/", "x-rewrite-url": "/"}, ours),
        Spelling("SCRIPT_NAME", host, names=ours, script_name="/c"),
    ]
