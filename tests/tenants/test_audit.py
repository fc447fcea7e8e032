"""The audit trail: written beside what is done, read by those who may, changed by nobody."""

from __future__ import annotations

import csv
import io
import json
import uuid
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import psycopg
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.test import RequestFactory
from django.utils import timezone
from psycopg.errors import InsufficientPrivilege

from tenants.audit import pages, reading
from tenants.audit.events import Event
from tenants.audit.forms import TrailForm
from tenants.audit.models import AuditEvent
from tenants.audit.reading import Filter, events_like
from tenants.audit.trail import record
from tenants.audit.words import AREAS, WORDS, area_of, detail_words
from tenants.limits import Rate
from tenants.models import Tenant
from tenants.users import access
from tenants.users.keys import create_key
from tests.support.factories import WorkspaceFactory
from tests.support.roles import serving_url

PAGE, FILE = "/settings/audit/", "/settings/audit/csv"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@pytest.fixture(scope="module")
def _workspace(app):
    return WorkspaceFactory()


@pytest.fixture
def workspace(_workspace):
    """One for this module, with an empty trail."""
    with _workspace.scope():
        AuditEvent.objects.all().delete()
    return _workspace


@pytest.fixture
def owner(workspace):
    """The owner's browser. Its log-in is the first line."""
    return workspace.client(workspace.owner)


def write(workspace, count=1, event=Event.KEY_MADE, at=None, **fields):
    now = at or timezone.now()
    rows = [
        AuditEvent(
            **{"event": str(event), "at": now + timedelta(seconds=number), "actor": "carol@acme.example", **fields}
        )
        for number in range(count)
    ]
    with workspace.scope():
        return AuditEvent.objects.bulk_create(rows)


def read(client, **query):
    answer = client.get(FILE, query)
    assert answer.status_code == 200, answer.content
    return list(csv.DictReader(io.StringIO(answer.content.decode())))


def test_every_event_has_words_and_every_area_a_name():
    assert set(WORDS) == set(Event)
    assert {area_of(event) for event in Event} == set(AREAS)


def test_details_are_said_as_people_say_them():
    details = {"method": "password+code", "expires_at": "2027-02-26T02:38:05.007+00:00", "here_too": False}
    with timezone.override("Europe/Berlin"):
        said = dict(detail_words(details))
    assert said == {"expires": "26 Feb 2027, 03:38 CET", "this browser too": "no", "method": "password and code"}
    assert detail_words({"left_at": "never"}) == [("left at", "never")]


def test_a_line_says_who_what_when_and_from_where(workspace, owner):
    page = owner.get(PAGE, headers={"user-agent": FIREFOX}).content.decode()
    for said in (workspace.owner.email, "logged in", "method: password", "from 127.0.0.1"):
        assert said in page, said
    with workspace.scope():
        key, secret = create_key(workspace.owner, name="Nightly")
    write(workspace, key_id=key.pk, via="key", event="later.release", agent=FIREFOX)
    page = owner.get(PAGE).content.decode()
    for said in ("by the key Nightly", "later.release", "Firefox on Linux"):
        assert said in page, said
    assert secret not in page


def test_it_is_read_by_those_whose_role_may_and_shows_nothing_of_a_neighbours(workspace, owner, globex, bob):
    write(globex, target="globex-canary")
    member = workspace.client(workspace.member("member@acme.example"))
    for path in (PAGE, FILE):
        assert member.get(path).status_code == 403
        assert workspace.client().get(path).status_code == 302
        assert globex.client(bob).get(path).status_code == 403
        assert b"globex-canary" not in owner.get(path).content
    theirs = write(globex)[0]
    assert owner.get(PAGE, {"before": theirs.pk + 1_000_000}).status_code == 400


def test_it_goes_page_by_page_without_losing_or_repeating_a_line(workspace, owner):
    moment = timezone.now() + timedelta(hours=1)
    # All of one moment, as one transaction writes them.
    written = write(workspace, 45, at=moment, target="same moment")
    with workspace.scope():
        AuditEvent.objects.filter(target="same moment").update(at=moment)
    first = owner.get(PAGE, {"what": "keys"})
    older = first.context["older"]
    second = owner.get(PAGE + older)
    pks = [row["event"].pk for answer in (first, second) for row in answer.context["rows"]]
    assert pks == sorted((row.pk for row in written), reverse=True)
    assert not second.context["older"]
    assert b"Newest" in second.content


