"""Configurations under which tenants would meet are refused before anything serves them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tenants.checks import (
    members_can_go,
    shared_rows_are_shared_on_purpose,
    tenants_tables_refer_to_their_own,
)

ROOT = Path(__file__).resolve().parents[2]


def test_an_app_with_models_is_not_shared_by_a_line_in_a_list(settings):
    assert shared_rows_are_shared_on_purpose(None) == []
    settings.SHARED_APPS = [*settings.SHARED_APPS, "chat"]
    assert shared_rows_are_shared_on_purpose(None) == []  # in each schema, too: a tenant's request meets its own
    settings.TENANT_APPS = [name for name in settings.TENANT_APPS if name != "chat"]
    (error,) = shared_rows_are_shared_on_purpose(None)
    assert error.id == "tenants.E006"
    assert "chat is in SHARED_APPS and has models (Conversation, Message, SavedPrompt, Attachment):" in error.msg
    assert "SHARED_ON_PURPOSE" in error.hint
    settings.SHARED_ON_PURPOSE = [*settings.SHARED_ON_PURPOSE, "chat.apps.ChatConfig"]
    assert shared_rows_are_shared_on_purpose(None) == []


def test_a_tenants_table_that_refers_to_a_shared_row_is_named(settings):
    assert tenants_tables_refer_to_their_own(None) == []
    # As if the people were all tenants' own business: what refers to them would leave its schema.
    settings.TENANT_APPS = [name for name in settings.TENANT_APPS if name != "tenants.users"]
    found = tenants_tables_refer_to_their_own(None)
    assert {warning.id for warning in found} == {"tenants.W003"}
    assert any("chat.Conversation.owner refers from each tenant's schema to users.User" in one.msg for one in found)


def test_a_function_for_members_who_go_that_is_not_there_is_refused_before_anybody_goes(settings):
    assert members_can_go(None) == []
    settings.ON_MEMBER_GONE = ["tenants.checks.members_can_go", "notes.gone.forget", "tenants.checks.forget", "forget"]
    assert [(error.id, error.msg.partition(",")[0]) for error in members_can_go(None)] == [
        ("tenants.E010", f"ON_MEMBER_GONE names {name!r}") for name in settings.ON_MEMBER_GONE[1:]
    ]


TEXT = "text = models.TextField()"
MADE_BY = "made_by = models.ForeignKey('users.User', models.CASCADE)"
READERS = "readers = models.ManyToManyField('users.User')"
OF_ALL = "SHARED_APPS.append('notes'); SHARED_ON_PURPOSE.append('notes')"


@pytest.mark.parametrize(
    ("field", "lists", "said"),
    [
        (TEXT, "SHARED_APPS.append('notes')", "notes is in SHARED_APPS and has models (Note)"),
        (TEXT, "", "notes has models (Note) and is neither in TENANT_APPS nor in SHARED_APPS"),
        (MADE_BY, OF_ALL, "notes.Note.made_by refers from rows that all tenants share to users.User"),
        (READERS, OF_ALL, "notes.Note_readers.user refers from rows that all tenants share to users.User"),
    ],
    ids=["shared by a line in a list", "in no list", "shared rows of a member", "shared rows of many members"],
)
def test_a_builders_app_in_the_wrong_place_is_refused_before_its_table_is_made(tmp_path, field, lists, said):
    """As both `make run` and docker-compose.yml begin."""
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "__init__.py").touch()
    (notes / "models.py").write_text(f"from django.db import models\n\nclass Note(models.Model):\n    {field}\n")
    (tmp_path / "with_notes.py").write_text(f"from config.settings import *\n{lists}\nINSTALLED_APPS.append('notes')\n")
    env = os.environ | {
        "PYTHONPATH": str(tmp_path), "DJANGO_SETTINGS_MODULE": "with_notes", "DATABASE_URL": "postgresql://u:p@h/n",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "manage.py", "migrate_schemas"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize(
    ("placed", "is_warned"),
    [("SHARED_ON_PURPOSE.append('django.contrib.admin')", True), ("TENANT_APPS.append('django.contrib.admin')", False)],
    ids=["shared alone", "on both sides, as the README says"],
)
def test_djangos_own_apps_are_for_operators_and_shared_alone_lose_rows_with_a_member(tmp_path, placed, is_warned):
    """The admin's log names the operators who changed a row: members' numbers are the same."""
    (tmp_path / "with_admin.py").write_text(
        f"from config.settings import *\nSHARED_APPS.insert(0, 'django.contrib.admin')\n{placed}\n"
        "INSTALLED_APPS.insert(0, 'django.contrib.admin')\n"
    )
    env = os.environ | {
        "PYTHONPATH": str(tmp_path), "DJANGO_SETTINGS_MODULE": "with_admin", "DATABASE_URL": "postgresql://u:p@h/n",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "manage.py", "check", "--tag", "security"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ("tenants.W004" in done.stderr) == is_warned
