"""Which requests are made, and what is wrong with what they show and leave.

Each address is asked in each method by each credential at its plain host, with the workspace's own ids and with the
neighbour's; under the other spellings by two credentials each, which change from one spelling to the next. The order
is the same in every run.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from django.db import connection
from procrastinate.contrib.django import app as jobs_app

from tenants.context import current_tenant, enter, tenant_scope
from tenants.jobs import TENANT_ID, has_tenant
from tenants.roles import may
from tests.isolation.crawler.asking import Answer, Asker, Request
from tests.isolation.crawler.canaries import Canary
from tests.isolation.crawler.cases import Case
from tests.isolation.crawler.room import Credential, Room
from tests.isolation.crawler.spellings import Spelling, spellings
from tests.isolation.crawler.walk import Pattern
from tests.isolation.crawler.watch import Watch, state_of, until_settled, watching

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
BODILESS = ("HEAD", "OPTIONS")
WRITES = ("POST", "PUT", "PATCH", "DELETE")
NOBODY = Credential("nobody")
# Reading a page may begin a session; nothing else of a workspace is a stranger's to change.
STRANGERS_MAY_CHANGE = frozenset({"django_session"})
# What changes by being used, also by who is refused: when a session and a key were seen last.
USE_CHANGES = frozenset({"django_session", "users_membersession", "users_apikey"})
# What one whose role does not allow it is told; nobody at all, where the door takes no such credential.
REFUSED = (401, 403, 404, 405)
TO_LOG_IN = b"Location: /login/"
# Whoever comes to a workspace's own address is told its name, as on its log-in page.
PUBLIC_AT_HOME = frozenset({"tenants.Tenant.name"})
# How many credentials try each of the unusual spellings, and every how manieth the unusual methods.
BY_SPELLING, BY_METHOD = 2, 4


@dataclass(frozen=True)
class Finding:
    pattern: Pattern
    what: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.pattern} ({self.pattern.view}): {self.what}" + (f"\n    {self.where}" if self.where else "")


@dataclass
class Covered:
    """For the summary: what was asked, and what its own people saw."""

    requests: Counter[str] = field(default_factory=Counter)
    patterns: set[Pattern] = field(default_factory=set)
    credentials: set[str] = field(default_factory=set)
    spellings: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    seen: set[str] = field(default_factory=set)
    kinds: set[str] = field(default_factory=set)
    jobs: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, request: Request, answer: Answer) -> None:
        self.requests[request.pattern.door] += 1
        self.patterns.add(request.pattern)
        self.credentials.add(request.credential.name)
        self.spellings.add(request.spelling.name)
        self.statuses[answer.status] += 1

    def summary(self) -> list[str]:
        doors = ", ".join(f"{count:,} at {door}" for door, count in sorted(self.requests.items()))
        answers = ", ".join(f"{count:,} × {status}" for status, count in sorted(self.statuses.items()))
        return [
            f"crawled {self.requests.total():,} requests ({doors})",
            f"{len(self.patterns)} patterns, {len(self.credentials)} credentials, {len(self.spellings)} spellings",
            f"answered {answers}; {self.jobs} jobs were enqueued and done",
            f"{len(self.kinds)} kinds of canaries, of which their own people were shown {len(self.seen)}: "
            + ", ".join(sorted(self.seen)),
            f"{len(self.findings)} findings",
        ]


class Crawl:
    """`control` first: the neighbour at home. Then `findings(pattern)` for each."""

    def __init__(self, here: Room, other: Room, cases: Mapping[str, Case], covered: Covered) -> None:
        self.here, self.other, self.cases, self.covered = here, other, cases, covered
        self.canaries = here.canaries
        covered.kinds |= self.canaries.kinds(other.slug)
        self._asker = Asker()
        self._served: dict[Pattern, list[str]] = {}
        self._first_tries: dict[tuple[Pattern, str], set[int]] = {}

    # --- the neighbour at home ---

    def control(self, patterns: Iterable[Pattern]) -> list[Finding]:
        """The neighbour uses its workspace: caches are warm, and its people do see their canaries.

        A case under which nothing works for them is a finding.
        """
        self._be_at(self.other, self.here)
        found: list[Finding] = []
        with watching() as watch:
            for pattern in patterns:
                if problem := self.missing(pattern):
                    found.append(problem)
                    continue
                found += self._control_of(pattern, watch)
        self.other.restore()
        until_settled(self.other)
        self._be_at(self.here, self.other)
        return _once(found)

    def missing(self, pattern: Pattern) -> Finding | None:
        """A pattern that needs a case and has none."""
        if pattern.route in self.cases:
            return None
        needs = [f"what its argument {name} is" for name in pattern.names]
        if pattern.is_regex:
            needs = ["its whole address (`path`)"]
        as_there = ", as tests/isolation/crawler/cases.py does"
        if not needs:
            needs = [f"the body of a {method}" for method in self._methods(pattern, self.other) if method in WRITES]
            # What any plain function of Django's does, for it looks at no method.
            as_there += '; or, for a view that only reads, put @require_safe on it, or say methods=("GET",)'
        if not needs:
            return None
        return Finding(
            pattern,
            f"nobody has said {' and '.join(needs)}. Write CASES['{pattern.route}'] = Case(…) in crawl_cases.py of the "
            f"app{as_there}.",
        )

    def _control_of(self, pattern: Pattern, watch: Watch) -> list[Finding]:
        room, found = self.other, []
        case = self.cases.get(pattern.route, Case())
        worked: dict[str, set[int]] = {}
        # The bare host's API wants a workspace to be named.
        main, _, named, *_ = self._spellings(pattern, room, self.here)
        ways = [main, named] if pattern.door == "bare" else [main]
        for method, spelling, credential in product(self._methods(pattern, room), ways, _owners(room)):
            for request in self._requests(pattern, method, credential, spelling, [room]):
                answer = self._ask(request, room)
                worked.setdefault(method, self._first_tries.get((pattern, method), set())).add(answer.status)
                self.covered.seen |= {one.kind for one in self._shown(request, answer) if one.holder == room.slug}
                found += self._judged(request, answer, watch, case)
        for method, statuses in worked.items():
            if (method in case.bodies or method == "GET") and not case.closed and not _works(statuses):
                # A GET of what takes only a POST is no failure of the case.
                if method == "GET" and 405 in statuses and case.bodies:
                    continue
                found.append(
                    Finding(
                        pattern,
                        f"no {method} of the owner's worked (it answered {sorted(statuses)}), so the crawler sees "
                        "nothing here: mend its case, or say `closed` why.",
                    )
                )
        return found

    # --- everybody else ---

    def findings(self, pattern: Pattern) -> list[Finding]:
        """What is wrong with one address."""
        case = self.cases.get(pattern.route, Case())
        if problem := self.missing(pattern):
            return [problem]
        self.here.restore()
        requests = list(self._selection(pattern))
        strangers = [request for request in requests if self.here.slug not in request.credential.holders]
        members = [request for request in requests if self.here.slug in request.credential.holders]
        refused = [request for request in members if self._is_not_allowed(request)]
        members = [request for request in members if request not in refused]
        with watching() as watch:
            until_settled(self.here, self.other)
            before = state_of(self.other)
            untouched = state_of(self.here, but=STRANGERS_MAY_CHANGE)
            found = self._run(strangers, watch, case)
            if not case.proves:
                found += self._changes(pattern, self.here, untouched, "a stranger", STRANGERS_MAY_CHANGE)
            unchanged = state_of(self.here, but=USE_CHANGES) if refused else {}
            found += self._run(refused, watch, case)
            if refused:
                found += self._changes(pattern, self.here, unchanged, "who may not", USE_CHANGES)
            found += self._run(members, watch, case)
            until_settled(self.here, self.other)
            found += self._changes(pattern, self.other, before, f"{self.here} or a stranger")
        self.covered.findings += (found := _once(found))
        return found

    def _run(self, requests: Iterable[Request], watch: Watch, case: Case) -> list[Finding]:
        found = []
        for request in requests:
            found += self._judged(request, self._ask(request, self.here), watch, case)
        return found

    def _changes(
        self, pattern: Pattern, room: Room, before: dict[str, str], who: str, but: frozenset[str] = frozenset()
    ) -> list[Finding]:
        after = state_of(room, but=but)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        return [Finding(pattern, f"{who} changed {name} of {room}") for name in changed]

    # --- which requests ---

    def _selection(self, pattern: Pattern) -> Iterator[Request]:
        credentials = self._credentials()
        main, *others = self._spellings(pattern, self.here, self.other)
        # What is served before any workspace is looked for; and what web has at the same address, where all of this is
        # asked. The control has been everywhere.
        if not pattern.view or (pattern.door == "bare" and pattern.route in self._routes_at("web")):
            others = []
        rooms = [self.here, self.other]
        served = self._methods(pattern, self.here)
        chosen = self.cases.get(pattern.route, Case()).methods
        for method in chosen or METHODS:
            if method not in served:
                yield next(self._requests(pattern, method, credentials[0], main, [self.here]))
                continue
            by_few = method in BODILESS or not pattern.view
            for credential in credentials[::BY_METHOD] if by_few else credentials:
                for request in self._requests(pattern, method, credential, main, rooms):
                    if not self._is_at_home(request):
                        yield request
            if method in BODILESS:
                continue
            for number, spelling in enumerate(others):
                for step in range(BY_SPELLING):
                    turn = number + 4 * step + sum(pattern.route.encode())
                    credential = credentials[turn % len(credentials)]
                    ways = list(self._requests(pattern, method, credential, spelling, rooms))
                    if not self._is_at_home(ways[turn % len(ways)]):
                        yield ways[turn % len(ways)]

    def _routes_at(self, door: str) -> set[str]:
        return {pattern.route for pattern in self.covered.patterns if pattern.door == door and pattern.view}

    def _is_at_home(self, request: Request) -> bool:
        """The neighbour at its own door, which is its right."""
        return request.names == {self.other.slug} and self.other.slug in request.credential.holders

    def _requests(
        self, pattern: Pattern, method: str, credential: Credential, spelling: Spelling, rooms: list[Room]
    ) -> Iterator[Request]:
        """With each room's ids and each body of the case; once, where nothing differs."""
        case = self.cases.get(pattern.route)
        if case is None:
            yield Request(pattern, method, f"/{pattern.route}", credential, spelling, self.here.slug)
            return
        for room in rooms:
            path = case.path(room) if case.path else pattern.path(case.args(room))
            if query := case.query(room):
                path += "?" + "&".join(f"{name}={value}" for name, value in query.items())
            for body in case.bodies.get(method, [None]):
                filled = body(room) if body else None
                yield Request(pattern, method, path, credential, spelling, room.slug, filled, case.headers(room))
            if not pattern.names and not query and not case.bodies and case.path is None:
                return

    def _methods(self, pattern: Pattern, room: Room) -> list[str]:
        """Those that the view knows, as its owner finds them."""
        case = self.cases.get(pattern.route, Case())
        if case.methods or not pattern.view:
            return list(case.methods or ("GET",))
        if pattern in self._served:
            return self._served[pattern]
        (main,) = self._spellings(pattern, room, self.here if room is self.other else self.other)[:1]
        served = ["GET"]
        for method in METHODS[1:]:
            # A key would be sent away from a page before its method is looked at.
            request = next(self._requests(pattern, method, room.credentials["owner's session"], main, [room]))
            status = self._ask(request, room).status
            if status not in (404, 405):
                served.append(method)
                # It may have done what can be done once: the same name again would be a conflict.
                self._first_tries[pattern, method] = {status}
        self._served[pattern] = served
        return served

    def _credentials(self) -> list[Credential]:
        ours, theirs = self.here.credentials, self.other.credentials
        session, key = theirs["owner's session"], theirs["owner's key"]
        mixed = Credential(
            "owner's session with the neighbour's key",
            frozenset({self.here.slug, self.other.slug}),
            {**ours["owner's session"].headers, **key.headers},
            ours["owner's session"].cookies,
            key.names,
        )
        return [
            ours["owner's session"],
            ours["owner's key"],
            Credential("neighbour's session", session.holders, session.headers, session.cookies),
            replace(key, name="neighbour's key"),
            NOBODY,
            ours["member's session"],
            ours["admin's session"],
            ours["viewer's session"],
            ours["viewer's key"],
            ours["member's old key"],
            ours["revoked key"],
            mixed,
        ]

    def _spellings(self, pattern: Pattern, here: Room, other: Room) -> list[Spelling]:
        """The one under which the door is usually met comes first."""
        plain, bare, *rest = spellings(here.slug, other.slug)
        return [bare, plain, *rest] if pattern.door == "bare" else [plain, bare, *rest]

    def _be_at(self, here: Room, other: Room) -> None:
        here.is_here, other.is_here = True, False

    # --- what is wrong ---

    def _ask(self, request: Request, room: Room) -> Answer:
        room.revive(request.credential)
        answer = self._asker.ask(request)
        self.covered.add(request, answer)
        return answer

    def _shown(self, request: Request, answer: Answer) -> set[Canary]:
        return self.canaries.find(answer.head + b"\n" + answer.body) - self.canaries.find(request.shown())

    def _judged(self, request: Request, answer: Answer, watch: Watch, case: Case) -> list[Finding]:
        whats: list[str] = []
        names, holders = request.names, request.credential.holders
        may_see = names & holders if len(names) == 1 else frozenset[str]()
        if answer.status >= 500 and answer.status not in case.may_answer:
            whats.append(f"answers {answer.status} {answer.error}".strip())
        is_refused = answer.status in REFUSED or TO_LOG_IN in answer.head or _leads_to_its_page(request, answer)
        if self._is_not_allowed(request) and not is_refused:
            whats.append(f"answers {answer.status} to a {request.credential.role}, whose role does not allow it")
        for place, data in (("its head", answer.head), ("its answer", answer.body)):
            whats += self._told(request, place, data, may_see)
        # Of a request's traces only the neighbour's words are none of this workspace's business.
        at_home = names | {self._room_at_home().slug}
        for place, data in watch.traces():
            whats += self._told(request, place, data, at_home)
        for number, task, args in watch.jobs():
            whats += self._job(request, task, args, at_home)
            whats += self._done(request, task, args, watch, at_home)
            with connection.cursor() as cursor:
                cursor.execute("DELETE FROM public.procrastinate_jobs WHERE id = %s", [number])
        if current_tenant() is not None or connection.schema_name != "public":  # type: ignore[attr-defined]
            whats.append("leaves its thread inside a workspace")
            enter(None)
        return [Finding(request.pattern, what, str(request)) for what in whats]

    def _is_not_allowed(self, request: Request) -> bool:
        """Whether its role forbids it in the workspace that it is asked in, and that alone."""
        action = request.pattern.needs(request.method)
        credential = request.credential
        if action is None or not credential.role or request.names != credential.holders:
            return False
        return not may(credential.role, action)

    def _room_at_home(self) -> Room:
        return self.here if self.here.is_here else self.other

    def _told(self, request: Request, place: str, data: bytes, may_see: frozenset[str]) -> list[str]:
        found = self.canaries.find(data)
        if found and not {canary.holder for canary in found} <= may_see:
            found -= self.canaries.find(request.shown())
        at_home = request.names if len(request.names) == 1 else frozenset[str]()
        return [
            f"{place} shows {one.kind} of {one.holder}"
            for one in found
            if one.holder not in may_see and not (one.kind in PUBLIC_AT_HOME and one.holder in at_home)
        ]

    def _job(self, request: Request, task: str, args: dict[str, Any], at_home: frozenset[str]) -> list[str]:
        self.covered.jobs += 1
        whats = self._told(request, f"the job {task}", json.dumps(args).encode(), at_home)
        of = args.get(TENANT_ID)
        home = self._room_at_home()
        if of is None and home.slug in request.names:
            whats.append(f"enqueues the job {task} without its tenant")
        elif of is not None and of != home.tenant.pk:
            whats.append(f"enqueues the job {task} for another tenant")
        return whats

    def _done(
        self, request: Request, task: str, args: dict[str, Any], watch: Watch, at_home: frozenset[str]
    ) -> list[str]:
        """The job is done here and now, inside its tenant, as the jobs process would."""
        known = jobs_app.tasks.get(task)
        if known is None:
            return [f"enqueues the job {task}, which no app has"]
        rooms = {room.tenant.pk: room for room in (self.here, self.other)}
        of = rooms.get(args.pop(TENANT_ID, None))
        try:
            if has_tenant(known) and of is not None:
                with tenant_scope(of.tenant):
                    known.func(**args)
            else:
                known.func(**args)
        except Exception as exc:
            return [f"the job {task} fails: {type(exc).__name__}: {exc}"]
        return [what for place, data in watch.traces()
                for what in self._told(request, f"{place} of the job {task}", data, at_home)]  # fmt: skip


def _owners(room: Room) -> list[Credential]:
    return [room.credentials["owner's session"], room.credentials["owner's key"]]


def _leads_to_its_page(request: Request, answer: Answer) -> bool:
    """The address of a form alone, opened: nothing is done, and its page says itself who may see it."""
    found = re.search(rb"^Location: (/settings/[a-z]+/|/c/[0-9]+/|/prompts/|/)\r?$", answer.head, re.MULTILINE)
    if found is None or request.method not in ("GET", "HEAD"):
        return False
    page = found[1].decode()
    return request.path.startswith("/c/files/" if page == "/" else page)


def _works(statuses: set[int]) -> bool:
    return any(status < 400 for status in statuses)


def _once(found: list[Finding]) -> list[Finding]:
    """The first of each kind: what is wrong, and not each way to see it."""
    kinds: dict[tuple[Pattern, str], Finding] = {}
    for finding in found:
        kinds.setdefault((finding.pattern, finding.what), finding)
    return list(kinds.values())
