"""How each address of this project is filled. An app of yours has a module `crawl_cases` with the same two names.

    CASES = {
        "notes/<int:pk>/": Case(args=lambda room: {"pk": room.row(Note).pk}),
        "notes/": Case(bodies={"POST": [lambda room: {"text": "hello"}]}),
    }
    PLANTS = {"notes.Chart": lambda room, person, canary: Chart.objects.create(…, title=canary("title"))}

The key is the route as its urlconf has it, without the first slash. Each function gets a `Room`, and is called with the
workspace that is asked and with the neighbour: so the same address is also asked with the neighbour's ids. A body is a
form on pages, and JSON under /api/. `PLANTS` is for models that planting.py cannot fill by itself.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from zlib import crc32

import pyotp
from django.apps import apps
from django.conf import settings
from django.core.files.base import ContentFile
from django.utils import timezone

from billing.engine.loop import here, run
from billing.models import Hold, KeyRate, TopUp
from billing.provisioning import status_token
from billing.topups import top_up
from chat.models import Attachment, Conversation, SavedPrompt
from tenants.audit.models import AuditEvent
from tenants.context import tenant_scope
from tenants.sealing import seal
from tenants.users.handoff import issue_token
from tenants.users.keys import create_key, digest
from tenants.users.links import make_link
from tenants.users.models import ApiKey, Identity, Invitation, Link, MemberSession, Totp, User
from tests.isolation.crawler.room import Room
from tests.support.cast import PASSWORD
from tests.support.factories import said

Fill = Callable[[Room], dict[str, Any]]


def nothing(room: Room) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Case:
    """`bodies`: for each method that takes one, those to send. `path`: the whole address, for a pattern that is a
    regular expression. `methods`: those to try, for a view that takes any and does the same.

    `closed`: why even an owner's request is refused here; else that is a finding, for the case would be wrong, and the
    crawler blind. `proves`: what in the body says who asks, so that a request without any other credential may change
    the workspace. `may_answer`: statuses from 500 on that are right here.
    """

    args: Fill = nothing
    query: Fill = nothing
    headers: Fill = nothing
    bodies: Mapping[str, Sequence[Fill]] = field(default_factory=dict)
    path: Callable[[Room], str] | None = None
    methods: tuple[str, ...] = ()
    closed: str = ""
    proves: str = ""
    may_answer: frozenset[int] = frozenset()


def all_cases() -> dict[str, Case]:
    found = dict(CASES)
    for module in _modules_of_apps():
        found |= getattr(module, "CASES", {})
    return found


def all_plants() -> dict[str, Any]:
    found = dict(PLANTS)
    for module in _modules_of_apps():
        found |= getattr(module, "PLANTS", {})
    return found


def _modules_of_apps() -> list[Any]:
    names = [f"{config.name}.crawl_cases" for config in apps.get_app_configs()]
    return [import_module(name) for name in names if find_spec(name) is not None]


# --- this project's -------------------------------------------------------------------------------------------------


def _sign_up(room: Room) -> dict[str, Any]:
    """Of a name that is taken."""
    return {"name": "Mine", "slug": room.slug, "email": room.owner.email, "password": "another password"}


def _no_provider(room: Room) -> dict[str, Any]:
    return {"provider": "sso"}


def _asked(room: Room) -> dict[str, Any]:
    return {"prompt": "What was that?", "max_tokens": 8, "conversation_id": room.row(Conversation).pk}


def _talk(room: Room) -> Conversation:
    """The member's own with an answer in it, which a crawl may have deleted."""
    with room.workspace.scope():
        talk, _ = Conversation.objects.get_or_create(owner=room.member, title="A talk")
        if talk.head_id is None:
            said(talk, "What is this?")
        return talk


def _prompt(room: Room) -> int:
    """The member's own, with a number that no other workspace's has."""
    number = 700_000 + crc32(room.slug.encode()) % 100_000
    with room.workspace.scope():
        prompt, _ = SavedPrompt.objects.get_or_create(
            pk=number, defaults={"owner": room.member, "title": "A prompt", "text": "Say it."}
        )
        return prompt.pk


def _talk_itself(room: Room) -> dict[str, Any]:
    return {"pk": _talk(room).pk}


