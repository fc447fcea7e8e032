"""Seal the webhooks' signing secrets and the values of their headers, which lay there as they were.

The sealing is written out here: rows of this day must be sealed as they were on this day, whatever the app does later.
"""

from __future__ import annotations

import base64

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.db import migrations

# An update leaves the old row behind, readable in the file until some vacuum. A change of type, even to the same one by
# an expression, writes the table anew, without what no query sees any more.
WRITE_ANEW = "ALTER TABLE subscription ALTER COLUMN sealed_secret TYPE text USING sealed_secret || ''"


def box():
    derived = HKDF(SHA256(), length=32, salt=None, info=b"embedded authority: webhook secrets")
    return Fernet(base64.urlsafe_b64encode(derived.derive(base64.urlsafe_b64decode(settings.KEY_SEALING_KEY))))


def through(turn, apps):
    for row in apps.get_model("authority", "Subscription").objects.all():
        row.sealed_secret = turn(row.sealed_secret.encode()).decode()
        if row.sealed_headers is not None:
            row.sealed_headers = {k: turn(v.encode()).decode() for k, v in row.sealed_headers.items()}
        row.save(update_fields=["sealed_secret", "sealed_headers"])


def seal(apps, schema_editor):
    through(box().encrypt, apps)


def unseal(apps, schema_editor):
    through(box().decrypt, apps)


class Migration(migrations.Migration):
    dependencies = [("authority", "0006_leaner")]

    operations = [
        migrations.RenameField("subscription", "signing_secret", "sealed_secret"),
        migrations.RenameField("subscription", "headers", "sealed_headers"),
        migrations.RunPython(seal, unseal),
        migrations.RunSQL(WRITE_ANEW, migrations.RunSQL.noop),
    ]
