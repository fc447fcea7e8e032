"""The list of conversations beside the one that is open: the newest first, in pages, or those that a search finds.

Owns the order, the groups and the cursor of the list. Must not show a conversation that is neither the reader's own nor
shared, and changes none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from django.db.models import Q, QuerySet
from django.utils import timezone

from chat.models import Conversation
from chat.searching import MAX_QUERY, Found, TooMuch, search
from tenants.http import RateLimited, TenantRequest
from tenants.limits import Rate, take
from tenants.spelling import number_in

SHOWN = 50
# All pinned ones stand on every page of the list, so that there cannot be any number of them.
MOST_PINNED = 30
# One can keep the database busy for two seconds. What is found is searched for again when it is opened.
SEARCHES = Rate("searches", burst=60, every=1.0, words="You have searched a great many times just now.")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Group:
    """Conversations under one name. `key` is what the page calls it."""

    key: str
    name: str
    items: list[Conversation]


@dataclass(slots=True)
class Listing:
    """What the list shows. `older` and `before` are cursors: where the next page begins, and where this one did."""

    groups: list[Group] = field(default_factory=list)
    older: str = ""
    before: str = ""
    query: str = ""
    found: list[Found] = field(default_factory=list)
    has_more: bool = False
    has_open: bool = False
    problem: str = ""

    @property
    def is_asked(self) -> bool:
        """Whether somebody has searched in it or turned its page, and so looks at it first."""
        return bool(self.query or self.before)

    @property
    def has_any(self) -> bool:
        return any(group.items for group in self.groups)


def listing(request: TenantRequest, shown: Conversation | None) -> Listing:
    """By the address: `?q=` searches, `?before=` is an older page. The open one is always among them."""
    query = " ".join(request.GET.get("q", "").replace("\x00", " ").split())[:MAX_QUERY]
    if query:
        return _searched(request, query, shown)
    before = request.GET.get("before", "")
    start = parsed(before)
    newest_first = own(request).filter(pinned_at=None).order_by("-active_at", "-pk")
    page = list(from_there(newest_first, "active_at", start)[: SHOWN + 1])
    pinned = list(own(request).filter(pinned_at__isnull=False).order_by("-pinned_at", "-pk")[:MOST_PINNED])
    items = page[:SHOWN]
    found = Listing(
        groups=[Group("pinned", "Pinned", pinned), *_by_day(items)],
        older=cursor(items[-1].active_at, items[-1].pk) if len(page) > SHOWN else "",
        before=before if start else "",
    )
    if shown is not None and not any(shown.pk == item.pk for group in found.groups for item in group.items):
        found.groups.insert(0, Group("open", "Open", [shown]))
    return found


def own(request: TenantRequest) -> QuerySet[Conversation]:
    return Conversation.objects.filter(owner=request.user, deleted_at=None)


def _by_day(items: Iterable[Conversation]) -> list[Group]:
    """In the time zone of the page, which is the workspace's."""
    today = timezone.localdate()
    groups = [Group("today", "Today", []), Group("yesterday", "Yesterday", []), Group("earlier", "Earlier", [])]
    for item in items:
        day = timezone.localtime(item.active_at).date()
        at = 0 if day >= today else 1 if day == today - timedelta(days=1) else 2
        groups[at].items.append(item)
    return groups


def from_there(
    found: QuerySet[Conversation], moment: str, start: tuple[datetime, int] | None
) -> QuerySet[Conversation]:
    """What comes after a cursor in a list that is ordered by that moment and the number, the newest first."""
    if start is None:
        return found
    at, pk = start
    # The first condition alone says where the index is to begin.
    return found.filter(**{f"{moment}__lte": at}).filter(Q(**{f"{moment}__lt": at}) | Q(pk__lt=pk))


def cursor(last: datetime, pk: int) -> str:
    """Where the next page begins: a moment in microseconds, for a float has not enough digits, and a number."""
    return f"{(last - _EPOCH) // timedelta(microseconds=1)}-{pk}"


def parsed(cursor: str) -> tuple[datetime, int] | None:
    """None for what is no cursor: the list then begins at its beginning."""
    at, pk = (number_in(part) for part in cursor.partition("-")[::2])
    if at is None or pk is None:
        return None
    try:
        return _EPOCH + timedelta(microseconds=at), pk
    except OverflowError:
        return None


def _searched(request: TenantRequest, query: str, shown: Conversation | None) -> Listing:
    try:
        take(SEARCHES, request.tenant.pk, request.user.pk)
        found = search(request.user.pk, query, most=SHOWN + 1)
    except TooMuch:
        return Listing(query=query, problem="This search took too long. Add a word, or take a rarer one.")
    except RateLimited as exc:
        return Listing(query=query, problem=exc.message)
    has_open = any(shown is not None and shown.pk == item.pk for item in found[:SHOWN])
    return Listing(query=query, found=found[:SHOWN], has_more=len(found) > SHOWN, has_open=has_open)
