"""Find my workspaces, and log-in by a link in a mail: the answers tell nothing, the mail tells its reader alone."""

import json
import re
import uuid
from datetime import timedelta
from unittest.mock import patch

import pytest
from django.test import Client
from django.utils import timezone

from tenants.limits import reset
from tenants.mail.models import OutgoingMail
from tenants.models import Membership
from tenants.sealing import unseal
from tenants.users import directory, finding, tasks
from tenants.users.links import make_link
from tenants.users.models import Link, User
from tests.support.cast import PASSWORD
from tests.support.jobs import rows

pytestmark = pytest.mark.usefixtures("upstream")


@pytest.fixture(autouse=True)
def _an_empty_queue_and_no_counts(database):
    rows("DELETE FROM public.procrastinate_jobs WHERE status = 'todo'")
    reset(finding.ADDRESS, "127.0.0.1")
    reset(finding.SITE)
    reset(finding.NOBODY_SITE)


def somebody(*workspaces):
    """A new person's address, a member of each."""
    email = f"carol-{uuid.uuid4().hex[:8]}@example.org"
    for workspace in workspaces:
        workspace.member(email)
        directory.note(workspace.tenant, email)
    return email


def bare():
    return Client(headers={"host": "localhost"})


def do_jobs(name):
    """Run what was enqueued for the task of that name; their arguments."""
    found = rows(
        "DELETE FROM public.procrastinate_jobs WHERE task_name = %s RETURNING args", f"tenants.users.tasks.{name}"
    )
    arguments = [args if isinstance(args, dict) else json.loads(args) for (args,) in found]
    for args in arguments:
        getattr(tasks, name).func(sealed=args["sealed"])
    return arguments


def mail_to(email):
    """The text of the newest one in the bound schema's outbox."""
    mail = OutgoingMail.objects.filter(to=email).order_by("pk").last()
    return mail and json.loads(unseal(mail.sealed_body))["txt"]


def secret_in(text):
    return re.search(r"/login/link/([\w-]{43})/", text)[1]


def test_the_answer_is_the_same_for_everybody_and_nobody_stands_in_the_queue(acme):
    answers = set()
    for email in (somebody(acme), "nobody@example.org"):
        answer = bare().post("/find/", {"email": email})
        page = bare().get(answer["Location"])
        answers.add((answer.status_code, answer["Location"], answer.content, page.content))
        assert email not in str(rows("SELECT args FROM public.procrastinate_jobs"))
    assert len(answers) == 1
    on_host = {
        (answer.status_code, answer["Location"], answer.content)
        for answer in (acme.client().post("/login/link/", {"email": e}) for e in (acme.owner.email, "no@example.org"))
    }
    assert len(on_host) == 1


def test_the_request_asks_the_same_of_the_database_for_everybody(acme, django_assert_num_queries):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    asked = []
    for email in (somebody(acme), "nobody-here@example.org"):
        with CaptureQueriesContext(connection) as seen:
            bare().post("/find/", {"email": email})
        asked.append([re.sub(r"'[^']*'", "", query["sql"]) for query in seen.captured_queries])
    assert len(asked[0]) == len(asked[1]) > 0


def test_one_mail_lists_each_workspace_with_a_link_that_logs_in_there_alone(acme, globex):
    email = somebody(acme, globex)
    bare().post("/find/", {"email": f" {email.upper()}"})
    do_jobs("mail_workspaces")
    text = mail_to(email)
    secrets = dict(re.findall(r"//([\w-]+)\.localhost:\d+/login/link/([\w-]{43})/", text))
    assert secrets.keys() == {acme.slug, globex.slug}
    at_acme = acme.client()
    # A neighbour's link opens nothing, and is not spent by the try.
    assert at_acme.get(f"/login/link/{secrets[globex.slug]}/").status_code == 400
    assert at_acme.post(f"/login/link/{secrets[globex.slug]}/").status_code == 400
    assert at_acme.get("/").status_code == 302
    here = f"/login/link/{secrets[acme.slug]}/"
    # To look is not to use.
    for _ in range(2):
        looked = at_acme.get(here)
        assert looked.status_code == 200
        assert email.encode() in looked.content
        assert looked["Referrer-Policy"] == "strict-origin"
    assert at_acme.get("/").status_code == 302
    assert at_acme.post(here)["Location"] == "/"
    assert at_acme.get("/").status_code == 200
    again = acme.client()
    assert again.post(here).status_code == 400
    assert again.get(here).content.count(b"/find/") == 1
    assert again.get("/").status_code == 302
    with acme.scope():
        assert User.objects.get(email=email).email_confirmed_at
    with globex.scope():
        assert User.objects.get(email=email).email_confirmed_at is None