def _passing_talk(room: Room) -> dict[str, Any]:
    """One that nobody misses, each time another."""
    with room.workspace.scope():
        return {"pk": Conversation.objects.create(owner=room.member, title="A passing talk").pk}


def _shared_talk(room: Room) -> dict[str, Any]:
    """A colleague's, with a number that no other workspace's has."""
    number = 800_000 + crc32(room.slug.encode()) % 100_000
    with room.workspace.scope():
        facts = {"owner": room.owner, "title": room.said("a shared title"), "shared_at": timezone.now()}
        return {"pk": Conversation.objects.get_or_create(pk=number, defaults=facts)[0].pk}


def _file(room: Room) -> dict[str, Any]:
    """The member's own, not sent yet, which a crawl may have removed."""
    with room.workspace.scope():
        facts = {"kind": "text", "bytes": 1, "text": room.said("a file's text"), "tokens": 1}
        name = room.said("a file's name")
        return {
            "pk": Attachment.objects.get_or_create(owner=room.member, name=name, message_id=None, defaults=facts)[0].pk
        }


def _picture(room: Room) -> dict[str, Any]:
    with room.workspace.scope():
        facts = {"kind": "png", "bytes": 1, "image": room.said("an image").encode(), "tokens": 1}
        name = room.said("an image's name")
        return {
            "pk": Attachment.objects.get_or_create(owner=room.member, name=name, message_id=None, defaults=facts)[0].pk
        }


def _added(room: Room) -> dict[str, Any]:
    return {"file": ContentFile(b"a,b", name="table.csv")}


def _its_answer(room: Room) -> dict[str, Any]:
    return {"message_id": _talk(room).head_id}


def _call(room: Room) -> dict[str, Any]:
    """The number of a call that paid for an answer of the owner's."""
    with room.workspace.scope():
        talk, is_new = Conversation.objects.get_or_create(owner=room.owner, title="A call")
        if is_new:
            said(talk, "Who pays?", hold=uuid.uuid4(), tokens_input=1, tokens_output=1)
        return {"call": talk.messages.latest("pk").hold}


def _talk_of_call(room: Room) -> dict[str, Any]:
    call = _call(room)["call"]
    with room.workspace.scope():
        return {"pk": Conversation.objects.get(messages__hold=call).pk}


def _named_by_number(room: Room) -> dict[str, Any]:
    return {"conversation_id": _talk(room).pk, **_its_answer(room), "max_tokens": 8}


def _asked_of_v1(room: Room) -> dict[str, Any]:
    return {"model": settings.LLM_MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "What was that?"}]}


def _embedded_by_v1(room: Room) -> dict[str, Any]:
    return {"model": settings.LLM_MODEL, "input": "What was that?"}


def _password_and_code(room: Room) -> dict[str, Any]:
    return {"password": room.password, "code": "000000"}


def _log_in_link(room: Room) -> str:
    with tenant_scope(room.tenant):
        return make_link(room.member, Link.Purpose.LOG_IN, email=room.member.email)


def _limited(room: Room) -> int:
    """A member with a number that no other workspace's has."""
    number = 800_000 + crc32(room.slug.encode()) % 100_000
    with room.workspace.scope():
        return User.objects.get_or_create(pk=number, defaults={"email": "limited@crawler.example"})[0].pk


