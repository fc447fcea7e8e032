"""System checks that refuse a configuration under which tenants could meet."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db.models import FileField, ForeignKey
from django.utils.module_loading import import_string

from tenants.cache import make_key, reverse_key

MAKE_KEY, REVERSE_KEY = "tenants.cache.make_key", "tenants.cache.reverse_key"


@register(Tags.security)
def tenants_are_kept_apart(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    default = settings.DATABASES["default"]
    if default.get("ATOMIC_REQUESTS"):
        found.append(
            Error(
                "ATOMIC_REQUESTS must be off: the hold and its settling are transactions of their own.",
                id="tenants.E001",
            )
        )
    if getattr(settings, "SHOW_PUBLIC_IF_NO_TENANT_FOUND", False):
        found.append(
            Error(
                "SHOW_PUBLIC_IF_NO_TENANT_FOUND must be off: an unknown host would see public.",
                id="tenants.E002",
            )
        )
    if settings.SESSION_COOKIE_DOMAIN or settings.CSRF_COOKIE_DOMAIN:
        found.append(Error("Cookies must be host-only: a Domain cookie reaches every workspace.", id="tenants.E003"))
    if settings.SESSION_ENGINE != "django.contrib.sessions.backends.db":
        found.append(
            Error(
                "Sessions must live in each tenant's schema, where web and plane read them: SESSION_ENGINE must be "
                "django.contrib.sessions.backends.db.",
                id="tenants.E004",
            )
        )
    if default["ENGINE"] != "tenants.backend":
        found.append(
            Error(
                'DATABASES["default"]["ENGINE"] must be tenants.backend: with another, code on a bare thread reads '
                "public's rows and takes them for its tenant's.",
                id="tenants.E007",
            )
        )
    return found


@register(Tags.security)
def caches_keep_tenants_apart(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Two tenants ask a cache for the same key: the same page, the same fragment, the same number of a row."""
    found: list[CheckMessage] = []
    for alias, cache in settings.CACHES.items():
        if alias in settings.CACHES_SHARED_ON_PURPOSE:
            continue
        if cache.get("KEY_FUNCTION") not in (MAKE_KEY, make_key):
            found.append(
                Error(
                    f"CACHES[{alias!r}] has no KEY_FUNCTION {MAKE_KEY}: tenants would read each other's entries.",
                    hint="Add it; or, where its entries are meant for all, name the alias in CACHES_SHARED_ON_PURPOSE.",
                    id="tenants.E005",
                )
            )
        # Without one, clients that list their keys would give them back with the tenant before them.
        if cache.get("REVERSE_KEY_FUNCTION", REVERSE_KEY) not in (REVERSE_KEY, reverse_key):
            found.append(Error(f"CACHES[{alias!r}]: REVERSE_KEY_FUNCTION must be {REVERSE_KEY}.", id="tenants.E008"))
        if ":" in str(cache.get("KEY_PREFIX", "")):
            found.append(Error(f"CACHES[{alias!r}]: a KEY_PREFIX has no colon here.", id="tenants.E009"))
    return found