def test_a_stranger_who_asks_again_and_again_ends_no_link_that_was_mailed(acme):
    email = somebody(acme)
    for n in range(finding.TO_ONE.burst + 3):
        reset(finding.ADDRESS, "127.0.0.1")
        bare().post("/find/", {"email": email})
        do_jobs("mail_workspaces")
        if n == finding.TO_ONE.burst - 1:
            path = f"/login/link/{secret_in(mail_to(email))}/"
    assert OutgoingMail.objects.filter(to=email).count() == finding.TO_ONE.burst
    assert acme.client().get(path).status_code == 200


def test_whoever_signs_up_with_your_address_does_not_keep_your_own_workspaces_out(acme, globex, monkeypatch):
    monkeypatch.setattr(finding, "WORKSPACES", 1)
    first, last = sorted((acme, globex), key=lambda one: one.tenant.name)
    email = somebody(first, last)
    with last.scope():
        User.objects.filter(email=email).update(email_confirmed_at=timezone.now())
    tasks.mail_workspaces.func(sealed=finding._sealed(email))
    assert re.findall(r"//([\w-]+)\.localhost:\d+/login/link/", mail_to(email)) == [last.slug]


def test_an_address_that_is_in_none_is_told_so_once_a_day(acme):
    email = f"nobody-{uuid.uuid4().hex}@example.org"
    for _ in range(3):
        bare().post("/find/", {"email": email})
    do_jobs("mail_workspaces")
    assert OutgoingMail.objects.filter(to=email).count() == 1
    assert "It is in none." in mail_to(email)


def test_all_such_mails_together_have_a_limit(acme):
    sealed = [finding._sealed(f"n{n}-{uuid.uuid4().hex}@example.org") for n in range(finding.NOBODY_SITE.burst + 3)]
    before = OutgoingMail.objects.count()
    for one in sealed:
        tasks.mail_workspaces.func(sealed=one)
    assert OutgoingMail.objects.count() == before + finding.NOBODY_SITE.burst


def test_one_address_gets_three_mails_and_then_waits_without_a_word(acme):
    email = somebody(acme)
    for _ in range(5):
        assert bare().post("/find/", {"email": email}).status_code == 302
    do_jobs("mail_workspaces")
    assert OutgoingMail.objects.filter(to=email).count() == finding.TO_ONE.burst


def test_who_asks_too_often_is_told_when_on_the_form_that_keeps_what_was_typed(acme):
    for _ in range(finding.ADDRESS.burst):
        bare().post("/find/", {"email": "a@example.org"})
    refused = bare().post("/find/", {"email": "kept@example.org"})
    assert refused.status_code == 429
    assert int(refused["Retry-After"]) > 0
    assert b"kept@example.org" in refused.content
    assert bare().post("/find/", {"email": "nonsense"}).status_code == 400


def test_a_member_who_was_removed_is_not_found_whatever_the_directory_says(acme):
    email = somebody(acme)
    with acme.scope():
        User.objects.filter(email=email).update(is_active=False)
    tasks.mail_workspaces.func(sealed=finding._sealed(email))
    assert "login/link" not in mail_to(email)
    with acme.scope():
        tasks.mail_log_in_link.func(sealed=finding._sealed(email))
        assert mail_to(email) is None


def test_a_link_that_was_asked_for_on_the_workspaces_host_leads_on_to_where_one_was_going(acme, globex):
    email = somebody(acme)
    client = acme.client()
    assert b"/login/link/?next=%2Fbudget%2F" in client.get("/login/?next=/budget/").content
    client.post("/login/link/", {"email": email, "next": "/budget/"})
    with acme.scope():
        do_jobs("mail_log_in_link")
        text = mail_to(email)
    assert "?next=%2Fbudget%2F" in text
    assert client.post(f"/login/link/{secret_in(text)}/", {"next": "/budget/"})["Location"] == "/budget/"
    with globex.scope():
        tasks.mail_log_in_link.func(sealed=finding._sealed(email))
        assert mail_to(email) is None


