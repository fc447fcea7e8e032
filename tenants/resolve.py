"""Who asks: from a request's facts to the tenant and its member. Decided here once, for web and for the plane.

Each function is a generator that yields the SQL it wants to know the first row of, and performs nothing: `answered`
runs one in web's threads, `aanswered` on the plane's loop. The SQL names its schema, so no search path can lead it to
another tenant's rows or to public's. A query says whether and how its row may be kept (tenants.kept); what is made of a
row is the same whether it was kept or just read. Raises the ApiErrors of tenants.http.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar

import psycopg
from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.db import DEFAULT_DB_ALIAS, ProgrammingError, connection
from django.db.models import Field, JSONField, Model
from django.http import HttpRequest
from django.utils.module_loading import import_string

from tenants.hosts import host_for, normal_host
from tenants.http import (
    AccountOnHold,
    CsrfFailed,
    Invalid,
    NoWorkspace,
    SecondStepRequired,
    TenantConflict,
    TenantNotReady,
    Unauthenticated,
    wants_json,
)
from tenants.kept import Fetch as Fetch
from tenants.kept import Keep, Params, Query, Row, Used, afetched, fetched, of_schema, of_tenant
from tenants.models import Tenant
from tenants.roles import Action, may, may_with_key
from tenants.schema_versions import BEGIN_CATCHING_UP, IS_CURRENT, fingerprint
from tenants.slugs import SLUG
from tenants.users.keys import bearer_secret, digest, prefix_of, tenant_of
from tenants.users.models import User
from tenants.users.sessions import is_sessions_user, passes_csrf, read_session, session_key, signed_in_user_id

logger = logging.getLogger(__name__)
T = TypeVar("T")
M = TypeVar("M", bound=Model)
Steps = Generator[Query, Row | None, T]

PUBLIC = "public"
_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
KEPT_SECONDS = 30.0

# Whether the schema is there, and not behind this code, is asked in the query that finds the tenant. The table of keys
# stands for it: a schema that is still empty has no members. Nor is a schema there that this process's role may not
# use: a search path leaves it out without an error, and public comes next. A closed workspace is an unknown one.
_TENANT = """
    SELECT t.id, t.schema_name, CASE
        WHEN (SELECT has_schema_privilege(n.oid, 'USAGE')
              FROM pg_catalog.pg_namespace n WHERE n.nspname = t.schema_name)
        THEN to_regclass(quote_ident(t.schema_name) || '.users_apikey') IS NOT NULL ELSE false END,
        {is_current}, {is_primary}, {tenant}
    FROM {place} = %s AND t.status <> 'closed'"""
_AT_HOST = "public.tenants_domain d JOIN public.tenants_tenant t ON t.id = d.tenant_id WHERE d.domain"
_NAMED_BY_KEY = "public.tenants_tenant t WHERE t.public_id"
# A write for each request would double their cost; to the minute is exact enough for an owner. The row is true until
# that minute is over, or the key expires: for how many seconds comes first.
_MEMBER_BY_KEY = """
    SELECT least(60 - date_part('epoch', now() - coalesce(k.last_used_at, now() - interval '1 minute')),
                 date_part('epoch', k.expires_at - now())),
        {beside}, coalesce(k.spends_as, k.id), k.limited_apps::json, k.allowed_models::json, k.rates::json,
        k.id, k.last_used_at IS NULL OR k.last_used_at < now() - interval '1 minute', k.scopes::json, {user}
    FROM {schema}.users_apikey k JOIN {schema}.users_user u ON u.id = k.user_id
    WHERE k.prefix = %s AND k.digest = %s AND k.revoked_at IS NULL
        AND (k.expires_at IS NULL OR k.expires_at > now()) AND u.is_active"""
# Of a schema that is behind the code: columns that have been there from the first migration on. A key that has expired
# is told there, too, that the workspace is being brought up to date.
_HAS_KEY = """
    SELECT k.id FROM {schema}.users_apikey k WHERE k.prefix = %s AND k.digest = %s AND k.revoked_at IS NULL"""
_NOTE_USE = """
    UPDATE {schema}.users_apikey SET last_used_at = now()
    WHERE id = %s AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute') RETURNING id"""
_SESSION = """
    SELECT session_data FROM {schema}.django_session WHERE session_key = %s AND expire_date > now()"""
_MEMBER = """
    SELECT {beside}, {user} FROM {schema}.users_user u WHERE u.id = %s AND u.is_active"""


