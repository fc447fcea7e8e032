"""Who may what: the whole table, written out a second time; and that every page of a workspace asks it."""

import re

import pytest
from django.conf import settings
from django.http import HttpResponse
from django.urls import URLResolver, get_resolver, path
from ninja import Router

from tenants import roles
from tenants.roles import MAY, RANK, SCOPES, Action, Role, may, may_act_on, may_with_key, roles_to_give
from tenants.users.access import needs
from tenants.users.invitations import LIFETIME
from tenants.users.models import ApiKey, Invitation, User
from tests.support.factories import ConversationFactory

# fmt: off
TABLE = """
                       owner admin member viewer
account                yes   yes   yes    yes
budget:read            yes   yes   yes    yes
chat:read              yes   yes   yes    yes
keys:own               yes   yes   yes    yes
members:read           yes   yes   yes    yes
chat                   yes   yes   yes    no
summarize              yes   yes   yes    no
keys:all               yes   yes   no     no
members:invite         yes   yes   no     no
members:change         yes   yes   no     no
limits:set             yes   yes   no     no
chat:read_former       yes   yes   no     no
audit:read             yes   yes   no     no
workspace:edit         yes   yes   no     no
workspace:secure       yes   no    no     no
workspace:hand_over    yes   no    no     no
workspace:delete       yes   no    no     no
"""

# Whose role and removal is who's to decide: who asks, then whom it concerns.
ACTS_ON = """
                       owner admin member viewer
owner                  yes   yes   yes    yes
admin                  no    yes   yes    yes
member                 no    no    no     no
viewer                 no    no    no     no
"""

# Who may give which role.
GIVES = ACTS_ON
# fmt: on

# The pages of a workspace's host that ask for no role, each with its reason. A new one goes here, or says what it
# needs (`tenants.users.access.needs`).
FOR_ANYBODY = {
    "login/": "whoever comes in",
    "login/code/": "whoever has taken the first step, as a signed cookie says",
    "login/link/": "whoever asks for a link in a mail",
    "login/link/sent/": "the same answer to all of them",
    "login/link/<str:secret>/": "the mailed link's secret is the proof",
    "login/with/<slug:provider>/": "whoever comes in by an identity provider",
    "login/back/<slug:provider>/": "the provider's answer to this very browser is the proof",
    "password/": "whoever has forgotten theirs",
    "password/asked/": "the same answer to all of them",
    "password/<str:secret>/": "the mailed link's secret is the proof",
    "confirm/<str:secret>/": "the mailed link's secret is the proof",
    "email/<str:secret>/": "the mailed link's secret is the proof",
    "logout/": "whoever goes",
    "welcome/": "the token that the bare host hands over is the proof",
    "invitation/<str:secret>/": "the link's secret is the proof",
    "settings/": "leads to a page that asks",
}


def read(table):
    heads, *lines = table.strip().splitlines()
    return {
        (line.split()[0], head): word == "yes"
        for line in lines
        for head, word in zip(heads.split(), line.split()[1:], strict=True)
    }


def test_each_role_may_what_the_table_says_and_nothing_else():
    table = read(TABLE)
    assert table == {(action.value, role.value): action in MAY[role] for action in Action for role in Role}
    assert all(may(role, Action(action)) is said for (action, role), said in table.items())
    assert set(RANK) == set(MAY) == set(Role)
    assert not any(may(role, action) for role in ("", "king", "OWNER", "superuser") for action in Action)


def test_who_may_act_on_whom_and_give_what():
    assert read(ACTS_ON) == {(who.value, whom.value): may_act_on(who, whom) for who in Role for whom in Role}
    assert read(GIVES) == {(who.value, given.value): given in roles_to_give(who) for who in Role for given in Role}
    assert not any(may_act_on("king", whom) for whom in Role)
    assert roles_to_give("king") == ()


def test_a_role_between_two_of_ours_may_what_it_may_to_nobody_above_it(monkeypatch):
    """A builder's: it sets limits and invites, and changes nobody."""
    ranked = ("owner", "admin", "billing", "member", "viewer")
    monkeypatch.setattr(roles, "RANK", ranked)
    monkeypatch.setattr(roles, "Role", str)
    monkeypatch.setattr(roles, "MAY", MAY | {"billing": frozenset({Action.SET_LIMITS, Action.INVITE})})
    for action, to_whom in ((Action.SET_LIMITS, ranked[2:]), (Action.CHANGE_MEMBERS, ())):
        assert tuple(whom for whom in ranked if may_act_on("billing", whom, action)) == to_whom
    assert roles_to_give("billing", Action.INVITE) == ranked[2:]
    assert roles_to_give("billing") == ()
    monkeypatch.setattr(roles, "MAY", MAY | {"billing": frozenset({Action.CHANGE_MEMBERS})})
    assert not may_act_on("billing", "admin")
    assert not may_act_on("billing", "owner")


def test_another_role_needs_no_migration_of_ours():
    for model in (User, Invitation):
        assert model._meta.get_field("role").deconstruct()[3]["choices"] is roles.role_choices


