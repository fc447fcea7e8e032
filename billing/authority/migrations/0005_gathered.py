"""Install the set-wise function for what comes at the same moment."""

from __future__ import annotations

from importlib import import_module

from django.db import migrations

install = import_module("billing.authority.migrations.0002_functions").install


class Migration(migrations.Migration):
    dependencies = [("authority", "0004_trail_functions")]

    operations = [migrations.RunPython(install, migrations.RunPython.noop)]
