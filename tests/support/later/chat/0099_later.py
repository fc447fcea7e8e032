"""Drops what the migrations before it have named, fills a table, and then alters that very table."""

from datetime import UTC, datetime

from django.db import migrations, models


def add_a_conversation(apps, schema_editor):
    owner = apps.get_model("users", "User").objects.create(email="made@by.a.migration")
    # The database's own default would be another moment each time it is replayed.
    apps.get_model("chat", "Conversation").objects.create(
        owner=owner, title="100 % of what a tenant begins with", active_at=datetime(2026, 11, 28, tzinfo=UTC)
    )


class Migration(migrations.Migration):
    dependencies = [("chat", "0009_search_words"), ("users", "0002_key_shown_once")]

    operations = [
        migrations.RemoveIndex("conversation", "conversation_active"),
        migrations.AddField("conversation", "note", models.TextField(default="", unique=False)),
        migrations.RunPython(add_a_conversation, migrations.RunPython.noop),
    ]