CASES: dict[str, Case] = {
    "": Case(
        bodies={
            "POST": [
                lambda room: {"prompt": "Hello"},
                lambda room: {"prompt": "And?", "conversation_id": room.row(Conversation).pk},
            ]
        }
    ),
    "c/<int:pk>/": Case(args=lambda room: {"pk": room.row(Conversation).pk}),
    "c/<int:pk>/settings/": Case(
        args=lambda room: {"pk": _talk(room).pk}, bodies={"POST": [lambda room: {"system": "Be brief."}]}
    ),
    "settings/workspace/chat/": Case(bodies={"POST": [lambda room: {"system": "", "temperature": "1"}]}),
    "prompts/": Case(bodies={"POST": [lambda room: {"title": "Crawled", "text": "Say it."}]}),
    "prompts/<int:pk>/": Case(
        args=lambda room: {"pk": _prompt(room)}, bodies={"POST": [lambda room: {"title": "Crawled", "text": "Say it."}]}
    ),
    "prompts/<int:pk>/text/": Case(args=lambda room: {"pk": _prompt(room)}),
    "prompts/<int:pk>/delete/": Case(args=lambda room: {"pk": _prompt(room)}, bodies={"POST": [nothing]}),
    "c/<int:pk>/again/": Case(args=lambda room: {"pk": _talk(room).pk}, bodies={"POST": [_its_answer]}),
    "c/<int:pk>/continue/": Case(args=lambda room: {"pk": _talk(room).pk}, bodies={"POST": [_its_answer]}),
    "c/<int:pk>/delete-turn/": Case(args=lambda room: {"pk": _talk(room).pk}, bodies={"POST": [_its_answer]}),
    "budget/ask/": Case(bodies={"POST": [lambda room: {"needed": "1000", "note": "For the launch."}]}),
    "c/<int:pk>/stop/": Case(args=_talk_of_call, bodies={"POST": [_call]}),
    "c/<int:pk>/summary/": Case(args=lambda room: {"pk": _talk(room).pk}, bodies={"POST": [nothing]}),
    "settings/workspace/answers/": Case(bodies={"POST": [lambda room: {"goes_on": "on"}, nothing]}),
    "api/chat/calls/<uuidstr:call>/": Case(args=_call),
    "api/chat/calls/<uuidstr:call>/stop/": Case(args=_call, bodies={"POST": [nothing]}),
    "api/chat/summary/": Case(
        bodies={"POST": [lambda room: {"conversation_id": _talk(room).pk}]}, closed="all of the talk goes along"
    ),
    "c/<int:pk>/rename/": Case(args=_talk_itself, bodies={"POST": [lambda room: {"title": "A talk"}]}),
    "c/<int:pk>/pin/": Case(args=_talk_itself, bodies={"POST": [lambda room: {"pinned": "yes"}]}),
    "c/<int:pk>/share/": Case(args=_talk_itself, bodies={"POST": [nothing]}),
    "c/<int:pk>/unshare/": Case(args=_talk_itself, bodies={"POST": [nothing]}),
    "c/<int:pk>/export/": Case(args=_talk_itself, query=lambda room: {"as": "json", "all": "yes"}),
    "c/<int:pk>/delete/": Case(args=_passing_talk, bodies={"POST": [nothing]}),
    "c/<int:pk>/restore/": Case(args=_passing_talk, bodies={"POST": [nothing]}),
    "shared/<int:pk>/": Case(args=_shared_talk),
    "settings/workspace/titles/": Case(bodies={"POST": [lambda room: {"on": "no"}]}),
    "c/files/": Case(bodies={"POST": [_added]}),
    "c/files/<int:pk>/": Case(args=_file),
    "c/files/<int:pk>/picture/": Case(args=_picture),
    "c/files/<int:pk>/remove/": Case(args=_file, bodies={"POST": [nothing]}),
    "api/chat/price/": Case(bodies={"POST": [_asked, lambda room: {"prompt": "What was that?", "max_tokens": 8}]}),
    "api/chat/again/": Case(bodies={"POST": [_named_by_number]}),
    "api/chat/continue/": Case(bodies={"POST": [_named_by_number]}),
    "login/": Case(
        bodies={
            "POST": [
                # The bare host's asks for a workspace's name instead.
                lambda room: {
                    "email": room.member.email,
                    "password": room.password,
                    "next": "/budget/",
                    "slug": room.slug,
                },
                lambda room: {"email": room.owner.email, "password": "wrong", "next": "//evil.example/"},
            ]
        },
        proves="a password",
    ),
    "logout/": Case(bodies={"POST": [nothing]}),
    "welcome/": Case(
        bodies={"POST": [lambda room: {"token": issue_token(room.tenant, user_id=room.member.pk)}]},
        headers=lambda room: {"origin": settings.SITE_URL},
        proves="a token",
    ),
    # Its own name: under another its people would not be shown the canary any more.
    "settings/workspace/": Case(
        bodies={"POST": [lambda room: {"name": room.tenant.name if room.is_here else "", "time_zone": "UTC"}]}
    ),
    "settings/workspace/address/": Case(
        bodies={"POST": [lambda room: {"slug": room.slug}]}, closed="one that is taken: crawling needs the one it has"
    ),
    "settings/workspace/origins/": Case(bodies={"POST": [lambda room: {"origins": "https://app.example.com"}]}),
    "settings/workspace/models/": Case(bodies={"POST": [lambda room: {"which": "all"}]}),
    "settings/workspace/delete/": Case(
        bodies={"POST": [lambda room: {"slug": f"not-{room.slug}"[:32], "password": room.password}]},
        closed="another address than its own: what is deleted cannot be crawled on",
    ),
    "login/code/": Case(bodies={"POST": [lambda room: {"code": "000000", "next": "/budget/"}]}),
    "settings/security/two-step/": Case(bodies={"POST": [lambda room: {"begin": "yes"}]}),
    "settings/security/two-step/off/": Case(bodies={"POST": [_password_and_code]}),
    "settings/security/two-step/codes/": Case(bodies={"POST": [_password_and_code]}),
    "settings/security/required/": Case(bodies={"POST": [lambda room: {"required": "no"}]}),
    "settings/security/sessions/end/": Case(bodies={"POST": [lambda room: {"which": "others"}]}),
    "settings/security/sessions/<int:pk>/end/": Case(
        args=lambda room: {"pk": room.row(MemberSession).pk}, bodies={"POST": [nothing]}
    ),
    "settings/account/email/": Case(
        bodies={"POST": [lambda room: {"email": "moved@crawl.example", "password": room.password}]}
    ),
    "settings/account/password/": Case(
        bodies={"POST": [lambda room: {"password": "wrong", "new_password": room.password}]},
        closed="the right password would log the crawl's own people out",
    ),
    "settings/account/confirm/": Case(bodies={"POST": [nothing]}),
    "password/": Case(bodies={"POST": [lambda room: {"email": room.member.email}]}, proves="an address"),
    "password/asked/": Case(),
    "password/<str:secret>/": Case(
        args=lambda room: {"secret": _mailed(room, Link.Purpose.RESET)},
        bodies={"POST": [lambda room: {"new_password": PASSWORD}]},
        proves="a mailed link",
    ),
    "confirm/<str:secret>/": Case(
        args=lambda room: {"secret": _mailed(room, Link.Purpose.CONFIRM)},
        bodies={"POST": [nothing]},
        proves="a mailed link",
    ),
    "email/<str:secret>/": Case(
        args=lambda room: {"secret": _mailed(room, Link.Purpose.CHANGE)},
        bodies={"POST": [nothing]},
        proves="a mailed link",
    ),
    "find/": Case(bodies={"POST": [lambda room: {"email": room.member.email}]}, proves="nothing but an address"),
    "login/link/": Case(
        bodies={"POST": [lambda room: {"email": room.member.email, "next": "/budget/"}]},
        proves="nothing but an address",
    ),
    "login/link/<str:secret>/": Case(
        args=lambda room: {"secret": _log_in_link(room)}, bodies={"POST": [nothing]}, proves="a link"
    ),
    "settings/keys/": Case(
        query=lambda room: {"new": room.row(ApiKey).pk},
        bodies={"POST": [lambda room: {"name": "crawled", "scopes": ["chat"], "life": "30"}]},
    ),
    "settings/keys/<int:pk>/rates/": Case(
        args=lambda room: {"pk": room.row(ApiKey).pk}, bodies={"POST": [lambda room: {"requests": "1000"}]}
    ),
    "settings/keys/<int:pk>/models/": Case(
        args=lambda room: {"pk": room.row(ApiKey).pk}, bodies={"POST": [lambda room: {"which": "all"}]}
    ),
    "settings/keys/<int:pk>/rotate/": Case(
        args=lambda room: {"pk": room.row(ApiKey).pk}, bodies={"POST": [lambda room: {"overlap": "24", "life": "90"}]}
    ),
    "settings/keys/<int:pk>/revoke/": Case(args=lambda room: {"pk": room.row(ApiKey).pk}, bodies={"POST": [nothing]}),
    "settings/members/<int:pk>/chats/": Case(args=lambda room: {"pk": _former(room)}),
    "settings/members/<int:pk>/chats/<int:conversation_pk>/": Case(
        args=lambda room: {"pk": _former(room), "conversation_pk": _of_former(room)}
    ),
    "settings/members/leave/": Case(bodies={"POST": [nothing]}, closed="the only owner stays"),
    "settings/members/hand-over/": Case(bodies={"POST": [lambda room: {"member": _passing(room)}]}),
    "settings/members/<int:pk>/role/": Case(
        args=lambda room: {"pk": _passing(room)}, bodies={"POST": [lambda room: {"role": "viewer"}]}
    ),
    "settings/members/<int:pk>/remove/": Case(args=lambda room: {"pk": _passing(room)}, bodies={"POST": [nothing]}),
    "settings/invitations/": Case(
        bodies={"POST": [lambda room: {"emails": f"{secrets.token_hex(8)}@crawler.example", "role": "member"}]}
    ),
    "settings/invitations/<int:pk>/resend/": Case(args=lambda room: {"pk": _invited(room)}, bodies={"POST": [nothing]}),
    "settings/invitations/<int:pk>/revoke/": Case(args=lambda room: {"pk": _invited(room)}, bodies={"POST": [nothing]}),
    "invitation/<str:secret>/": Case(
        args=lambda room: {"secret": _invitation(room)},
        bodies={"POST": [lambda room: {"password": "another long password"}]},
        proves="the link's secret",
    ),
    "login/with/<slug:provider>/": Case(args=_no_provider, bodies={"POST": [nothing]}, closed="none is configured"),
    "login/back/<slug:provider>/": Case(args=_no_provider, closed="none is configured"),
    "settings/account/identities/<slug:provider>/": Case(
        args=_no_provider, bodies={"POST": [lambda room: {"password": room.password}]}, closed="none is configured"
    ),
    "settings/account/identities/<int:pk>/unlink/": Case(
        args=lambda room: {"pk": room.row(Identity).pk}, bodies={"POST": [nothing]}
    ),
    "settings/audit/": Case(query=lambda room: {"before": room.row(AuditEvent).pk}),
    "api/summarize/": Case(
        bodies={"POST": [lambda room: {"text": "Long.", "max_tokens": 8}]},
        headers=lambda room: {"idempotency-key": room.said("idempotency key")},
    ),
    "v1/chat/completions": Case(bodies={"POST": [_asked_of_v1]}, methods=("POST",)),
    "v1/embeddings": Case(bodies={"POST": [_embedded_by_v1]}, methods=("POST",)),
    "api/chat/": Case(
        bodies={
            "POST": [_asked, lambda room: {"prompt": "Go on.", "max_tokens": 8, "stream": True}],
        }
    ),
    "api/budget/<slug>/": Case(args=lambda room: {"slug": room.slug}),
    "settings/members/<int:pk>/limit/": Case(
        args=lambda room: {"pk": _limited(room)}, bodies={"POST": [lambda room: {"amount": "0.50"}]}
    ),
    "settings/members/<int:pk>/limit/remove/": Case(
        args=lambda room: {"pk": _limited(room)}, bodies={"POST": [nothing]}
    ),
    "settings/keys/<int:pk>/limit/": Case(
        args=lambda room: {"pk": room.row(ApiKey).pk}, bodies={"POST": [lambda room: {"amount": "0.50"}]}
    ),
    "settings/keys/<int:pk>/limit/remove/": Case(
        args=lambda room: {"pk": room.row(ApiKey).pk}, bodies={"POST": [nothing]}
    ),
    "api/": Case(closed="there is nothing at the API's root"),
    "api/openapi.json": Case(methods=("GET",)),
    "api/docs": Case(methods=("GET",)),
    "signup/": Case(bodies={"POST": [_sign_up]}, closed="a name that is taken: a new workspace takes a second"),
    "signup/wait/": Case(),
    "api/signup/": Case(bodies={"POST": [_sign_up]}, closed="a name that is taken: a new workspace takes a second"),
    # The neighbour's number with our signature. Its own address would be the neighbour's to know.
    "api/signup/<token>/": Case(
        args=lambda room: {"token": status_token(room.workspace.account) if room.is_here else _forged(room)}
    ),
    "readyz": Case(may_answer=frozenset({503}), closed="no jobs process runs beside this test"),
    "nothing/": Case(closed="there is nothing"),
    "api/nothing/": Case(closed="there is nothing"),
}


