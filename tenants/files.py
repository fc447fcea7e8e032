"""Where uploads live: each tenant's in a folder of its own.

Owns the default storage. Must not decide who may read a file: a view of yours does.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files.storage import FileSystemStorage
from django.urls import reverse

from tenants.context import current_tenant
from tenants.models import Tenant


class NoFileHere(RuntimeError):
    """A tenant's file was asked for outside any tenant, or by an address that no view answers."""


class TenantFiles(FileSystemStorage):
    """Files below `location`, in a folder by the name of the bound tenant's schema, which is never used twice.

    Names lead nowhere else: Django refuses one that leaves the folder. Outside a tenant everything raises. `view` names
    the pattern in config/urls.py that takes `name`, checks who asks, and sends the file; without one there are no
    addresses. Never let a proxy serve the folder: it knows no members.
    """

    keeps_tenants_apart = True

    def __init__(self, *args: Any, view: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.view = view

    @property
    def location(self) -> str:  # Django keeps it for ever, of whichever tenant came first
        tenant = current_tenant()
        if tenant is None:
            raise NoFileHere(
                "Files of the default storage are a tenant's: enter tenant_scope(tenant), or give files of the public "
                "side a storage of their own in STORAGES."
            )
        return str(Path(self.base_location).absolute() / tenant.schema_name)

    def url(self, name: str | None) -> str:
        if self.view is None:
            raise NoFileHere(
                "No view serves files. Write one that checks who asks, and name its pattern as `view` in the OPTIONS "
                "of the storage (README, Files)."
            )
        return reverse(self.view, settings.ROOT_URLCONF, kwargs={"name": name})

    def forget_tenant(self, tenant: Tenant) -> None:
        """All files of a tenant that is purged. Safe to repeat."""
        folder = Path(self.base_location).absolute() / tenant.schema_name
        if folder.exists():
            shutil.rmtree(folder)
