"""The database that those of the workers are copies of: migrated once, with the template of a tenant's schema.

Owns making and dropping it. Holds no tenant and no authority; who makes a test database without it migrates that one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from config.database import embedded_database, owner_database_url

VARIABLE = "TEST_TEMPLATE"  # config.settings_test reads it
NAME = "test_app_first"


@contextmanager
def made() -> Iterator[str]:
    """Its name, or an empty one where it could not be made. The embedded server must be up."""
    if not embedded_database():
        yield ""
        return
    # A process of its own: nobody may be connected to a database that is copied.
    run = subprocess.run([sys.executable, "-m", __name__], env={**os.environ, "TEST_DATABASE": NAME}, check=False)
    try:
        yield "" if run.returncode else NAME
    finally:
        with psycopg.connect(owner_database_url(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(NAME)))


def _make() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings_test"
    import django
    from django.test.utils import setup_databases

    django.setup()
    setup_databases(verbosity=0, interactive=False, aliases={"default": None})

    from tenants import schema_template, schema_versions

    schema_template.statements_for(schema_versions.ensure_version())


if __name__ == "__main__":
    _make()