@dataclass(frozen=True, slots=True)
class Asker:
    """A member of a tenant, and what proved it: a key (its id), or else a session.

    `beside` is what settings.ASKER_BESIDE reads of the tenant in the same statement, for a room further up.
    """

    tenant: Tenant
    user: User
    key_id: int | None = None
    beside: Any = None
    # Of its key; None is a key of before there were scopes.
    scopes: list[str] | None = None
    # In whose name the key spends, and the features for which it has a limit: None without one.
    spends_as: int | None = None
    limited_apps: list[str] | None = None
    # The models that it may call, of those that its workspace may, and how much it may ask for: None is no limit.
    key_models: list[str] | None = None
    rates: dict[str, int] | None = None

    @property
    def user_id(self) -> int:
        return self.user.id

    @property
    def email(self) -> str:
        return self.user.email

    @property
    def role(self) -> str:
        return self.user.role

    @property
    def is_owner(self) -> bool:
        return self.user.is_owner

    @property
    def by_session(self) -> bool:
        return self.key_id is None

    def may(self, action: Action) -> bool:
        """A session what its member's role may; a key what its scopes and that role both allow."""
        if self.by_session:
            return may(self.role, action)
        return may_with_key(self.role, self.scopes, action)


@dataclass(frozen=True, slots=True)
class Found:
    """The tenant that a request works for, None on the bare host; and its member where a key proved one already.

    `has_moved`: the host is one that the workspace had before, and people should be led to its present one.
    """

    tenant: Tenant | None
    asker: Asker | None = None
    has_moved: bool = False


def find_tenant(request: HttpRequest) -> Steps[Found]:
    """By host, by X-Tenant-ID with a key, or by a key alone.

    - no header: the host decides. The bare host is no tenant, but for the API a key may say whose it is. It says so
      as the header does: a tenant that is not there answers like one without that key.
    - X-Tenant-ID: a second spelling of the host. It names and never opens, so it is worth nothing without an API key
      of that very tenant, and an unknown tenant answers exactly like a known one without its key.
    """
    if (request.content_params or {}).get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        # Python knows encodings, such as hex, under which reading a form fails in ways nobody expects.
        raise Invalid({"body": ["Send it as UTF-8."]})
    try:
        host = normal_host(request)
    except DisallowedHost:
        raise NoWorkspace from None
    slug = request.META.get("HTTP_X_TENANT_ID")
    if slug is not None:
        return (yield from _find_by_header(request, host, slug.strip().lower()))
    if host == settings.BASE_DOMAIN:
        public_id = tenant_of(bearer_secret(request) or "") if wants_json(request) else None
        if public_id is None:
            return Found(None)
        named = yield from _candidate_named(public_id, keep=_keep_named(request))
        return (yield from _opened(request, named))
    candidate = yield from _candidate_at(host, keep=_KEEP_TENANT)
    if candidate is None:
        raise NoWorkspace
    tenant = yield from _let_in(candidate)
    return Found(tenant, has_moved=not candidate.is_primary and host != host_for(tenant.slug))


def find_member(request: HttpRequest, tenant: Tenant) -> Steps[Asker]:
    """Who asks on that tenant's /api/: by key (cookies are then ignored), else by session (CSRF then applies)."""
    if bearer_secret(request) is not None:
        asker = yield from _member_by_key(request, tenant)
    else:
        asker = yield from _member_by_session(request, tenant)
    if asker is None:
        raise Unauthenticated
    if asker.by_session:
        if not passes_csrf(request):
            raise CsrfFailed
        if tenant.requires_second_step and asker.user.second_step_at is None:
            raise SecondStepRequired
    return asker


def find_again(request: HttpRequest, asker: Asker) -> Steps[Asker]:
    """The same asker some time later, before what they asked for is done. Raises what refuses them by now.

    A session may have ended since: who signs out has asked before.
    """
    found = yield from find_tenant(request)
    if found.tenant is None or found.tenant.pk != asker.tenant.pk:
        raise Unauthenticated
    again = found.asker
    if again is None and asker.by_session:
        row = yield _member(found.tenant, asker.user_id)
        again = None if row is None else _asker_in(found.tenant, row)
    elif again is None:
        again = yield from _member_by_key(request, found.tenant)
    if again is None:
        raise Unauthenticated
    return again


def answered(steps: Steps[T]) -> T:
    """Run the steps on this thread's Django connection."""
    try:
        query = next(steps)
        while True:
            with _in_a_schema_that_is_there():
                row = fetched(query, _first_row)
            query = steps.send(row)
    except StopIteration as done:
        result: T = done.value
        return result


async def aanswered(steps: Steps[T], fetch: Fetch, used: Used | None = None) -> T:
    """Run the steps by `fetch`, without Django's connection: on a loop it could not be used. `used`: as in afetched."""
    try:
        query = next(steps)
        while True:
            with _in_a_schema_that_is_there():
                row = await afetched(query, fetch, used)
            query = steps.send(row)
    except StopIteration as done:
        result: T = done.value
        return result


