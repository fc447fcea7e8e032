"""Which tenant the running code works for, as a context variable.

Owns `current_tenant`, `tenant_scope` and `public_scope`, and refuses the database to code that would read rows it does
not mean. The connection follows the variable, never the other way round: on another thread or after a close the
connection says `public`, and code that believed it served the wrong customer.

The variable has three states: a tenant; None, which says that public is meant (the bare host, a command, a job without
a tenant); and unbound, on a thread that nobody told anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from django.db import connection
from django_tenants.utils import get_public_schema_name

if TYPE_CHECKING:
    from tenants.models import Tenant


class _State(Enum):
    UNBOUND = "unbound"


_UNBOUND: Literal[_State.UNBOUND] = _State.UNBOUND
_current: ContextVar[Tenant | Literal[_State.UNBOUND] | None] = ContextVar("current_tenant", default=_UNBOUND)


class WrongSchema(RuntimeError):
    """The code works for a tenant, and its connection would show another schema's rows: public's, on a lent thread."""


class NoContext(RuntimeError):
    """Nothing says whose work this is. Such a thread's connection shows public's rows, and they look like an answer."""

    def __init__(self) -> None:
        super().__init__(
            "Nothing says which tenant this code works for: it runs on a thread that was started without its own, or "
            "makes a stream after its request's tenant was left, or is MIDDLEWARE above "
            "tenants.middleware.TenantMiddleware. Start threads with tenants.threads.TenantExecutor or carrying(); or "
            "enter tenant_scope(tenant) there, or public_scope() where the public schema is meant."
        )


def current_tenant() -> Tenant | None:
    """The tenant bound here, or None on the bare host, in a command, or in a bare thread."""
    bound = _current.get()
    return None if bound is _UNBOUND else bound


def tenant_or_public() -> Tenant | None:
    """current_tenant(), where None is used as the public side: raises NoContext in a bare thread."""
    bound = _current.get()
    if bound is _UNBOUND:
        raise NoContext
    return bound


def bind(tenant: Tenant | None) -> None:
    """Bind the variable alone, for the plane: on its loop there is no connection that could follow."""
    _current.set(tenant)


def enter(tenant: Tenant | None, *, alone: bool = False) -> None:
    """Bind `tenant` (None: the public schema) until told otherwise. For the middleware; others use the scopes below.

    `alone` leaves public out of the search path: a table that the tenant's schema lacks is then an error, and not
    public's table of the same name.
    """
    bind(tenant)
    if tenant is None:
        connection.set_schema_to_public()  # type: ignore[attr-defined]  # django-tenants adds both
    else:
        connection.set_tenant(tenant, include_public=not alone)  # type: ignore[attr-defined]


def is_bound() -> bool:
    """Whether to a tenant, or to public on purpose."""
    return _current.get() is not _UNBOUND


def leave(*, unbound: bool) -> None:
    """Back on public; and with `unbound` for nobody, as on a thread that nobody told anything."""
    enter(None)
    if unbound:
        _current.set(_UNBOUND)


def refuse_another_schema(connection: Any) -> None:
    """Called before each statement of Django's (tenants.backend).

    Bare threads, and Django's async ORM, work on connections that were never entered: they would answer with public's
    rows, and a count of them looks like an answer.
    """
    bound = _current.get()
    if bound is None:
        return
    if bound is _UNBOUND:
        raise NoContext
    if connection.schema_name != bound.schema_name:
        raise WrongSchema(
            "This thread's connection is not inside the tenant that is bound. Call it by tenants.threads.carrying(), "
            "enter tenant_scope() around a sync function, or use billing.engine.fetch with the schema named."
        )


@contextmanager
def tenant_scope(tenant: Tenant, *, alone: bool = False) -> Iterator[None]:
    """Work for `tenant` within the block, then for whoever it was before.

    Keep the block short and never hold it across a `yield`: the consumer's code would run as this tenant. A queryset
    is asked where it is read, not where it is made, so read it inside.
    """
    with _scope(tenant, alone=alone):
        yield


@contextmanager
def public_scope() -> Iterator[None]:
    """Work on the public schema within the block, on purpose. For threads of yours that serve no tenant."""
    with _scope(None):
        yield


def unbound(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The parts of a stream, each made with nothing bound: its tenant has been left by then, and a generator that goes
    on asking the database would be answered with public's rows.
    """
    there = iter(parts)
    while True:
        with _nothing_bound():
            try:
                part = next(there)
            except StopIteration:
                return
        yield part


async def unbound_async(parts: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same of an async stream, which Django reads on a loop of its own."""
    there = aiter(parts)
    try:
        while True:
            with _nothing_bound():
                try:
                    part = await anext(there)
                except StopAsyncIteration:
                    return
            yield part
    finally:
        # Django closes what it was given, which is this one.
        if (aclose := getattr(there, "aclose", None)) is not None:
            with _nothing_bound():
                await aclose()


@contextmanager
def _nothing_bound() -> Iterator[None]:
    before = _current.get()
    _current.set(_UNBOUND)
    try:
        yield
    finally:
        _current.set(before)


@contextmanager
def _scope(tenant: Tenant | None, *, alone: bool = False) -> Iterator[None]:
    before = _current.get()
    was_public = connection.schema_name == get_public_schema_name()  # type: ignore[attr-defined]
    enter(tenant, alone=alone)
    try:
        yield
    finally:
        # A thread that was lent the variable alone (asyncio.to_thread) goes back as it came: left inside this tenant,
        # it would show these rows to whoever is next on it.
        enter(None if was_public or before is _UNBOUND else before)
        _current.set(before)
