"""A row of each model of TENANT_APPS, and of each shared one that belongs to a tenant, with a canary in every text.

Knows fields, not models: a model that cannot be filled this way needs a function in `PLANTS` (see cases.py).
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.files.base import ContentFile
from django.db import models
from django.utils import timezone

from tests.isolation.crawler.canaries import LENGTH

# The framework's own: what they hold is the same everywhere, or made with a session.
NOT_PLANTED = {"auth", "contenttypes", "sessions"}
CanaryFor = Callable[[str], str]


class CannotPlant(Exception):
    """A field that nothing here can fill."""


def models_of_tenants() -> list[type[models.Model]]:
    """All of TENANT_APPS, those that others refer to first."""
    return _sorted([model for model in _models(settings.TENANT_APPS) if model._meta.app_label not in NOT_PLANTED])


def shared_models() -> dict[type[models.Model], str]:
    """Those of shared apps whose rows belong to a tenant, each with the lookup that finds a tenant's."""
    found: dict[type[models.Model], str] = {apps.get_model(settings.TENANT_MODEL): "pk"}
    for model in _sorted(list(_models(settings.SHARED_ON_PURPOSE))):
        for field in model._meta.concrete_fields:
            if (target := field.related_model) in found and model not in found:
                lookup = found[target]
                found[model] = field.name if lookup == "pk" else f"{field.name}__{lookup}"
    return found


def _models(names: list[str]) -> Iterator[type[models.Model]]:
    for name in names:
        config = apps.get_app_config(AppConfig.create(name).label)
        yield from (model for model in config.get_models() if model._meta.managed and not model._meta.proxy)


def _sorted(found: list[type[models.Model]]) -> list[type[models.Model]]:
    done: list[type[models.Model]] = []

    def add(model: type[models.Model], under: tuple[Any, ...] = ()) -> None:
        if model in done or model in under:
            return
        for field in model._meta.concrete_fields:
            if field.related_model in found:
                add(field.related_model, (*under, model))
        done.append(model)

    for model in found:
        add(model)
    return done


def plant(model: type[models.Model], canary: CanaryFor, refer: Callable[[Any], Any], *, turn: int, pk: Any) -> Any:
    """A row whose texts are canaries, and that refers to what `refer` gives for a model. `turn`: which choice."""
    values: dict[str, Any] = {}
    for field in model._meta.concrete_fields:
        if field.primary_key and isinstance(field, models.AutoField):
            continue
        value = _value(field, canary, refer, turn)
        if value is not models.NOT_PROVIDED:
            values[field.name] = value
    if pk is not None and isinstance(model._meta.pk, models.AutoField):
        values[model._meta.pk.attname] = pk
    return model._base_manager.create(**values)


def _value(field: Any, canary: CanaryFor, refer: Callable[[Any], Any], turn: int) -> Any:
    if field.is_relation:
        target = refer(field.related_model)
        if target is None and not field.null:
            raise CannotPlant(f"it needs a {field.related_model.__name__}")
        return target
    if field.choices:
        choices = [value for value, _ in field.flatchoices]
        return choices[turn % len(choices)]
    if isinstance(field, models.JSONField):
        return {"canary": canary(field.name)}
    if isinstance(field, models.FileField):
        return ContentFile(canary(field.name).encode(), name=f"{canary(field.name + ' (name)')}.txt")
    if isinstance(field, models.BinaryField):
        return canary(field.name).encode()
    if isinstance(field, models.CharField | models.TextField):
        return _text(field, canary)
    if field.has_default() or field.null or getattr(field, "auto_now", False) or getattr(field, "auto_now_add", False):
        return models.NOT_PROVIDED
    return _plain(field)


def _text(field: Any, canary: CanaryFor) -> Any:
    room = field.max_length or 1_000
    if isinstance(field, models.EmailField) and room >= LENGTH + 14:
        return f"{canary(field.name)}@crawler.example"
    if isinstance(field, models.URLField):
        return f"https://{canary(field.name)}.example/"
    if room >= LENGTH:
        return canary(field.name)
    return secrets.token_hex(8)[:room]


def _plain(field: Any) -> Any:
    if isinstance(field, models.UUIDField):
        return uuid.uuid4()
    if isinstance(field, models.DateTimeField):
        return timezone.now()
    if isinstance(field, models.DateField):
        return timezone.now().date()
    if isinstance(field, models.BooleanField):
        return False
    if isinstance(field, models.DecimalField | models.FloatField | models.IntegerField):
        return secrets.randbelow(30_000) + 1 if field.unique else 1
    if isinstance(field, models.GenericIPAddressField):
        return "203.0.113.7"
    raise CannotPlant(f"its field {field.name} is a {type(field).__name__}")