def _first_row(sql: str, params: Params) -> Row | None:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        row: Row | None = cursor.fetchone()
        return row


@contextmanager
def _in_a_schema_that_is_there() -> Iterator[None]:
    """Somebody dropped it by hand, which tells nobody: the tenant's row, which says that it is there, may be kept."""
    try:
        yield
    except psycopg.errors.UndefinedTable as exc:
        raise TenantNotReady from exc
    except ProgrammingError as exc:
        if isinstance(exc.__cause__, psycopg.errors.UndefinedTable):
            raise TenantNotReady from exc
        raise


@dataclass(frozen=True, slots=True)
class _Candidate:
    tenant: Tenant
    has_schema: bool
    is_current: bool
    # Whether the host that it was found by is its present one.
    is_primary: bool


def _candidate_at(host: str, *, keep: Keep | None = None) -> Steps[_Candidate | None]:
    return _candidate(_AT_HOST, host, is_primary="d.is_primary", keep=keep)


def _candidate_named(public_id: str, *, keep: Keep) -> Steps[_Candidate | None]:
    return _candidate(_NAMED_BY_KEY, public_id, is_primary="true", keep=keep)


def _candidate(place: str, value: str, *, is_primary: str, keep: Keep | None) -> Steps[_Candidate | None]:
    row = yield Query(_tenant_sql(place, is_primary), (fingerprint(), value), keep)
    return None if row is None else _Candidate(_model(Tenant, row[5:]), *row[2:5])


@cache
def _tenant_sql(place: str, is_primary: str) -> str:
    return _TENANT.format(is_current=IS_CURRENT, is_primary=is_primary, tenant=_columns(Tenant, "t"), place=place)


def _tenant_seconds(row: Row) -> float:
    """Nothing tells that a schema has been made."""
    _, _, has_schema, is_current, *_ = row
    return KEPT_SECONDS if has_schema and is_current else 0


_KEEP_TENANT = Keep(tags=lambda row: (of_tenant(row[0]),), seconds=_tenant_seconds)


def _keep_named(request: HttpRequest) -> Keep:
    """Of a tenant that anybody may name: used with a key of it alone, so that the time does not tell who is known."""
    secret = bearer_secret(request) or ""
    return Keep(tags=_KEEP_TENANT.tags, seconds=_tenant_seconds, only_with=lambda row: _by_key(secret, row[0], row[1]))


def _let_in(candidate: _Candidate) -> Steps[Tenant]:
    # Without the gate a tenant whose schema is missing is served public's rows: `SET search_path` to a schema that is
    # not there is no error, and public comes next in the path.
    if candidate.tenant.status == Tenant.Status.PENDING or not candidate.has_schema:
        raise TenantNotReady
    if candidate.tenant.status != Tenant.Status.ACTIVE:
        raise AccountOnHold
    # Behind the code, a page would fail on the first column that is not there, or write what the migration that is
    # still to come does not expect.
    if not candidate.is_current:
        if (yield Query(BEGIN_CATCHING_UP, (candidate.tenant.pk,))):
            # Once for each job, and not with every request.
            logger.warning(
                "Workspace %s is behind this code. The jobs process brings it up to date, if it runs this code too; "
                "otherwise run `manage.py migrate_schemas`.",
                candidate.tenant.slug,
            )
        raise TenantNotReady("This workspace is being brought up to date. Try again in a moment.")
    return candidate.tenant


def _find_by_header(request: HttpRequest, host: str, slug: str) -> Steps[Found]:
    named, candidate = host_for(slug) if SLUG.fullmatch(slug) else None, None
    if host != settings.BASE_DOMAIN:
        candidate = yield from _candidate_at(host, keep=_KEEP_TENANT)
        if candidate is None:
            raise NoWorkspace
        if named != host and not (named and (yield from _is_of(named, candidate.tenant))):
            raise TenantConflict
    # The header opens the API only: pages are for people, who have the workspace's own address.
    if not wants_json(request) or named is None:
        candidate = None
    elif candidate is None:
        candidate = yield from _candidate_at(named, keep=_keep_named(request))
    return (yield from _opened(request, candidate))


def _is_of(host: str, tenant: Tenant) -> Steps[bool]:
    """Whether a host is another of the tenant's: what it was called before agrees with what it is called now."""
    other = yield from _candidate_at(host)
    return other is not None and other.tenant.pk == tenant.pk


