"""Which state of the tenants' migrations a schema is in, and which one this code wants.

Owns the fingerprint of what this code would migrate a tenant to, the number of each fingerprint, and the SQL that
compares a tenant with it. Must not migrate anything. A number says "at least this": each release has the
highest, and a schema that is newer than the code is served: a release first migrates and then replaces its processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path

from django import get_version
from django.apps import AppConfig, apps
from django.conf import settings
from django.db import connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.db.models import Exists, Model, OuterRef
from django.db.models.functions import Coalesce, Greatest
from psycopg import sql

from tenants.models import SchemaVersion, Tenant

# Whether tenant `t` can be served by code of that fingerprint. What is unknown on either side is not equal to anything.
IS_CURRENT = """EXISTS (
    SELECT 1 FROM public.tenants_schemaversion v WHERE v.fingerprint = %s AND v.id <= t.schema_version)"""

# The job that brings a tenant up to date. Plain SQL, for the plane's loop has no other way into the queue. One waits
# at a time, and one runs at a time, however many requests ask.
BEGIN_CATCHING_UP = """
    INSERT INTO public.procrastinate_jobs (queue_name, task_name, priority, lock, queueing_lock, args)
    SELECT 'default', 'tenants.tasks.catch_up', 10, name, name, jsonb_build_object('tenant', id)
    FROM (SELECT t.id, 'catch_up:' || t.id AS name FROM public.tenants_tenant t WHERE t.id = %s) AS asked
    ON CONFLICT (queueing_lock) WHERE status = 'todo' DO NOTHING RETURNING id"""


@cache
def fingerprint() -> str:
    """Of all that decides what migrating a tenant's schema makes of it.

    Files and not the loaded migrations: a changed body counts, and loading them is dear for a process that serves.
    The models stand for the content types and permissions, which migrating makes of every installed app.
    """
    digest = sha256(f"{get_version()} {version_of('django-tenants')} {settings.AUTH_USER_MODEL}".encode())
    for config in _tenant_apps():
        for path in _migration_files(config):
            digest.update(f"\n{config.label} {path.name}\n".encode())
            digest.update(path.read_bytes())
    for model in _models_of_every_process():
        meta = model._meta
        digest.update(f"\n{meta.label} {meta.default_permissions} {meta.permissions} {meta.verbose_name_raw}".encode())
    return digest.hexdigest()


def _models_of_every_process() -> Iterator[type[Model]]:
    """A model that stands beside a view is there only where the view is: web would wait for a state that no command
    can ever migrate to.
    """
    for config in apps.get_app_configs():
        if config.models_module is not None:
            name = config.models_module.__name__
            yield from (each for each in config.get_models() if f"{each.__module__}.".startswith(f"{name}."))


def _tenant_apps() -> list[AppConfig]:
    """As the router of django-tenants understands TENANT_APPS: an app's name, or its AppConfig's path."""
    named = set(settings.TENANT_APPS)
    return [
        config
        for config in apps.get_app_configs()
        if {config.name, f"{type(config).__module__}.{type(config).__name__}"} & named
    ]


def _migration_files(config: AppConfig) -> list[Path]:
    """All that lies in the app's package of migrations: one may read its SQL or its data from a file beside it."""
    module, _ = MigrationLoader.migrations_module(config.label)
    if module is None:
        return []
    try:
        folders = import_module(module).__path__
    except ModuleNotFoundError:  # an app without migrations
        return []
    found = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    return sorted(path for path in found if "__pycache__" not in path.parts and not path.name.startswith("."))


def ensure_version() -> SchemaVersion:
    """This code's, with its number. For who is about to migrate to it."""
    return SchemaVersion.objects.get_or_create(fingerprint=fingerprint())[0]


def begin_release() -> SchemaVersion:
    """This code's, with the highest number of all. For who brings every tenant to it.

    Other code may have migrated since this one did, after a rollback or from another branch. What it signed up has a
    higher number, and lacks what only this code has.
    """
    version = ensure_version()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            """UPDATE public.tenants_schemaversion SET id = nextval(pg_get_serial_sequence(%s, 'id'))
            WHERE id = %s AND id < (SELECT max(id) FROM public.tenants_schemaversion)""",
            ["public.tenants_schemaversion", version.pk],
        )
    return ensure_version()


def is_numbered() -> bool:
    """Whether any process has migrated to this code's state. If not, it serves no tenant."""
    return SchemaVersion.objects.filter(fingerprint=fingerprint()).exists()


def is_current() -> Exists:
    """IS_CURRENT, for queries of tenants."""
    return Exists(SchemaVersion.objects.filter(fingerprint=fingerprint(), pk__lte=OuterRef("schema_version")))


def begin_catching_up(tenant_id: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(BEGIN_CATCHING_UP, [tenant_id])


def note(tenant: Tenant, version: int | None) -> None:
    """In the caller's transaction."""
    Tenant.objects.filter(pk=tenant.pk).update(schema_version=version)


def note_migrated(schema_name: str) -> None:
    """The schema has all that this code wants. It may have more: then its number is higher, and stays."""
    wanted = ensure_version().pk
    Tenant.objects.filter(schema_name=schema_name).update(
        schema_version=Greatest(Coalesce("schema_version", wanted), wanted)
    )


def note_unknown(schema_name: str) -> None:
    """Somebody moved the schema to a state of their own choice: it is not served before it is migrated again."""
    Tenant.objects.filter(schema_name=schema_name).update(schema_version=None)


def has_all_migrations(schema_name: str) -> bool:
    """Whether every migration of the tenants' apps is applied in the schema, asked of the schema itself."""
    labels = {config.label for config in _tenant_apps()}
    wanted = {key for key in MigrationLoader(None).graph.nodes if key[0] in labels}
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("SELECT app, name FROM {}.django_migrations").format(sql.Identifier(schema_name)))
        return wanted <= set(cursor.fetchall())
