"""A schema by replaying the template is the schema that migrations make, and nothing of it lands anywhere else."""

import re
import uuid
from pathlib import Path

import pytest
from django.db import DatabaseError, connection

from chat import migrations
from tenants import schema_template, schema_versions, services
from tenants.models import SchemaVersion, Tenant
from tenants.schema_template import COMMENT, SCRATCH, described, statements_for
from tests.support.jobs import rows

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture(autouse=True)
def _fingerprint_of_each_test(settings):
    """A test that changes the migrations changes what this process wants."""
    yield
    schema_versions.fingerprint.cache_clear()


def new_tenant():
    return services.register_tenant(f"tpl-{uuid.uuid4().hex[:8]}", name="Template test")


def built(*, by_template, settings):
    settings.SCHEMA_TEMPLATE = by_template
    tenant = new_tenant()
    services.ensure_schema(tenant)
    return tenant


def later_release(settings, module="tests.support.later"):
    settings.MIGRATION_MODULES = {"chat": module}
    schema_versions.fingerprint.cache_clear()


def scratch_schemas():
    return rows("SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s)", SCRATCH)


def test_a_replayed_schema_is_the_migrated_one(settings):
    replayed, migrated = (built(by_template=by, settings=settings) for by in (True, False))
    assert statements_for(schema_versions.ensure_version()) == []
    expected = described(migrated.schema_name)
    assert described(replayed.schema_name) == expected
    for kind in ("relation chat_conversation r", "index ", "constraint ", "sequence ", "row of django_migrations",
                 "row of django_content_type", "row of auth_permission"):  # fmt: skip
        assert any(row.startswith(kind) for row in expected), kind
    assert Tenant.objects.filter(schema_versions.is_current(), pk__in=[replayed.pk, migrated.pk]).count() == 2


def test_nothing_of_it_refers_to_public_or_lands_there(settings):
    before = described("public")
    tenant = built(by_template=True, settings=settings)
    assert rows(
        "SELECT count(*) FROM pg_constraint k JOIN pg_class c ON c.oid = k.confrelid "
        "WHERE k.connamespace = %s::regnamespace AND c.relnamespace <> k.connamespace",
        tenant.schema_name,
    ) == [(0,)]
    new = {row for row in described("public") - before if not row.startswith(("row of", "sequence"))}
    assert new == set()


def test_a_later_migration_applies_to_a_replayed_schema_and_makes_a_template_of_its_own(settings):
    replayed, migrated = (built(by_template=by, settings=settings) for by in (True, False))
    later_release(settings)
    assert not Tenant.objects.filter(schema_versions.is_current()).exists()
    for tenant in (replayed, migrated):
        services.ensure_schema(tenant)
    by_later_template = built(by_template=True, settings=settings)
    (together,) = statements_for(schema_versions.ensure_version())
    assert together.count(";\n") > 50
    expected = timeless(migrated)
    assert any("100 % of what" in row for row in expected)
    assert timeless(replayed) == expected
    # Migrated at once, content types come after all migrations: that is another order of their numbers.
    of_content = ("row of django_", "row of auth_permission")
    assert {row for row in timeless(by_later_template) ^ expected if not row.startswith(of_content)} == set()


def timeless(tenant):
    """But for when a row was made."""
    return {re.sub(r"\d{4}-\d\d-\d\dT[\d:.+]+", "", row) for row in described(tenant.schema_name)}


# The last of chat's, which a later release's follows.
NEWEST = max(path.stem for path in Path(migrations.__file__).parent.glob("0*.py"))
CONCURRENTLY = "RunSQL('CREATE INDEX CONCURRENTLY later ON chat_message (id)')"
FROM_PUBLIC = "RunSQL('CREATE TABLE copied (LIKE tenants_tenant)')"
QUALIFIED = "RunPython(lambda _, editor: editor.execute(f'CREATE VIEW {editor.connection.schema_name}.v AS SELECT 1'))"
UNSEEN = "RunSQL(\"SELECT setval(pg_get_serial_sequence('chat_message', 'id'), 500)\")"
DRAWN = (
    "RunPython(lambda apps, _: apps.get_model('users', 'User').objects.create(email=str(__import__('uuid').uuid4())))"
)