def test_a_key_may_what_its_scopes_and_its_owners_role_both_allow():
    for role in Role:
        for action in Action:
            of_role = action in SCOPES and action in MAY[role]
            assert may_with_key(role, None, action) is of_role
            assert may_with_key(role, [action.value], action) is of_role
            assert may_with_key(role, [], action) is False
            others = [scope.value for scope in SCOPES if scope != action]
            assert may_with_key(role, others, action) is False


# --- the pages ---


def is_of_ninja(view):
    """Its API's `auth` lets nobody past, and each operation says in its own place what it needs."""
    return getattr(view, "func", view).__module__.startswith("ninja.")


def pages():
    """(route, view) of a workspace's host, whatever app it is of; plain views under /api/ too."""

    def walk(entries, before=""):
        for entry in entries:
            route = before + str(entry.pattern)
            if isinstance(entry, URLResolver):
                yield from walk(entry.url_patterns, route)
            elif not is_of_ninja(entry.callback):
                yield route, entry.callback

    return dict(walk(get_resolver(settings.ROOT_URLCONF).url_patterns))


def test_every_page_says_what_it_needs_or_is_for_anybody():
    open_ones = {route for route, view in pages().items() if not hasattr(view, "needs")}
    assert open_ones == set(FOR_ANYBODY), "decorate the view with @needs(Action.…), or name it in FOR_ANYBODY"


@needs(Action.READ_TRAIL)
async def secret(request):
    return HttpResponse("secret")


urlpatterns = [path("secret/", secret), path("api/secret/", secret)]


def test_an_async_view_in_web_where_nobody_is_asked_before_it_is_refused(acme, settings):
    settings.ROOT_URLCONF = __name__
    for address in ("/secret/", "/api/secret/"):
        with pytest.raises(RuntimeError, match="urls_plane"):
            acme.client().get(address)


@pytest.mark.parametrize("is_async", [False, True], ids=["web", "plane"])
def test_an_operation_that_is_marked_too_late_is_refused_before_it_is_open_to_every_member(is_async):
    """Ninja has kept the view as it was, and what says nothing is taken to buy."""
    router = Router()

    def erase(request):
        return HttpResponse("erased")

    async def erase_on_the_plane(request):
        return HttpResponse("erased")

    late = router.post("/erase/")(erase_on_the_plane if is_async else erase)
    with pytest.raises(TypeError, match=r"below .*@router\.post"):
        needs(Action.DELETE_WORKSPACE)(late)


class Room:
    """A workspace with one person of each role, and a row for each argument that an address may have."""

    def __init__(self, workspace):
        self.workspace = workspace
        self.people = {role: workspace.member(f"{role.value}@x.example", role.value) for role in Role}
        self.browsers = {role: workspace.client(person) for role, person in self.people.items()}
        self.target = workspace.member("target@x.example", "viewer")
        self.former = workspace.member("former@x.example")
        self.mend()

    def path(self, route):
        with self.workspace.scope():
            talk = ConversationFactory(owner=self.former)
            now = talk.created_at
            invitation = Invitation.objects.get_or_create(
                email="invited@x.example", accepted_at=None, revoked_at=None,
                defaults={"role": "viewer", "digest": f"x{talk.pk}", "sent_at": now, "expires_at": now + LIFETIME},
            )[0]  # fmt: skip
            keys = ApiKey.objects.filter(user=self.target)
        of = {
            "settings/members/<int:pk>/chats/": self.former.pk,
            "settings/members/": self.target.pk,
            "settings/invitations/": invitation.pk,
            "settings/keys/": keys.first().pk if keys else 1,
        }
        pk = next((pk for start, pk in of.items() if route.startswith(start)), 1)
        words = {"pk": pk, "conversation_pk": talk.pk}
        return "/" + re.sub(r"<(?:\w+:)?(\w+)>", lambda found: str(words.get(found[1], 1)), route)

    def ask(self, role, route):
        """The status that the page gives, by GET or else by an empty form."""
        path = self.path(route)
        response = self.browsers[role].get(path)
        of_a_form = response.status_code == 302 and response.url in path[:-1]
        return (self.browsers[role].post(path) if of_a_form or response.status_code == 405 else response).status_code

    def mend(self, asked=()):
        """As if nobody had left, been removed or logged out."""
        with self.workspace.scope():
            User.objects.filter(pk=self.former.pk).update(is_active=False, removed_at=self.former.date_joined)
            for person in (self.target, *self.people.values()):
                User.objects.filter(pk=person.pk).update(is_active=True, removed_at=None, role=person.role)
        for role in asked:
            if self.browsers[role].get("/settings/members/").status_code != 200:
                self.browsers[role] = self.workspace.client(self.people[role])


@pytest.mark.usefixtures("upstream")
def test_each_page_is_refused_to_the_roles_that_may_not_and_to_no_other(workspace):
    room = Room(workspace)
    told = {}
    for route, view in pages().items():
        if not hasattr(view, "needs"):
            continue
        for role in Role:
            told[route, role.value] = room.ask(role, route) == 403
            room.mend([role])
        stranger = workspace.client()
        for method in ("get", "post"):
            assert getattr(stranger, method)(room.path(route)).status_code in (302, 401, 405), route
    expected = {
        (route, role.value): not may(role, view.needs)
        for route, view in pages().items()
        for role in Role
        if hasattr(view, "needs")
    }
    assert told == expected
    assert len({view.needs for view in pages().values() if hasattr(view, "needs")}) >= 5