def test_the_filters_of_page_and_file(workspace, owner):
    """The zone is the workspace's: there this moment is the next day."""
    Tenant.objects.filter(pk=workspace.tenant.pk).update(time_zone="Asia/Tokyo")
    late = datetime(2026, 3, 1, 20, tzinfo=UTC)  # 2 March, 5:00 in Tokyo
    write(workspace, event=Event.INVITED, at=late, target="dave@acme.example")
    write(workspace, event=Event.LOG_IN_FAILED, at=late, actor="", target="carol@acme.example")
    try:
        for query, count in {
            (("who", "CAROL@acme.example"),): 2,
            (("who", "dave@acme.example"),): 1,
            (("who", "nobody@acme.example"),): 0,
            (("what", "members"),): 1,
            (("what", "sign_in.failed"),): 1,
            (("since", "2026-03-02"), ("until", "2026-03-02")): 2,
            (("until", "2026-03-01"),): 0,
            (("who", "carol@acme.example"), ("what", "members"), ("since", "2026-03-02")): 1,
        }.items():
            assert len(owner.get(PAGE, dict(query)).context["rows"]) == count, query
            assert len(read(owner, **dict(query))) == count, query
        assert b"2 Mar 2026, 05:00" in owner.get(PAGE, {"what": "members"}).content
        (row,) = read(owner, what="members")
        assert row["at"] == "2026-03-01T20:00:00+00:00"
    finally:
        Tenant.objects.filter(pk=workspace.tenant.pk).update(time_zone="UTC")


ODD = [
    ("what", "nothing"), ("what", "keys."), ("since", "yesterday"), ("since", "0001-01-01"), ("until", "9999-12-31"),
    ("until", "2026-02-30"), ("who", "x" * 255), ("who", "a\x00b"), ("before", "x"), ("before", "0"),
    ("before", "9" * 19), ("before", "9" * 30),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), ODD)
def test_an_odd_filter_is_400_with_its_field_named_and_lists_nothing(workspace, owner, name, value):
    answer = owner.get(PAGE, {name: value})
    assert answer.status_code == 400
    assert answer.context["rows"] == []
    if name == "before":
        assert b"That page is not there" in answer.content
    else:
        assert answer.context["form"].errors[name]
        assert b"field--bad" in answer.content
        assert owner.get(FILE, {name: value}).status_code == 400


def test_dates_the_wrong_way_round_are_said_at_the_second(workspace, owner):
    answer = owner.get(PAGE, {"since": "2026-03-02", "until": "2026-03-01"})
    assert answer.status_code == 400
    assert "until" in answer.context["form"].errors
    assert b'value="2026-03-02"' in answer.content


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_no_cell_is_a_formula_and_none_breaks_a_line(workspace, owner, begins):
    hostile = f'{begins}HYPERLINK("http://evil.example";"x")\r\n,<script>alert(1)</script>'
    write(workspace, actor=hostile, target=hostile, agent=hostile, details={"name": hostile})
    (row,) = read(owner, what="keys")
    assert row["who"] == row["target"] == row["agent"] == f"'{hostile}"
    assert json.loads(row["details"]) == {"name": hostile}
    assert b"<script>alert" not in owner.get(PAGE).content


def test_whatever_a_stranger_sends_can_be_written_down(workspace):
    request = RequestFactory().get("/", headers={"user-agent": "a\x00\u202e\nb" + "x" * 500})
    with workspace.scope():
        record(Event.LOG_IN_FAILED, request=request, target="\x00\ud800@" + "x" * 500, typed=["\x00", {"a": "\u2028b"}])
        row = AuditEvent.objects.get()
    assert row.agent.startswith("abxx")
    assert len(row.target) == 255
    assert row.details == {"typed": ["", {"a": "b"}]}


def test_the_file_has_a_header_and_that_it_was_made_is_a_line_itself(workspace, owner, monkeypatch):
    monkeypatch.setattr(pages, "EXPORTED", 3)
    write(workspace, 5)
    answer = owner.get(FILE, {"what": "keys"})
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    assert answer["Content-Disposition"].startswith(f'attachment; filename="audit-{workspace.slug}-')
    lines = answer.content.decode().split("\r\n")
    assert lines[0] == "id,at,who,via,key,event,what,target,details,address,agent"
    assert len(lines) == 1 + 3 + 1
    with workspace.scope():
        made = AuditEvent.objects.get(event=Event.TRAIL_EXPORTED)
    assert (made.actor, made.details) == (workspace.owner.email, {"rows": 3, "what": "keys"})
    assert owner.post(FILE).status_code == 405


ADD = "INSERT INTO {} (event, actor, via, target, details, address, agent) VALUES ('x', '', '', '', '{{}}', '', '')"


@pytest.mark.parametrize("statement", ["UPDATE {} SET event = ''", "DELETE FROM {}", "TRUNCATE {}", "DROP TABLE {}"])
@pytest.mark.skipif(not settings.SERVING_ROLE, reason="DATABASE_URL alone is one role for all")
def test_who_serves_can_add_a_line_and_never_change_one(workspace, authority, database_url, statement):
    table = f"{workspace.tenant.schema_name}.audit_auditevent"
    with psycopg.connect(serving_url(database_url), autocommit=True) as role:
        added = role.execute(ADD.format(table))
        assert added.rowcount == 1
        with pytest.raises(InsufficientPrivilege):
            role.execute(statement.format(table))


def test_a_top_up_by_the_operator_is_written_down_once(workspace):
    for _ in range(2):
        call_command("top_up", workspace.slug, "0.25", key="invoice-7", verbosity=0)
    with workspace.scope():
        row = AuditEvent.objects.get(event=Event.TOPPED_UP)
    assert (row.actor, row.via, row.target, row.details) == ("operator", "command", "invoice-7", {"usd": "0.25"})


