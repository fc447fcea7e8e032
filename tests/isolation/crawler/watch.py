"""What requests leave behind: log lines, mails, jobs, files, cache entries; and rows and ledgers that must not change.

Collects; what is wrong with it is for crawl.py to say.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core import mail
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.db import connection

from tests.isolation.crawler import planting
from tests.isolation.crawler.room import Room


class Logs(logging.Handler):
    """Every line of every logger, with the stack of what was raised."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def taken(self) -> str:
        lines, self.lines = self.lines, []
        return "\n".join(lines)


class Watch:
    """`with watching() as watch:` … `watch.traces()` after each request gives what it left, by what kind of place."""

    def __init__(self) -> None:
        self.logs = Logs()
        self._cache, self._files = self._cached(), self._filed()
        self._last_job = self._newest_job()

    def traces(self) -> Iterator[tuple[str, bytes]]:
        if lines := self.logs.taken():
            yield "a log line", lines.encode()
        for message in getattr(mail, "outbox", []):
            yield "a mail", message.message().as_bytes() + repr(message.recipients()).encode()
        if hasattr(mail, "outbox"):
            mail.outbox.clear()
        yield from self._news("a cache entry", "_cache", self._cached())
        yield from self._news("a file", "_files", self._filed())

    def jobs(self) -> list[tuple[int, str, dict[str, Any]]]:
        """Enqueued since the last look: (id, task, arguments)."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT id, task_name, args FROM public.procrastinate_jobs WHERE id > %s ORDER BY id", [self._last_job]
            )
            found = cursor.fetchall()
        if found:
            self._last_job = found[-1][0]
        return [(number, task, json.loads(args)) for number, task, args in found]

    def _news(self, place: str, known: str, now: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
        before = getattr(self, known)
        setattr(self, known, now)
        for name, content in now.items():
            if before.get(name) != content:
                yield place, name.encode() + b"\n" + content

    def _cached(self) -> dict[str, bytes]:
        """What lies in this process's memory; of another kind of cache only the answers show what is in it."""
        found: dict[str, bytes] = {}
        for alias in settings.CACHES:
            cache = caches[alias]
            if isinstance(cache, LocMemCache):
                with cache._lock:  # type: ignore[attr-defined]  # other threads may write into it meanwhile
                    found |= {f"{alias} {key}": value for key, value in cache._cache.items()}  # type: ignore[attr-defined]
        return found

    def _filed(self) -> dict[str, bytes]:
        root = Path(settings.MEDIA_ROOT)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def _newest_job(self) -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT coalesce(max(id), 0) FROM public.procrastinate_jobs")
            return int(cursor.fetchone()[0])


@contextmanager
def watching() -> Iterator[Watch]:
    watch = Watch()
    root = logging.getLogger()
    root.addHandler(watch.logs)
    try:
        yield watch
    finally:
        root.removeHandler(watch.logs)


# --- what must stay as it is ----------------------------------------------------------------------------------------


def state_of(room: Room, *, but: frozenset[str] = frozenset()) -> dict[str, str]:
    """All that a workspace has, in short: table or place → a digest. `but`: tables that are left out."""
    found = {f"table {table}": digest for table, digest in _tables(room, but)}
    found["its ledger at the authority"] = repr(room.workspace.ledger())
    return found | {f"file {name}": content for name, content in _files_of(room)}


def _tables(room: Room, but: frozenset[str]) -> list[tuple[str, str]]:
    # With xmin, which each write changes: also one that leaves the same words.
    digest = "md5(coalesce(string_agg(t.xmin || t::text, '|' ORDER BY t::text), ''))"
    schema = room.tenant.schema_name
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s ORDER BY 1", [schema])
        names = [name for (name,) in cursor.fetchall() if name not in but]
        parts = [f'SELECT \'{name}\', {digest} FROM "{schema}"."{name}" t' for name in names]  # noqa: S608
        values: list[Any] = []
        for model, lookup in planting.shared_models().items():
            keys = model._base_manager.filter(**{lookup: room.tenant.pk}).values("pk").query
            inner, params = keys.sql_with_params()
            table, pk = model._meta.db_table, model._meta.pk.column
            parts.append(f'SELECT \'{table}\', {digest} FROM public."{table}" t WHERE t."{pk}" IN ({inner})')  # noqa: S608
            values += params
        parts.append(
            f"SELECT 'procrastinate_jobs', {digest} FROM public.procrastinate_jobs t WHERE args->>'tenant_id' = %s"  # noqa: S608
        )
        cursor.execute(" UNION ALL ".join(parts), [*values, str(room.tenant.pk)])
        rows: list[tuple[str, str]] = cursor.fetchall()
    return rows


def _files_of(room: Room) -> Iterator[tuple[str, str]]:
    root = Path(settings.MEDIA_ROOT)
    for path in root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if any(canary.holder == room.slug for canary in room.canaries.find(content)):
                yield str(path.relative_to(root)), content.hex()


def until_settled(*rooms: Room, seconds: float = 10.0) -> None:
    """Settling belongs to no request, so that a call's line may come after its answer."""
    deadline = time.monotonic() + seconds
    for room in rooms:
        from billing.models import Hold

        planted = [row.pk for row in room.rows.get(Hold, [])]
        under_way = Hold.objects.filter(account=room.workspace.account).exclude(pk__in=planted)
        while under_way.exists() or room.workspace.ledger()["reserved"]:
            assert time.monotonic() < deadline, f"a call of {room} is not settled in {seconds} s"
            time.sleep(0.01)