@register(Tags.security)
def files_keep_tenants_apart(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Of two files with one name, one tenant's would be the other's, or be told by its changed name."""
    return [
        Warning(
            f"{model._meta.label}.{field.name} keeps the files of all tenants in one folder, by a storage "
            f"({type(field.storage).__name__}) that does not ask whose they are.",
            hint="Use tenants.files.TenantFiles; a storage of yours that asks current_tenant() says "
            "keeps_tenants_apart = True.",
            id="tenants.W001",
        )
        for label in sorted(_labels(settings.TENANT_APPS))
        for model in apps.get_app_config(label).get_models()
        for field in model._meta.local_fields
        if isinstance(field, FileField) and not getattr(field.storage, "keeps_tenants_apart", False)
    ]


@register(Tags.security)
def shared_rows_are_shared_on_purpose(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """A table of SHARED_APPS is one for all tenants, and nothing at its queries says so."""
    shared, apart = _labels(settings.SHARED_APPS), _labels(settings.TENANT_APPS)
    found: list[CheckMessage] = []
    for label in sorted(shared - apart - _labels(settings.SHARED_ON_PURPOSE)):
        models = ", ".join(model.__name__ for model in apps.get_app_config(label).get_models())
        if models:
            found.append(
                Error(
                    f"{label} is in SHARED_APPS and has models ({models}): all tenants would read and write the same "
                    "rows.",
                    hint="Move it to TENANT_APPS; or, where that is meant, name it in SHARED_ON_PURPOSE.",
                    id="tenants.E006",
                )
            )
    return found


@register(Tags.security)
def each_app_with_models_has_its_place(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """No migration would make its tables anywhere, and nothing says so before the first page that asks for a row."""
    placed = _labels([*settings.TENANT_APPS, *settings.SHARED_APPS])
    return [
        Error(
            f"{config.label} has models ({', '.join(model.__name__ for model in config.get_models())}) and is neither "
            "in TENANT_APPS nor in SHARED_APPS: no schema would ever have their tables.",
            hint="Name it in TENANT_APPS, from which INSTALLED_APPS is made: its rows are then each tenant's own.",
            id="tenants.E011",
        )
        for config in apps.get_app_configs()
        if config.label not in placed and any(config.get_models())
    ]


@register(Tags.security)
def shared_tables_refer_to_no_tenants(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """A shared row would say member 7, who is somebody else in each workspace: read in one, another's row is its own
    member 7's. The database knows of public's member 7 alone, an operator. Django's own apps are for operators.
    """
    apart = _labels(settings.TENANT_APPS)
    return [
        Error(
            f"{model._meta.label}.{field.name} refers from rows that all tenants share to "
            f"{field.remote_field.model._meta.label}, whose rows are each tenant's own: the same number is another row "
            "in each workspace.",
            hint="Move the model to an app in TENANT_APPS; or keep whose it is in a foreign key to tenants.Tenant and "
            "the row's number beside it in a BigIntegerField. Where operators are meant, who are public's own, name "
            "tenants.E012 in SILENCED_SYSTEM_CHECKS.",
            id="tenants.E012",
        )
        if not is_djangos
        else Warning(
            f"{model._meta.label}.{field.name} refers from rows that all tenants share to "
            f"{field.remote_field.model._meta.label}: a member who is deleted in some workspace takes those of the "
            "operator with the same number along.",
            hint=f"Name {app} in TENANT_APPS, too, and not in SHARED_ON_PURPOSE: each workspace then has a table "
            "of its own.",
            id="tenants.W004",
        )
        for label in sorted(_labels(settings.SHARED_APPS) - apart)
        for app in [apps.get_app_config(label).name]
        for is_djangos in [app.startswith("django.contrib.")]
        for model in apps.get_app_config(label).get_models(include_auto_created=True)
        for field in model._meta.local_fields
        if isinstance(field, ForeignKey) and field.remote_field.model._meta.app_label in apart
    ]


@register(Tags.security)
def tenants_tables_refer_to_their_own(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """A foreign key out of a tenant's schema locks public's table with each migration, keeps new schemas from being
    built by replaying, and the schema from being moved. And a shared row that is deleted is looked for in one schema.
    """
    apart = _labels(settings.TENANT_APPS)
    return [
        Warning(
            f"{model._meta.label}.{field.name} refers from each tenant's schema to "
            f"{field.remote_field.model._meta.label}, whose rows all tenants share.",
            hint="Keep the row's number in a BigIntegerField, or nothing: current_tenant() says whose rows these are. "
            "With db_constraint=False the database does not know of it.",
            id="tenants.W003",
        )
        for label in sorted(apart)
        for model in apps.get_app_config(label).get_models(include_auto_created=True)
        for field in model._meta.local_fields
        if isinstance(field, ForeignKey)
        and field.db_constraint  # type: ignore[attr-defined]  # Django's, and not in its stubs
        and field.remote_field.model._meta.app_label not in apart
    ]


@register(Tags.security)
def members_can_go(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """A name that is wrong would be found by the first owner who removes somebody, and cannot."""
    return [
        Error(
            f"ON_MEMBER_GONE names {name!r}, which cannot be imported: no member could leave or be removed.",
            hint="Write a list of functions by their whole names, such as notes.gone.forget.",
            id="tenants.E010",
        )
        for name in settings.ON_MEMBER_GONE
        if not _can_be_imported(name)
    ]


@register(Tags.security, deploy=True)
def who_serves_is_not_the_owner(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """A warning, so that a site with one role goes on through an upgrade."""
    if settings.SERVING_ROLE:
        return []
    return [
        Warning(
            "DATABASE_OWNER_URL is not set: web and plane then connect as the role that owns every workspace's tables, "
            "and a hole in a page could drop them.",
            hint="Give the owner's address to commands and jobs as DATABASE_OWNER_URL, and to web and plane a "
            "DATABASE_URL of a second role; README, Production.",
            id="tenants.W002",
        )
    ]


def _can_be_imported(name: str) -> bool:
    try:
        return callable(import_string(name))
    except ImportError:
        return False


def _labels(names: list[str]) -> set[str]:
    return {AppConfig.create(name).label for name in names}