def test_a_newer_link_ends_the_one_before_and_one_is_over_after_fifteen_minutes(acme):
    member = acme.member(somebody(acme))
    with acme.scope():
        first, second = (make_link(member, Link.Purpose.LOG_IN, email=member.email) for _ in range(2))
        other = make_link(member, Link.Purpose.RESET, email=member.email)
    client = acme.client()
    assert client.get(f"/login/link/{first}/").status_code == 400
    assert client.get(f"/login/link/{other}/").status_code == 400
    assert client.get(f"/login/link/{second}/").status_code == 200
    with patch("django.utils.timezone.now", return_value=timezone.now() + timedelta(minutes=16)):
        assert client.get(f"/login/link/{second}/").status_code == 400
    with acme.scope():
        User.objects.filter(pk=member.pk).update(email="moved@example.org")
    assert client.post(f"/login/link/{second}/").status_code == 400
    assert client.get("/").status_code == 302


def test_a_link_in_a_log_is_not_the_links_secret(acme, caplog):
    from tenants.logs import NoTokens

    caplog.handler.addFilter(NoTokens())
    acme.client().get(f"/login/link/{'s' * 43}/")
    assert "s" * 43 not in caplog.text


def test_workspaces_of_before_the_directory_are_found_by_a_job_that_nobody_starts(acme, globex):
    email = somebody(acme, globex)
    Membership.objects.filter(tenant__in=[acme.tenant, globex.tenant]).delete()
    assert not directory.workspaces_of(email)
    with patch.object(tasks.directory, "refresh", wraps=directory.refresh) as refreshed:
        tasks.fill_directory.func(0)
        assert {acme.slug, globex.slug} <= {tenant.slug for tenant in directory.workspaces_of(email)}
        refreshed.reset_mock()
        tasks.fill_directory.func(0)
        assert acme.tenant not in [call.args[0] for call in refreshed.call_args_list]


def test_the_nightly_round_mends_the_directory_in_pieces_and_goes_past_one_that_fails(acme, globex, monkeypatch):
    email = somebody(acme, globex)
    directory.note(acme.tenant, "gone@example.org")
    Membership.objects.filter(tenant=globex.tenant).delete()
    monkeypatch.setattr(tasks, "WORKSPACES_A_RUN", 1)
    tasks.refresh_directory.func(0)
    name = "tenants.users.tasks.refresh_directory_after"
    pieces = 0
    while found := rows("DELETE FROM public.procrastinate_jobs WHERE task_name = %s RETURNING args", name):
        with patch.object(tasks.directory, "refresh", wraps=directory.refresh) as refreshed:
            if pieces == 0:
                refreshed.side_effect = ZeroDivisionError
            ((args,),) = found
            tasks.refresh_directory_after.func(**(args if isinstance(args, dict) else json.loads(args)))
            assert refreshed.call_count <= 1
        pieces += 1
    assert pieces >= 3
    assert globex.slug in {tenant.slug for tenant in directory.workspaces_of(email)}


def test_a_log_in_sent_twice_goes_where_the_first_one_went(acme, alice):
    acme.client(alice)
    client = acme.client(csrf=True)
    page = client.get("/login/?next=/budget/").content.decode()
    old = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[1]
    form = {"email": alice.email, "password": PASSWORD, "next": "/budget/", "csrfmiddlewaretoken": old}
    here = {"Origin": f"http://{acme.host}"}
    assert client.post("/login/", form, headers=here)["Location"] == "/budget/"
    assert client.post("/login/", form, headers=here)["Location"] == "/budget/"
    # A form of another site's that says the same gets a page.
    assert client.post("/login/", form, headers={"Origin": "https://evil.example"}).status_code == 403
    assert client.get("/login/")["Location"] == "/"
    assert client.get("/login/?next=/budget/")["Location"] == "/budget/"
    assert client.get("/login/?next=//evil.example")["Location"] == "/"
