"""Work on other threads, inside the tenant that it was started in.

A new thread has no context variables and a connection of its own, on public. What is started here carries all of the
starter's context, enters its tenant on the thread, and leaves the thread without a connection. Starts nothing itself.

    with TenantExecutor(4) as threads:
        threads.map(write_letter, members)

    threading.Thread(target=carrying(write_letters)).start()
    await asyncio.to_thread(carrying(write_letter), member)
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import ParamSpec, TypeVar

from django.db import connections

from tenants.context import public_scope, tenant_or_public, tenant_scope

P = ParamSpec("P")
T = TypeVar("T")


def carrying(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, to be called on another thread as if here. Raises NoContext where nothing is bound to carry.

    Its connections are closed when it ends: the thread may never be used again, or for another tenant.
    """
    tenant, context = tenant_or_public(), copy_context()

    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with public_scope() if tenant is None else tenant_scope(tenant):
                return function(*args, **kwargs)
        finally:
            connections.close_all()

    def there(*args: P.args, **kwargs: P.kwargs) -> T:
        # A copy each: a context can be entered once at a time, and two calls must not see each other's variables.
        return context.copy().run(inside, *args, **kwargs)

    return there


class TenantExecutor(ThreadPoolExecutor):
    """A ThreadPoolExecutor whose every call works for the tenant that submitted it. `map` submits, so it does, too."""

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return super().submit(carrying(function), *args, **kwargs)
