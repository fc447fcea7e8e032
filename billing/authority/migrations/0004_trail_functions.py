"""The money operations tell what happened: they take the request's context and write events beside their rows."""

from __future__ import annotations

from importlib import import_module

from django.db import migrations

install = import_module("billing.authority.migrations.0002_functions").install


class Migration(migrations.Migration):
    dependencies = [("authority", "0003_trail")]

    operations = [migrations.RunPython(install, migrations.RunPython.noop)]
