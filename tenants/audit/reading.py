"""Reading the trail, newest first: whole pages by an index each, however long it is. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from django.db.models import Q, QuerySet

from tenants.audit.models import AuditEvent


@dataclass(frozen=True)
class Filter:
    """Empty is everything. `until` is the first moment that is left out."""

    who: str = ""
    events: list[str] = field(default_factory=list)
    since: datetime | None = None
    until: datetime | None = None


def events_like(asked: Filter, *, limit: int, before: AuditEvent | None = None) -> list[AuditEvent]:
    """At most `limit`, after the row `before` in the order of the page."""
    found = _chosen(asked, before)
    if not asked.who:
        return list(found[:limit])
    # Of who did it and of whom it was done to, each by its own index. Asked by OR, Postgres may read the whole trail.
    both = [*found.filter(actor=asked.who)[:limit], *found.filter(target=asked.who)[:limit]]
    return _newest(both)[:limit]


def _chosen(asked: Filter, before: AuditEvent | None) -> QuerySet[AuditEvent]:
    found = AuditEvent.objects.order_by("-at", "-id")
    if len(asked.events) == 1:
        found = found.filter(event=asked.events[0])
    elif asked.events:
        found = found.filter(event__in=asked.events)
    if asked.since:
        found = found.filter(at__gte=asked.since)
    if asked.until:
        found = found.filter(at__lt=asked.until)
    if before:
        # The first part alone would do for rows of other moments, and is what the index goes by.
        found = found.filter(Q(at__lte=before.at) & (Q(at__lt=before.at) | Q(id__lt=before.pk)))
    return found


def _newest(rows: Iterable[AuditEvent]) -> list[AuditEvent]:
    return sorted({row.pk: row for row in rows}.values(), key=lambda row: (row.at, row.pk), reverse=True)