def _mailed(room: Room, purpose: Link.Purpose) -> str:
    """To somebody of the workspace's who is nobody else's: with the link they are logged out, or moved elsewhere."""
    name = secrets.token_hex(8)
    somebody = room.workspace.member(f"{name}@crawl.example")
    with room.workspace.scope():
        return make_link(somebody, purpose, email=f"moved-{name}@crawl.example")


def _forged(room: Room) -> str:
    number, _, _ = status_token(room.workspace.account).partition(".")
    return f"{number}.{'A' * 43}"


def _passing(room: Room) -> int:
    """A member whom nobody misses: the crawl's own must stay who they are."""
    return room.workspace.member(f"passing-{secrets.token_hex(6)}@crawler.example").pk


def _former(room: Room) -> int:
    with room.workspace.scope():
        return User.objects.get_or_create(
            email="former@crawler.example", defaults={"is_active": False, "removed_at": timezone.now()}
        )[0].pk


def _of_former(room: Room) -> int:
    with room.workspace.scope():
        return Conversation.objects.get_or_create(
            owner_id=_former(room), defaults={"title": room.said("a former member's title")}
        )[0].pk


def _invited(room: Room) -> int:
    """Each time another, for its address may be mailed so and so often."""
    secret = _invitation(room)
    with room.workspace.scope():
        return Invitation.objects.get(digest=digest(secret)).pk


