"""The outbox, against a real mail server on loopback: what it is told, and what becomes of a mail that it refuses."""

import json
import time
import traceback
import uuid
from datetime import timedelta

import pytest
from django.core.mail.backends.base import BaseEmailBackend
from django.core.management import call_command
from django.test import override_settings
from django.utils import timezone

from tenants.limits import Rate
from tenants.mail import sending, strangers, tasks
from tenants.mail.lines import one_line
from tenants.mail.models import OutgoingMail
from tenants.mail.outbox import send
from tenants.mail.sending import NotSent, send_now
from tenants.sealing import seal, unseal
from tests.support.jobs import JobsProcess, job_state, rows, until
from tests.support.smtp import MailServer

SECRET = "https://acme.localhost/login/link/kO0secret/"


@pytest.fixture(autouse=True)
def _no_names_are_looked_up(monkeypatch, database):
    monkeypatch.setattr("socket.getfqdn", lambda name="": "test.invalid")


def waiting(workspace, *, to="carol@example.org", subject="Log in", text=SECRET) -> int:
    """A mail in the outbox, and no job."""
    with workspace.scope():
        body = {"txt": f"Open\n{text}\n", "html": f"<p>{text}</p>"}
        return OutgoingMail.objects.create(to=to, subject=subject, sealed_body=seal(json.dumps(body))).pk


def row(workspace, pk) -> OutgoingMail:
    with workspace.scope():
        return OutgoingMail.objects.get(pk=pk)


def try_to_send(workspace, pk, server, *, patience: float = 30) -> OutgoingMail:
    """For a server that hangs on purpose it is not worth while to be patient."""
    with override_settings(**server.settings, EMAIL_TIMEOUT=patience), workspace.scope():
        send_now(pk)
    return row(workspace, pk)


def test_a_mail_goes_out_once_in_the_workspaces_name_and_its_body_is_forgotten(acme):
    with MailServer() as server:
        pk = waiting(acme)
        sent = try_to_send(acme, pk, server)
        try_to_send(acme, pk, server)
    (mail,) = server.mails
    assert (mail["To"], server.recipients) == ("carol@example.org", ["carol@example.org"])
    assert str(mail["From"]) == f"{acme.tenant.name} · Tenantry <no-reply@localhost>"
    assert (mail["Subject"], mail["Auto-Submitted"]) == ("Log in", "auto-generated")
    assert mail["Message-ID"].endswith("@localhost>")
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
    assert SECRET in mail.get_body(("plain",)).get_content().splitlines()
    assert sent.sent_at
    assert sent.sealed_body == ""


@pytest.mark.parametrize(
    "odd",
    [
        "A\r\nBcc: eve@example.org",
        "A\x0bBcc: eve\x00@example.org\x85",
        '"<eve@example.org>, "',
        "A\\",
        "=?utf-8?q?=0D=0ABcc:_eve@example.org?=",
        "Ünï · (eve@example.org)",
        "x" * 300,
    ],
)
def test_no_name_and_no_subject_adds_a_header_or_a_recipient(acme, odd, monkeypatch):
    monkeypatch.setattr(acme.tenant, "name", odd[:100])
    with MailServer() as server:
        pk = waiting(acme, subject=one_line(odd, 255))
        assert try_to_send(acme, pk, server).sent_at
    (mail,) = server.mails
    (sender,) = mail["From"].addresses
    assert (sender.addr_spec, server.recipients) == ("no-reply@localhost", ["carol@example.org"])
    assert {"bcc", "cc", "reply-to"}.isdisjoint(name.lower() for name in mail.keys())  # noqa: SIM118
    # Python's parser leaves a space between two encoded words.
    assert sender.display_name.replace(" ", "").endswith("·Tenantry")
    assert one_line(odd, 255).split() == mail["Subject"].split()


@pytest.mark.parametrize(
    "to", ["a@example.org, eve@example.org", "a@example.org\nBcc: eve@example.org", "eve", "a@b@c"]
)
def test_a_mail_goes_to_one_address_or_to_none(acme, to):
    with MailServer() as server:
        pk = waiting(acme, to=to)
        given_up = try_to_send(acme, pk, server)
    assert given_up.given_up_at
    assert given_up.sealed_body == ""
    assert server.mails == server.recipients == []


def test_what_a_recipients_server_refuses_for_good_is_given_up_at_once_without_a_word_of_it_in_the_log(acme, caplog):
    with MailServer(RCPT="550 5.1.1 no carol@example.org here") as server:
        pk = waiting(acme)
        given_up = try_to_send(acme, pk, server)
    assert given_up.given_up_at
    assert given_up.sealed_body == ""
    assert f"mail={pk} 550 5.1.1 no … here" in caplog.text
    assert "carol" not in caplog.text
    assert SECRET not in caplog.text