def test_neither_a_password_nor_a_session_nor_a_key_is_in_it(workspace, owner):
    owner.post("/settings/keys/", {"name": "crawled"})
    with workspace.scope():
        _, secret = create_key(workspace.owner, name="x")
        text = " ".join(str(row) for row in AuditEvent.objects.values_list())
    from tests.support.cast import PASSWORD

    for kept in (PASSWORD, secret, owner.cookies["sessionid"].value):
        assert kept not in text


# 200,000 were tried: the slowest filter took 16 ms. Filling and emptying so many takes 20 s.
LINES = 20_000


def test_each_filter_goes_by_an_index(workspace, say):
    with workspace.scope():
        _fill(LINES)
        took = {name: _milliseconds(asked) for name, asked in _asked_filters().items()}
        plans = {name: _plan(asked) for name, asked in _asked_filters().items()}
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE audit_auditevent")
    slowest = max(took, key=lambda name: took[name])
    say(f"audit trail, {LINES:,} lines: the slowest filter took {took[slowest]:.0f} ms ({slowest})")
    assert not [name for name, plan in plans.items() if "Seq Scan" in plan]


def _plan(asked):
    if asked.who:
        asked = Filter(events=asked.events, since=asked.since, until=asked.until)
    return reading._chosen(asked, None)[:31].explain()


def _fill(count):
    """A third of the lines failed log-ins, one in a thousand a change of a role, and one person in nearly all."""
    with connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO audit_auditevent (at, actor, via, event, target, details, address, agent)
            SELECT now() - (%s - n) * interval '1 minute',
                CASE WHEN n %% 50 = 0 THEN 'rare' || n %% 5000 ELSE 'often' END,
                'session',
                CASE WHEN n %% 1000 = 0 THEN 'roles.changed' WHEN n %% 3 = 0 THEN 'sign_in.failed'
                    ELSE 'sign_in.logged_in' END,
                CASE WHEN n %% 7 = 0 THEN 'often' ELSE '' END, '{}', '192.0.2.1', repeat('x', 100)
            FROM generate_series(1, %s) n""",
            [count, count],
        )
        cursor.execute("ANALYZE audit_auditevent")


def _asked_filters():
    old = timezone.now() - timedelta(minutes=LINES / 2)
    week = {"since": old, "until": old + timedelta(minutes=LINES / 20)}
    rare, common = ["roles.changed"], ["sign_in.logged_in", "sign_in.failed"]
    return {
        "all": Filter(),
        "person often": Filter(who="often"),
        "person rare": Filter(who="rare0"),
        "nobody": Filter(who="nobody"),
        "event rare": Filter(events=rare),
        "area rare": Filter(events=["roles.changed", "roles.handed_over"]),
        "area never": Filter(events=["keys.made", "keys.revoked"]),
        "area common": Filter(events=common),
        "week": Filter(**week),
        "person often, week": Filter(who="often", **week),
        "person rare, area common": Filter(who="rare0", events=common),
        "person often, event rare": Filter(who="often", events=rare),
        "area rare, week": Filter(events=["roles.changed", "roles.handed_over"], **week),
        "area never, person": Filter(who="often", events=["keys.made", "keys.revoked"]),
    }


def _milliseconds(asked):
    before = AuditEvent.objects.order_by("-at")[LINES // 2]
    took = []
    for place in (None, before):
        for _ in range(2):
            began = datetime.now(UTC)
            events_like(asked, limit=31, before=place)
            took.append((datetime.now(UTC) - began).total_seconds() * 1000)
    return max(min(took[:2]), min(took[2:]))


def test_the_form_knows_whole_areas_and_single_events():
    form = TrailForm({"what": "roles"})
    assert form.is_valid()
    assert form.filter(ZoneInfo("UTC")).events == ["roles.changed", "roles.handed_over"]


def test_what_a_job_writes_in_a_members_name_is_no_sessions(workspace):
    with workspace.scope():
        record(Event.RENAMED, actor=workspace.owner, day=date(2026, 11, 28), left=3)
        line = AuditEvent.objects.get()
    assert (line.actor, line.via) == (workspace.owner.email, "job")
    assert line.details == {"day": "2026-11-28", "left": 3}


def test_nobody_floods_the_trail_by_forms(workspace, owner, monkeypatch):
    monkeypatch.setattr(access, "ACTS", Rate(f"acts-{uuid.uuid4().hex}", burst=3, every=3_600.0))
    made = [owner.post("/settings/keys/", {"name": f"k{n}", "scopes": "chat", "life": "30"}) for n in range(4)]
    assert [one.status_code for one in made] == [302, 302, 302, 429]
    assert owner.get(FILE).status_code == 429
    assert owner.get(PAGE).status_code == 200
    with workspace.scope():
        assert AuditEvent.objects.filter(event=Event.KEY_MADE).count() == 3