def _opened(request: HttpRequest, candidate: _Candidate | None) -> Steps[Found]:
    """What a request has named, where it carries a key of it: else 401, in the same words and about the same time."""
    # A schema that is still being built has no keys, so it answers as an unknown name does.
    known = candidate if candidate and candidate.has_schema else None
    if known and not known.is_current:
        if not (yield from _has_key(request, known.tenant)):
            raise Unauthenticated
        return Found((yield from _let_in(known)))
    asker = yield from _member_by_key(request, known.tenant if known else None)
    if known is None or asker is None:
        raise Unauthenticated
    return Found((yield from _let_in(known)), asker)


def _has_key(request: HttpRequest, tenant: Tenant) -> Steps[bool]:
    """Whether the request carries a live key of a tenant whose schema is behind. Whose it is cannot be read there."""
    secret = bearer_secret(request)
    if not secret:
        return False
    row = yield Query(_in(tenant.schema_name, _HAS_KEY), (prefix_of(secret), digest(secret)))
    return row is not None and _is_key_of(secret, tenant)


def _member_by_key(request: HttpRequest, tenant: Tenant | None) -> Steps[Asker | None]:
    """The member whose live key of this tenant the request carries.

    Without a tenant public is asked instead, and what it says is dropped: the time must not tell whether a name is
    known, and an operator's key must not count as a tenant's.
    """
    secret = bearer_secret(request)
    if not secret:
        return None
    schema = tenant.schema_name if tenant else PUBLIC
    tenant_id = tenant.pk if tenant else 0
    row = yield _by_key(secret, tenant_id, schema)
    if row is None or tenant is None or not _is_key_of(secret, tenant):
        return None
    _, beside, spends_as, limited_apps, key_models, rates, key_id, is_stale, scopes, *columns = row
    if is_stale:
        yield Query(_in(schema, _NOTE_USE), (key_id,))
    return Asker(
        tenant,
        _model(User, columns),
        key_id,
        beside,
        scopes=scopes,
        spends_as=spends_as,
        limited_apps=limited_apps,
        key_models=key_models,
        rates=rates,
    )


def _by_key(secret: str, tenant_id: int, schema: str) -> Query:
    keep = None
    if schema != PUBLIC:
        keep = Keep(tags=lambda row: (of_tenant(tenant_id), of_schema(schema)), seconds=lambda row: row[0])
    return Query(_in(schema, _MEMBER_BY_KEY), (tenant_id, prefix_of(secret), digest(secret)), keep)


def _is_key_of(secret: str, tenant: Tenant) -> bool:
    """Not so where a row was copied here from another tenant's schema. An old key does not say whose it is."""
    return tenant_of(secret) in (None, tenant.public_id)


def _member_by_session(request: HttpRequest, tenant: Tenant) -> Steps[Asker | None]:
    key = session_key(request)
    if key is None:
        return None
    row = yield Query(_in(tenant.schema_name, _SESSION), (key,))
    session = read_session(row[0]) if row else {}
    user_id = signed_in_user_id(session, tenant_id=tenant.pk)
    if user_id is None:
        return None
    row = yield _member(tenant, user_id)
    if row is None:
        return None
    asker = _asker_in(tenant, row)
    return asker if is_sessions_user(session, asker.user) else None


def _member(tenant: Tenant, user_id: int) -> Query:
    return Query(_in(tenant.schema_name, _MEMBER), (tenant.pk, user_id))


def _asker_in(tenant: Tenant, row: Row) -> Asker:
    beside, *columns = row
    return Asker(tenant, _model(User, columns), beside=beside)


@lru_cache(maxsize=4_096)
def _in(schema: str, sql: str) -> str:
    if not _SCHEMA_NAME.fullmatch(schema):
        raise ValueError("This is no name of a schema of ours.")
    return sql.format(schema=f'"{schema}"', user=_columns(User, "u"), beside=_beside())


@cache
def _beside() -> str:
    """A value of the tenant's that is read with its member, by the tenant's id."""
    beside: str = import_string(settings.ASKER_BESIDE)
    return beside


@cache
def _columns(model: type[Model], alias: str) -> str:
    """All of the model's columns, in the order in which `_model` reads them."""
    return ", ".join(_column(field, alias) for field in model._meta.concrete_fields)


def _column(field: Field[Any, Any], alias: str) -> str:
    # As json, for Django has its connections give jsonb as text.
    return f'{alias}."{field.column}"' + ("::json" if isinstance(field, JSONField) else "")


def _model(model: type[M], columns: Sequence[Any]) -> M:
    """The instance that a query of the ORM would have made of these columns; nothing in it asks the database."""
    return model.from_db(DEFAULT_DB_ALIAS, (), columns)  # no names: with all columns there Django asks for none
