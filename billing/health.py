"""Do both planes of the authority answer, is the demo there, do jobs run? A sentence when not, None when so."""

from __future__ import annotations

from datetime import timedelta

import httpx
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connection
from django.db.models import QuerySet
from django.db.models.functions import Now

from billing.keys import unseal
from billing.models import Account, Process
from tenants.context import public_scope
from tenants.hosts import host_for

DEMO_SLUG = "demo"
JOBS = "jobs"  # the kind of the jobs process; it writes its row every 5 s
SILENT_SECONDS = 15
_PLANES = {"runtime": "CYCLES_BASE_URL", "admin": "CYCLES_ADMIN_URL"}


def authority_ready() -> str | None:
    for plane, setting in _PLANES.items():
        try:
            url = f"{getattr(settings, setting)}/actuator/health/readiness"
            answer = httpx.get(url, timeout=1.0, trust_env=False)
        except httpx.HTTPError:
            return f"authority: its {plane} plane does not answer"
        if answer.status_code != 200:
            return f"authority: its {plane} plane is not ready"
    return None


def keys_ready() -> str | None:
    """One account's key stands for all: they were sealed under one."""
    try:
        with public_scope():
            sealed = Account.objects.exclude(sealed_key="").order_by("-pk").values_list("sealed_key", flat=True).first()
        if sealed is not None:
            unseal(sealed)
    except DatabaseError:
        return "accounts: the database does not answer"
    except ImproperlyConfigured:
        return "accounts: KEY_SEALING_KEY is not the one under which their keys were sealed"
    finally:
        connection.close()
    return None


def demo_accounts() -> QuerySet[Account]:
    """By its address, which leads to it under whatever name it has now."""
    return Account.objects.filter(tenant__domains__domain=host_for(DEMO_SLUG))


def demo_ready() -> str | None:
    """Under `make run` the demo workspace is part of being ready."""
    if not settings.EXPECT_DEMO:
        return None
    try:
        with public_scope():
            # Deleted by its owner it is as it should be, too.
            ready = demo_accounts().exclude(status=Account.Status.PENDING).exists()
    except DatabaseError:
        return "demo: the database does not answer"
    finally:
        connection.close()
    return None if ready else "demo: the workspace is not set up yet"


def jobs_ready() -> str | None:
    """Some jobs process is alive: without one, interrupted sign-ups and what dead processes left stay as they are."""
    try:
        with public_scope():
            seen = Process.objects.filter(kind=JOBS, seen_at__gte=Now() - timedelta(seconds=SILENT_SECONDS)).exists()
    except DatabaseError:
        return "jobs: the database does not answer"
    finally:
        connection.close()
    return None if seen else f"jobs: no process has been seen for {SILENT_SECONDS} s"


keys_ready.asks_the_database = demo_ready.asks_the_database = True  # type: ignore[attr-defined]
jobs_ready.asks_the_database = True  # type: ignore[attr-defined]
