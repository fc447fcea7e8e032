"""Commands that work for workspaces: inside each, for active ones alone; and what stands in for django-tenants' own."""

import pkgutil
import uuid
from pathlib import Path

import django_tenants
import pytest
from django.core.management import CommandError, call_command, get_commands, load_command_class
from django.db import connection

from tenants.commands import TenantCommand
from tenants.context import current_tenant
from tenants.services import register_tenant, suspend
from tenants.users.models import User


class Note(TenantCommand):
    """Writes down where it was, and fails where it is told to."""

    def __init__(self, **failing):
        super().__init__()
        self.failing, self.seen = failing, {}

    def handle_tenant(self, tenant, **options):
        assert current_tenant() == tenant
        self.seen[tenant.slug] = (connection.schema_name, set(User.objects.values_list("email", flat=True)))
        if failure := self.failing.get(tenant.slug.replace("-", "_")):
            failure()


@pytest.fixture(autouse=True)
def _nobody_is_bound_afterwards():
    yield
    assert current_tenant() is None
    assert connection.schema_name == "public"


def lose_the_connection():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def test_it_works_inside_the_workspaces_that_are_named(acme, globex, alice, bob, workspace):
    note = Note()
    call_command(note, "--tenant", "acme", "--tenant", "globex", "--tenant", "acme")
    assert list(note.seen) == ["acme", "globex"]
    assert note.seen["acme"][0] == acme.tenant.schema_name
    for slug, own, foreign in (("acme", alice, bob), ("globex", bob, alice)):
        assert own.email in note.seen[slug][1]
        assert foreign.email not in note.seen[slug][1]


@pytest.mark.parametrize(
    "failure",
    [lambda: 1 / 0, lambda: User.objects.raw("SELECT nonsense")[0], lose_the_connection],
    ids=["bug", "sql", "lost"],
)
def test_one_that_fails_stops_no_other_and_is_named_at_the_end(acme, globex, alice, bob, failure):
    note = Note(acme=failure)
    with pytest.raises(CommandError, match=r"^Failed for acme; the others are done\.$"):
        call_command(note, "--tenant", "acme", "--tenant", "globex")
    assert bob.email in note.seen["globex"][1]


def test_all_means_the_active_ones(acme, globex, workspace):
    suspend(workspace.tenant)
    pending = register_tenant(f"pending-{uuid.uuid4().hex[:8]}", name="Pending")
    note = Note(acme=lambda: 1 / 0)
    with pytest.raises(CommandError, match="acme"):  # and what other tests have left behind without a schema
        call_command(note, "--all")
    assert {"acme", "globex"} <= note.seen.keys()
    assert not {workspace.slug, pending.slug} & note.seen.keys()
    for slug in (workspace.slug, pending.slug, "no-such", acme.tenant.schema_name):
        with pytest.raises(CommandError, match=f"^There is no active workspace {slug}"):
            call_command(note, "--tenant", "acme", "--tenant", slug)


def test_one_that_is_suspended_meanwhile_is_left_out(workspace, acme):
    note = Note(acme=lambda: suspend(workspace.tenant))
    call_command(note, "--tenant", "acme", "--tenant", workspace.slug)
    assert list(note.seen) == ["acme"]


def test_without_its_schema_a_workspace_fails_instead_of_showing_publics_rows(app):
    from tenants.models import Tenant

    tenant = register_tenant(f"gone-{uuid.uuid4().hex[:8]}", name="Gone")
    Tenant.objects.filter(pk=tenant.pk).update(status=Tenant.Status.ACTIVE)
    note = Note()
    with pytest.raises(CommandError, match=f"^Failed for {tenant.slug}"):
        call_command(note, "--tenant", tenant.slug)
    assert note.seen == {}


def test_a_workspace_that_is_behind_the_code_fails_and_says_what_to_run(workspace, acme, capsys):
    """A table that it does not have yet may be public's, too."""
    call_command("migrate_schemas", "users", "0001", schema_name=workspace.tenant.schema_name, verbosity=0)
    note = Note()
    with pytest.raises(CommandError, match=f"^Failed for {workspace.slug}; the others are done"):
        call_command(note, "--tenant", workspace.slug, "--tenant", "acme")
    assert list(note.seen) == ["acme"]
    assert "run `manage.py migrate_schemas` first" in capsys.readouterr().err


@pytest.mark.parametrize("which", [[], ["--all", "--tenant", "acme"]])
def test_which_workspaces_must_be_said(app, which):
    with pytest.raises(CommandError):
        call_command(Note(), *which)


def test_any_command_runs_inside_a_workspace(acme, globex, alice, bob, capsys):
    show = "from tenants.users.models import User; print([user.email for user in User.objects.all()])"
    call_command("in_tenant", "--tenant", "globex", "shell", "--no-imports", "-c", show)
    said = capsys.readouterr().out
    assert bob.email in said
    assert alice.email not in said
    # One that ends the process, as `check` does, ends no other workspace's.
    with pytest.raises(CommandError, match=r"^Failed for acme, globex\.$"):
        call_command("in_tenant", "--tenant", "acme", "--tenant", "globex", "shell", "-c", "raise SystemExit(3)")


def test_psql_is_not_opened_outside_of_the_workspace_that_was_named(acme, capsys):
    with pytest.raises(CommandError, match=r"^Failed for acme\.$"):
        call_command("in_tenant", "--tenant", "acme", "dbshell", "--", "-c", "SELECT 1")
    assert f"SET search_path = {acme.tenant.schema_name};" in capsys.readouterr().err


KEPT = {"migrate", "migrate_schemas"}
THEIRS = {
    module.name for module in pkgutil.iter_modules([str(Path(django_tenants.__file__).parent / "management/commands")])
}


@pytest.mark.parametrize("name", sorted(THEIRS - KEPT))
def test_django_tenants_own_commands_say_what_is_used_here(name, capsys):
    command = load_command_class(get_commands()[name], name)
    with pytest.raises(SystemExit) as end:
        command.run_from_argv(["manage.py", name, "--schema=t_1", "shell", "--noinput"])
    assert end.value.code == 1
    said = capsys.readouterr().err.strip()
    assert said == command.help
    assert len(said.splitlines()) == 1
    with pytest.raises(CommandError) as refused:
        call_command(name, "shell")
    assert str(refused.value) == said