LOOK = "__import__('tenants.models').models.Tenant.objects"
LOOKED = f"RunPython(lambda _, editor: {LOOK}.filter(schema_name=editor.connection.schema_name).first())"
NEEDED = f"RunPython(lambda _, editor: {LOOK}.get(schema_name=editor.connection.schema_name))"


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (FROM_PUBLIC, "chat.9999_odd cannot be replayed"),
        (QUALIFIED, "chat.9999_odd names its schema"),
        (UNSEEN, "differs from a migrated one: sequence"),
        (DRAWN, "another row each time, in row of users_user"),
        (LOOKED, "chat.9999_odd reads the table of tenants"),
    ],
    ids=["a table of public's", "its own schema", "a select that writes", "a row of each tenant's own", "its tenant"],
)
def test_what_cannot_be_replayed_is_not_kept_and_the_log_says_why(settings, package, caplog, operation, said):
    later_release(settings, package("9999_odd", operation))
    assert statements_for(schema_versions.ensure_version()) == []
    assert said in caplog.text
    assert SchemaVersion.objects.get(fingerprint=schema_versions.fingerprint()).statements == []
    assert scratch_schemas() == []


def test_where_the_database_takes_one_statement_at_a_time_the_template_has_each_by_itself(
    settings, package, monkeypatch
):
    later_release(settings, package("9999_odd", "RunSQL('SELECT 1')"))

    def one_at_a_time(schema_name, statements):
        if any(";\n" in statement for statement in statements):
            raise DatabaseError("cannot take several statements")
        replay(schema_name, statements)

    replay = schema_template.replay
    monkeypatch.setattr(schema_template, "replay", one_at_a_time)
    assert len(statements_for(schema_versions.ensure_version())) > 50
    replayed, migrated = (built(by_template=by, settings=settings) for by in (True, False))
    expected = timeless(migrated)
    assert timeless(replayed) == expected
    assert scratch_schemas() == []


def test_without_a_template_tenants_are_built_by_migrations(settings, package, caplog):
    """And what a killed recording left is dropped by the next; what somebody else named alike is not."""
    rows(f"CREATE SCHEMA {SCRATCH}left")
    rows(f"COMMENT ON SCHEMA {SCRATCH}left IS '{COMMENT}'")
    rows(f"CREATE SCHEMA {SCRATCH}mine")
    later_release(settings, package("9999_odd", CONCURRENTLY))
    tenant = new_tenant()
    services.ensure_schema(tenant)
    assert "chat.9999_odd cannot be replayed" in caplog.text  # outside a transaction alone
    assert "index CREATE INDEX later" in " ".join(described(tenant.schema_name))
    assert Tenant.objects.filter(schema_versions.is_current(), pk=tenant.pk).exists()
    left = scratch_schemas()
    rows(f"DROP SCHEMA {SCRATCH}mine")
    assert left == [(f"{SCRATCH}mine",)]


def test_a_migration_that_needs_its_tenant_keeps_nobody_from_signing_up(settings, package, caplog):
    later_release(settings, package("9999_odd", NEEDED))
    tenant = new_tenant()
    services.ensure_schema(tenant)
    assert "fails in a schema of no tenant: DoesNotExist" in caplog.text
    assert Tenant.objects.filter(schema_versions.is_current(), pk=tenant.pk).exists()
    assert scratch_schemas() == []


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Chat's migrations and one more, as a package to import."""

    def make(name, operation):
        folder = tmp_path / f"odd_{uuid.uuid4().hex}"
        folder.mkdir()
        monkeypatch.syspath_prepend(tmp_path)
        (folder / "__init__.py").write_text(
            "from chat import migrations\n__path__ = [*migrations.__path__, *__path__]\n"
        )
        (folder / f"{name}.py").write_text(
            "from django.db import migrations\n\n\nclass Migration(migrations.Migration):\n    atomic = False\n"
            f"    dependencies = [('chat', '{NEWEST}')]\n    operations = [migrations.{operation}]\n"
        )
        return folder.name

    return make


def test_a_replay_that_is_stopped_leaves_nothing(settings, monkeypatch):
    tenant = new_tenant()
    whole = schema_template.statements_for
    monkeypatch.setattr(schema_template, "statements_for", lambda version: [*whole(version)[:-1], "SELECT 1/0"])
    with pytest.raises(DatabaseError):
        services.ensure_schema(tenant)
    assert connection.schema_name == "public"
    assert rows("SELECT 1 FROM pg_namespace WHERE nspname = %s", tenant.schema_name) == []
    assert Tenant.objects.get(pk=tenant.pk).schema_version is None
    monkeypatch.undo()
    services.ensure_schema(tenant)
    assert Tenant.objects.filter(schema_versions.is_current(), pk=tenant.pk).exists()
