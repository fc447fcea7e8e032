"""Makes the demo workspace and keeps its log-in and key, readable by this user alone, in STATE_DIR."""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from billing import provisioning
from billing.health import DEMO_SLUG, demo_accounts
from billing.models import Account
from billing.plans import DEFAULT_PLAN
from tenants.context import tenant_scope
from tenants.models import Tenant
from tenants.roles import Role
from tenants.users import directory
from tenants.users.keys import create_key, digest
from tenants.users.models import ApiKey, User

EMAIL = "demo@example.com"


class Command(BaseCommand):
    help = "Make the workspace `demo` for a laptop. Safe to repeat; keeps password and key while they work."

    def handle(self, *args: Any, **options: Any) -> None:
        path = Path(settings.STATE_DIR) / "demo.json"
        kept = _read(path)
        password = kept.get("password") or secrets.token_urlsafe(12)
        account = _account() or provisioning.sign_up(
            name="Demo", slug=DEMO_SLUG, email=EMAIL, password=password, plan=DEFAULT_PLAN
        )
        try:
            while account.status == Account.Status.PENDING and not provisioning.provision(account):
                time.sleep(0.1)  # the jobs process is at it
                account.refresh_from_db(fields=["status"])
        except Exception as exc:
            raise CommandError(f"The demo workspace cannot be set up yet: {exc}") from exc
        if account.status == Account.Status.CLOSED:
            # Without an address: nothing in it works, until the workspace is reopened.
            _write(path, {**kept, "slug": ""})
            self.stdout.write("The demo workspace was deleted. To get it back: manage.py reopen_workspace demo")
            return
        with tenant_scope(account.tenant):
            key = _ensure_log_in(account.tenant, password, kept.get("api_key", ""))
        _write(path, {"slug": account.tenant.slug, "email": EMAIL, "password": password, "api_key": key})


def _account() -> Account | None:
    return demo_accounts().select_related("tenant").first()


def _ensure_log_in(tenant: Tenant, password: str, key: str) -> str:
    """The file and the database agree afterwards, whichever of the two was lost."""
    user = User.objects.filter(email=EMAIL).first() or User(email=EMAIL)
    if not user.is_active or user.pk is None:
        # Handed over and left, or moved to another address: whoever starts the site is to get in again.
        user.role, user.is_active, user.removed_at = Role.OWNER, True, None
        user.save()
        directory.note(tenant, EMAIL)
    if not user.check_password(password):
        user.set_password(password)
        user.save(update_fields=["password"])
    kept = ApiKey.objects.filter(digest=digest(key), user=user).first()
    if kept is not None and kept.is_active:
        return key
    return create_key(user, name="Demo key", via="command")[1]


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, content: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(content, file, indent=2)
    draft.replace(path)
