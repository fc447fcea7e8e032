"""The audit trail's page and its file, for those whose role may read it."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC
from typing import Any
from urllib.parse import urlencode

from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_safe

from tenants.audit.events import Event
from tenants.audit.forms import NO_PAGE, TrailForm
from tenants.audit.models import AuditEvent
from tenants.audit.reading import events_like
from tenants.audit.trail import record
from tenants.audit.words import VIA, actor_words, detail_words, words_for
from tenants.fields import focus_on_error
from tenants.http import Invalid, TenantRequest
from tenants.roles import Action
from tenants.time_zones import zone_of
from tenants.users.access import count_act, needs
from tenants.users.devices import device
from tenants.users.models import ApiKey

SHOWN = 30
# One file, made in memory: no thread and no tenant is held while somebody reads it slowly.
EXPORTED = 10_000
COLUMNS = ["id", "at", "who", "via", "key", "event", "what", "target", "details", "address", "agent"]
# What a spreadsheet takes for a formula at the beginning of a cell; the last four are the full-width ones.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@require_safe
@needs(Action.READ_TRAIL)
def trail(request: TenantRequest) -> HttpResponse:
    form = TrailForm(request.GET)
    zone = zone_of(request.tenant.time_zone)
    rows: list[AuditEvent] = []
    before = _row_before(form) if form.is_valid() else None
    if form.is_valid():
        rows = events_like(form.filter(zone), limit=SHOWN + 1, before=before)
    focus_on_error(form)
    chosen = {name: request.GET[name] for name in ("who", "what", "since", "until") if request.GET.get(name)}
    shown = rows[:SHOWN]
    context = {
        "form": form,
        "zone": zone,
        "rows": _as_shown(shown),
        "is_filtered": bool(chosen),
        "is_later_page": before is not None,
        "newest": f"?{urlencode(chosen)}",
        "older": f"?{urlencode({**chosen, 'before': shown[-1].pk})}" if len(rows) > SHOWN else "",
        "file": f"csv?{urlencode(chosen)}",
        "exported": f"{EXPORTED:,}",
    }
    return render(request, "audit/trail.html", context, status=400 if form.errors else 200)


@require_GET
@needs(Action.READ_TRAIL)
def trail_csv(request: TenantRequest) -> HttpResponse:
    """The same rows as a file, the newest EXPORTED of them. That it was made is in the trail, too."""
    form = TrailForm(request.GET)
    if not form.is_valid():
        raise Invalid({name: [str(text) for text in texts] for name, texts in form.errors.items()})
    count_act(request)
    rows = events_like(form.filter(zone_of(request.tenant.time_zone)), limit=EXPORTED)
    chosen: dict[str, Any] = {
        name: str(value) for name, value in form.cleaned_data.items() if value and name != "before"
    }
    with transaction.atomic(durable=True):
        record(Event.TRAIL_EXPORTED, request=request, rows=len(rows), **chosen)
    response = HttpResponse(csv_of(rows), content_type="text/csv; charset=utf-8")
    name = f"audit-{request.tenant.slug}-{timezone.now():%Y-%m-%d}.csv"
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def csv_of(rows: list[AuditEvent]) -> str:
    """RFC 4180, with the columns' names first."""
    names = _key_names(rows)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        cells = [
            row.at.astimezone(UTC).isoformat(),
            row.actor,
            row.via,
            names.get(row.key_id or 0, ""),
            row.event,
            words_for(row.event),
            row.target,
            json.dumps(row.details, ensure_ascii=False, sort_keys=True) if row.details else "",
            row.address,
            row.agent,
        ]
        writer.writerow([row.pk, *map(harmless, cells)])
    return text.getvalue()


def harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _row_before(form: TrailForm) -> AuditEvent | None:
    pk = form.cleaned_data["before"]
    row = AuditEvent.objects.filter(pk=pk).first() if pk else None
    if pk and row is None:
        form.add_error(None, NO_PAGE)
    return row


def _as_shown(rows: list[AuditEvent]) -> list[dict[str, Any]]:
    names = _key_names(rows)
    return [
        {
            "event": row,
            "who": actor_words(row.actor),
            "what": words_for(row.event),
            "facts": " · ".join(filter(None, _facts(row, names))),
        }
        for row in rows
    ]


def _facts(row: AuditEvent, names: dict[int, str]) -> list[str]:
    via = f"by the key {names.get(row.key_id, row.key_id)}" if row.key_id else VIA.get(row.via, "")
    details = [f"{name}: {value}" for name, value in detail_words(row.details)]
    return [via, *details, f"from {row.address}" if row.address else "", device(row.agent) if row.agent else ""]


def _key_names(rows: list[AuditEvent]) -> dict[int, str]:
    """Of the keys that did it, where they are still there."""
    ids = {row.key_id for row in rows if row.key_id}
    return {key.pk: key.name for key in ApiKey.objects.filter(pk__in=ids).only("name")} if ids else {}