class OfAService(BaseEmailBackend):
    """A builder's own: what it raises is no error of SMTP, and quotes what it was given."""

    def send_messages(self, messages):
        raise ValueError(f"422 {messages[0].to} {messages[0].body}")


def test_what_a_mail_backend_of_ones_own_raises_is_tried_again_for_a_day_and_not_quoted(acme, caplog, settings):
    settings.EMAIL_BACKEND = f"{__name__}.OfAService"
    pk = waiting(acme)
    with acme.scope():
        with pytest.raises(NotSent) as failure:
            send_now(pk)
        OutgoingMail.objects.filter(pk=pk).update(created_at=timezone.now() - timedelta(hours=25))
        send_now(pk)
    assert row(acme, pk).given_up_at
    assert f"mail={pk} ValueError" in caplog.text
    said = caplog.text + "".join(traceback.format_exception(failure.value))
    assert SECRET not in said
    assert "carol" not in said


@pytest.mark.parametrize(
    "answers",
    [{"RCPT": "451 later"}, {"end": "452 full"}, {"MAIL": "550 not from you"}, {"CONNECT": "drop"}, {"CONNECT": "hang"},
     {"end": "drop"}],
)  # fmt: skip
def test_what_may_pass_is_tried_again_for_a_day(acme, caplog, answers):
    with MailServer(**answers) as server:
        pk = waiting(acme)
        patience = 0.3 if "hang" in answers.values() else 30
        with pytest.raises(NotSent):
            try_to_send(acme, pk, server, patience=patience)
        assert row(acme, pk).sealed_body
        with acme.scope():
            OutgoingMail.objects.filter(pk=pk).update(created_at=timezone.now() - timedelta(hours=25))
        given_up = try_to_send(acme, pk, server, patience=patience)
    assert given_up.given_up_at
    assert given_up.sealed_body == ""
    assert SECRET not in caplog.text


@pytest.mark.parametrize("when", ["CONNECT", "DATA", "end"])
def test_a_server_that_drips_keeps_its_sender_for_no_longer_than_one_that_hangs(acme, monkeypatch, when):
    monkeypatch.setattr("tenants.mail.backends.CONVERSATION_SECONDS", 0.4)
    with MailServer(**{when: "drip"}) as server, pytest.raises(NotSent):
        began = time.monotonic()
        try_to_send(acme, waiting(acme), server)
    assert time.monotonic() - began < 20  # it would drip for as long as somebody listens


def test_a_server_whose_name_nobody_can_look_up_is_one_that_is_away(acme):
    pk = waiting(acme)
    with MailServer() as server, acme.scope(), pytest.raises(NotSent):
        with_that_name = override_settings(**{**server.settings, "EMAIL_HOST": f"{'a' * 70}.example"})
        with_that_name(send_now)(pk)


def test_a_server_that_hangs_at_its_good_bye_has_the_mail(acme):
    with MailServer(QUIT="hang") as server:
        pk = waiting(acme)
        assert try_to_send(acme, pk, server, patience=3).sent_at
    assert len(server.mails) == 1


def test_of_two_processes_one_sends(acme):
    with MailServer() as server, acme.scope():
        pk = waiting(acme)
        with sending.if_nobody_is(f"mail:{acme.tenant.schema_name}:{pk}"), pytest.raises(NotSent):
            try_to_send(acme, pk, server)
    assert server.mails == []


def test_a_mail_whose_link_is_over_is_not_sent(acme):
    with acme.scope():
        send(
            "carol@example.org", "log_in_link", subject="Log in", until=timezone.now(), url=SECRET, email="c@d.example"
        )
        pk = OutgoingMail.objects.latest("pk").pk
    with MailServer() as server:
        assert try_to_send(acme, pk, server).given_up_at
    assert server.mails == []


def test_the_waits_grow_to_two_hours_and_never_end(acme):
    job = type("Job", (), {"attempts": 0})
    for job.attempts, seconds in ((0, 4), (1, 16), (2, 64), (5, 4096), (6, 7200), (50, 7200)):
        wait, began = timedelta(seconds=seconds), timezone.now()
        decision = tasks.Growing().get_retry_decision(exception=NotSent(), job=job)
        assert began + wait <= decision.retry_at <= timezone.now() + wait


def test_a_site_without_a_mail_server_sends_nothing_and_says_so_once(acme, caplog, monkeypatch):
    monkeypatch.setattr(sending, "_without_server_was_said", False)
    pks = [waiting(acme), waiting(acme)]
    with override_settings(EMAIL_BACKEND="tenants.mail.backends.Nowhere"), acme.scope():
        for pk in pks:
            send_now(pk)
    assert all(row(acme, pk).given_up_at and not row(acme, pk).sealed_body for pk in pks)
    assert caplog.text.count("SMTP_HOST is not set") == 1
    assert SECRET not in caplog.text


