"""Which tenant the running code works for, as a context variable.

Owns `current_tenant` and `tenant_scope`. The connection follows the variable, never the other way round: on another
thread or after a close the connection says `public`, and code that believed it served the wrong customer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from django.db import DEFAULT_DB_ALIAS, connection
from django_tenants.utils import get_public_schema_name

if TYPE_CHECKING:
    from tenants.models import Tenant

_current: ContextVar[Tenant | None] = ContextVar("current_tenant", default=None)


def current_tenant() -> Tenant | None:
    """The tenant bound here, or None on the bare host, in a command, or in a bare thread."""
    return _current.get()


def bind(tenant: Tenant | None) -> None:
    """Bind the variable alone, for the plane: on its loop there is no connection that could follow."""
    _current.set(tenant)


def enter(tenant: Tenant | None, *, alone: bool = False) -> None:
    """Bind `tenant` (None: the public schema) until told otherwise. For the middleware; others use tenant_scope.

    `alone` leaves public out of the search path: a table that the tenant's schema lacks is then an error, and not
    public's table of the same name.
    """
    bind(tenant)
    if tenant is None:
        connection.set_schema_to_public()  # type: ignore[attr-defined]  # django-tenants adds both
    else:
        connection.set_tenant(tenant, include_public=not alone)  # type: ignore[attr-defined]


class WrongSchema(RuntimeError):
    """The code works for a tenant, and its connection would show another schema's rows: public's, on a lent thread."""


def refuse_another_schema(connection: Any, **kwargs: Any) -> None:
    """Told of each connection that Django opens. Django's async ORM works on a thread that was never entered: it would
    answer with public's rows, and a count of them looks like an answer.
    """
    tenant = current_tenant()
    if tenant is not None and connection.alias == DEFAULT_DB_ALIAS and connection.schema_name != tenant.schema_name:
        connection.close()
        raise WrongSchema(
            "This thread is not inside the tenant that is bound. Use tenant_scope() around a sync function, or "
            "billing.engine.fetch with the schema named."
        )


@contextmanager
def tenant_scope(tenant: Tenant, *, alone: bool = False) -> Iterator[None]:
    """Work for `tenant` within the block, then for whoever it was before.

    Keep the block short and never hold it across a `yield`: the consumer's code would run as this tenant.
    """
    before = _current.get()
    was_public = connection.schema_name == get_public_schema_name()  # type: ignore[attr-defined]
    enter(tenant, alone=alone)
    try:
        yield
    finally:
        # A thread that was lent the variable alone (asyncio.to_thread) goes back as it came: left inside this tenant,
        # it would show these rows to whoever is next on it.
        enter(None if was_public else before)
        bind(before)