def _invitation(room: Room) -> str:
    secret, now = secrets.token_urlsafe(32), timezone.now()
    with room.workspace.scope():
        Invitation.objects.create(
            email=f"{secrets.token_hex(8)}@crawler.example",
            role="viewer",
            invited_by_id=_passing(room),  # who has the link is told who sent it
            digest=digest(secret),
            sent_at=now,
            expires_at=now + timedelta(days=7),
        )
    return secret


# --- what planting.py cannot fill by itself --------------------------------------------------------------------------


def _key(room: Room, person: Any, canary: Any) -> Any:
    key, secret = create_key(person, name=canary("name"), shown_later=True)
    room.adopt("users.ApiKey's secret", secret)
    return key


def _totp(room: Room, person: Any, canary: Any) -> Any:
    """Begun and not confirmed: the person's own page shows its secret."""
    secret = pyotp.random_base32()
    room.adopt("users.Totp's secret", secret)
    return Totp.objects.create(user=person, sealed_secret=seal(secret))


def _hold(room: Room, person: Any, canary: Any) -> Any:
    """A call under way, of this process, so that no sweep takes it for a dead one's."""

    async def ours() -> uuid.UUID:
        return here().process_id

    return Hold.objects.create(
        account=room.workspace.account,
        process=run(ours()),
        reservation_id=canary("reservation_id"),
        subject={"tenant": canary("subject")},
        action_kind=canary("action_kind"),
        action_name=canary("action_name"),
        model=canary("model"),
        busy_key=canary("busy_key"),
        estimate=1,
    )


def _key_rate(room: Room, person: Any, canary: Any) -> Any:
    """It has no words; one for each key."""
    now = timezone.now()
    account = room.workspace.account
    return KeyRate.objects.create(
        account=account, key_id=person.pk, requests=0, requests_at=now, tokens=0, tokens_at=now
    )


def _top_up(room: Room, person: Any, canary: Any) -> Any:
    key = canary("key")
    top_up(room.workspace.account, amount=50_000_000, key=key)
    return TopUp.objects.get(account=room.workspace.account, key=key)


PLANTS: dict[str, Callable[[Room, Any, Any], Any]] = {
    "users.ApiKey": _key,
    "users.Totp": _totp,
    "billing.Hold": _hold,
    "billing.KeyRate": _key_rate,
    "billing.TopUp": _top_up,
}
__all__ = ["CASES", "PASSWORD", "PLANTS", "Case", "all_cases", "all_plants"]