def test_a_deployment_check_warns_of_it(capsys):
    with override_settings(EMAIL_BACKEND="tenants.mail.backends.Nowhere"):
        call_command("check", "--deploy")
    assert "mail.W001" in capsys.readouterr().err


def test_a_laptop_prints_the_text_with_its_link_whole(acme, capsys):
    pk = waiting(acme, text=SECRET + "x" * 200)
    with override_settings(EMAIL_BACKEND="tenants.mail.backends.Printing"), acme.scope():
        send_now(pk)
    said = capsys.readouterr().out
    assert SECRET + "x" * 200 in said.splitlines()
    assert "To: carol@example.org\nSubject: Log in" in said
    assert f"{acme.tenant.name} · Tenantry" in said


def test_mails_are_remembered_for_thirty_days_and_lost_ones_end(acme, globex):
    sent, lost, new = waiting(acme), waiting(acme), waiting(acme)
    neighbours = waiting(globex)
    now = timezone.now()
    with acme.scope():
        OutgoingMail.objects.filter(pk=sent).update(created_at=now - timedelta(days=31), sent_at=now)
        OutgoingMail.objects.filter(pk=lost).update(created_at=now - timedelta(days=3))
        tasks.forget_mails.func()
        assert not OutgoingMail.objects.filter(pk=sent).exists()
    assert (row(acme, lost).given_up_at, row(acme, lost).sealed_body) != (None, "")
    assert row(acme, lost).sealed_body == ""
    assert row(acme, new).sealed_body
    assert row(globex, neighbours).sealed_body


def test_what_is_asked_for_in_a_transaction_that_fails_is_never_sent_and_text_is_not_escaped(acme, monkeypatch):
    from django.db import transaction

    monkeypatch.setattr(acme.tenant, "name", "A & <B>")
    with acme.scope():
        before = OutgoingMail.objects.count()
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            send("carol@example.org", "log_in_link", subject="Log in", url=SECRET, email="c@d.example")
            1 / 0  # noqa: B018
        assert OutgoingMail.objects.count() == before
        send("carol@example.org", "log_in_link", subject="Log in", url=SECRET, email="c@d.example")
        body = json.loads(unseal(OutgoingMail.objects.latest("pk").sealed_body))
    assert "A & <B>" in body["txt"]
    assert "A &amp; &lt;B&gt;" in body["html"]
    assert "<B>" not in body["html"]


def test_a_mail_server_that_hangs_keeps_other_jobs_from_nothing(acme, database_url, authority):
    """The general worker has four places; mails have their own two."""
    with MailServer(CONNECT="hang") as server:
        with JobsProcess(database_url=database_url, authority=authority, **server.variables) as jobs, acme.scope():
            for _ in range(6):
                tasks.send_mail.defer(mail_id=waiting(acme))
            until(lambda: server.connections == 2, said=lambda: jobs.output)
            other = tasks.forget_mails.defer()
            until(lambda: job_state(other) is None, said=lambda: jobs.output)
            assert server.connections == 2  # the first two hang still, or others would have come
            rows("DELETE FROM public.procrastinate_jobs WHERE queue_name = 'mails' AND status = 'todo'")
            server.let_go()
        rows("DELETE FROM public.procrastinate_jobs WHERE queue_name = 'mails'")


def test_an_address_that_nobody_confirms_gets_so_many_mails_from_all_workspaces_together(acme, globex, monkeypatch):
    monkeypatch.setattr(strangers, "UNPROVEN", Rate("mail-unproven", burst=3, every=3_600.0))
    victim, carol = (f"{name}-{uuid.uuid4().hex[:8]}@example.org" for name in ("victim", "carol"))
    for workspace in (acme, globex):
        workspace.member(victim)
    member = acme.member(carol)
    with acme.scope():
        type(member).objects.filter(pk=member.pk).update(email_confirmed_at=timezone.now())
    with MailServer(end="452 full") as server, pytest.raises(NotSent):
        try_to_send(acme, waiting(acme, to=victim), server)
    with MailServer() as server:
        sent = [
            bool(try_to_send(workspace, waiting(workspace, to=victim), server).sent_at)
            for workspace in (acme, globex, acme, globex)
        ]
        assert sent == [True] * 3 + [False], "one that waits for its server is not counted"
        assert all(try_to_send(acme, waiting(acme, to=carol), server).sent_at for _ in range(5))
        # Carol's address at the neighbour's, where she has confirmed nothing.
        globex.member(carol)
        assert [bool(try_to_send(globex, waiting(globex, to=carol), server).sent_at) for _ in range(4)] == sent
