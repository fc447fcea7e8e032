"""Building a tenant's schema, again and again, and never somebody else's."""

import uuid

import pytest
from django.db import IntegrityError, connection

from tenants import services
from tenants.context import current_tenant, tenant_scope
from tenants.models import Tenant
from tenants.threads import TenantExecutor
from tenants.users.models import User

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture
def tenant():
    return services.register_tenant(f"svc-{uuid.uuid4().hex[:8]}", name="Service test")


def comment_of(schema):
    with connection.cursor() as cursor:
        cursor.execute("SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s", [schema])
        return cursor.fetchone()


def test_registering_makes_rows_and_no_schema(tenant):
    assert tenant.status == Tenant.Status.PENDING
    assert comment_of(tenant.schema_name) is None


def test_a_schemas_name_tells_nothing_and_comes_from_nobody(tenant):
    assert tenant.slug not in tenant.schema_name
    assert tenant.schema_name.startswith("t_")


def test_a_schema_carries_its_tenants_id(tenant):
    services.ensure_schema(tenant)
    assert comment_of(tenant.schema_name) == (f"tenant:{tenant.pk}",)


def test_ensure_schema_can_be_repeated_and_keeps_rows(tenant):
    services.ensure_schema(tenant)
    with tenant_scope(tenant):
        User.objects.create(email="kept@example.com")
    services.ensure_schema(tenant)
    with tenant_scope(tenant):
        assert User.objects.filter(email="kept@example.com").exists()


def test_a_half_built_schema_is_finished(tenant):
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE SCHEMA "{tenant.schema_name}"')
        cursor.execute(f"COMMENT ON SCHEMA \"{tenant.schema_name}\" IS 'tenant:{tenant.pk}'")
    services.ensure_schema(tenant)
    with tenant_scope(tenant):
        assert not User.objects.exists()


def test_a_schema_without_our_comment_is_never_adopted(tenant):
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE SCHEMA "{tenant.schema_name}"')
    with pytest.raises(services.SchemaNotOurs):
        services.ensure_schema(tenant)


def test_two_at_once_build_one_schema(tenant):
    with TenantExecutor(2) as pool:
        for done in [pool.submit(services.ensure_schema, tenant) for _ in range(2)]:
            done.result()
    with tenant_scope(tenant):
        assert User.objects.count() == 0


def test_a_taken_slug_cannot_be_registered_again(tenant):
    with pytest.raises(IntegrityError):
        services.register_tenant(tenant.slug, name="Second")


def test_ensure_schema_leaves_the_caller_where_it_was(acme, tenant):
    with acme.scope():
        services.ensure_schema(tenant)
        assert current_tenant() == acme.tenant
        assert connection.schema_name == acme.tenant.schema_name
    assert current_tenant() is None
    assert connection.schema_name == "public"
