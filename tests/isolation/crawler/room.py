"""One workspace of the crawl: its people, the credentials that they have, and its rows, all full of canaries.

Must not know an address. What it makes it makes by the product's own services, or by planting.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.cache import cache
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connection, models
from django.test import Client

from billing.models import TopUp
from billing.provisioning import first_key
from tenants.users.models import ApiKey, User
from tests.isolation.crawler import planting
from tests.isolation.crawler.canaries import Canaries
from tests.support.cast import PASSWORD, Workspace
from tests.support.factories import WorkspaceFactory

# Ids from here on are the neighbour's alone; the first ones exist in both workspaces.
FAR = 900_001
Plants = dict[str, Callable[..., Any]]


@dataclass(frozen=True)
class Credential:
    """`holders`: the slugs of the workspaces in which it is good for something; `role`: what its person is there, where
    that is asked about. `names`: the workspace that a key names by itself, where neither host nor header does.
    """

    name: str
    holders: frozenset[str] = frozenset()
    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    role: str = ""

    def __str__(self) -> str:
        return self.name


class Room:
    """`row(Model)` is a row of this workspace's: of the neighbour's room one whose id no other workspace has."""

    password = PASSWORD

    def __init__(self, slug: str, canaries: Canaries, plants: Plants, *, is_far: bool = False) -> None:
        self.slug, self.canaries, self._plants, self._is_far = slug, canaries, plants, is_far
        # Whether it is the workspace that is asked, and not the neighbour of it.
        self.is_here = False
        self.rows: dict[type[models.Model], list[Any]] = {}
        self._said: dict[str, str] = {}
        name, email = self._plant("tenants.Tenant.name"), self._plant("billing.Account.owner_email")
        self.workspace: Workspace = WorkspaceFactory.create(slug=slug, name=name, email=f"{email}@{slug}.example")
        self.tenant = self.workspace.tenant
        first_key(self.workspace.account)  # else its status address would make one
        self.owner = self.workspace.owner
        self.member = self._person("member")
        self.people = {
            "owner": self.owner,
            "admin": self._person("admin"),
            "member": self.member,
            "viewer": self._person("viewer"),
        }
        self.credentials = self._make_credentials()
        self._adopt_secrets()
        self._plant_rows()
        self._plant_elsewhere()

    def __str__(self) -> str:
        return self.slug

    def said(self, kind: str) -> str:
        """A text of this workspace's own, the same each time. Not for what a view keeps and shows: the text of the
        neighbour is sent here too, and would be taken for a leak.
        """
        return self._said.setdefault(kind, self._plant(kind))

    def adopt(self, kind: str, secret: str) -> None:
        self.canaries.adopt(kind, self.slug, secret)

    def row(self, model: type[models.Model]) -> Any:
        planted = self.rows[model]
        return planted[-1 if self._is_far else 0]

    def restore(self) -> None:
        """Plant again what its own requests have deleted, mend what they have changed, and sign its people in again."""
        self._bring_back()
        for credential in self.credentials.values():
            self.revive(credential)
        with self.workspace.scope():
            for model, planted in self.rows.items():
                there = model._base_manager.in_bulk([row.pk for row in planted])
                for turn, row in enumerate(planted):
                    if row.pk not in there:
                        planted[turn] = self._plant_row(model, turn)
                    elif _values(row) != _values(there[row.pk]):
                        row.save(force_update=True)

    def _bring_back(self) -> None:
        """Its people are who they were, also where one has left or has handed the workspace over."""
        with self.workspace.scope():
            User.objects.filter(role="owner").exclude(pk=self.owner.pk).update(role="member")
            for person in self.people.values():
                User.objects.filter(pk=person.pk).update(
                    role=person.role, password=person.password, is_active=True, removed_at=None
                )
            ApiKey.objects.filter(user__in=[self.member, self.people["viewer"]]).update(revoked_at=None)

    def revive(self, credential: Credential) -> None:
        """Its session, if it has one, as it was when it began."""
        if row := self._sessions.get(credential.cookies.get("sessionid", "")):
            with connection.cursor() as cursor:
                cursor.execute(
                    f'INSERT INTO "{self.tenant.schema_name}".django_session (session_key, session_data, expire_date) '  # noqa: S608
                    "VALUES (%s, %s, %s) ON CONFLICT (session_key) DO UPDATE SET session_data = EXCLUDED.session_data",
                    row,
                )

    def remove(self) -> None:
        """What was planted, but for money that was really paid: other tests sweep all holds and count all lines."""
        with self.workspace.scope():
            for model, planted in reversed(self.rows.items()):
                if model is not TopUp:
                    model._base_manager.filter(pk__in=[row.pk for row in planted]).delete()
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM public.procrastinate_jobs WHERE args->>'tenant_id' = %s", [str(self.tenant.pk)])

    # --- how it is made ---

    def _plant(self, kind: str) -> str:
        return self.canaries.plant(kind, self.slug)

    def _person(self, role: str) -> User:
        return self.workspace.member(f"{self._plant('users.User.email')}@{self.slug}.example", role)

    def _adopt_secrets(self) -> None:
        account = self.workspace.account
        account.refresh_from_db()
        self.adopt("the schema's name", self.tenant.schema_name)
        self.adopt("billing.Account.subject_tenant", account.subject_tenant)
        self.adopt("billing.Account.sealed_key", account.sealed_key)
        with self.workspace.scope():
            for user in User.objects.all():
                self.adopt("users.User.password", user.password)

    def _make_credentials(self) -> dict[str, Credential]:
        made = {}
        self._sessions: dict[str, tuple[Any, ...]] = {}
        for role, person in self.people.items():
            session = self._session(f"{role}'s session", self.workspace.client(person))
            made[session.name] = replace(session, role=role)
        made["owner's key"] = self._key("owner's key", self.workspace.key(self.owner))
        viewers = self._key("viewer's key", self.workspace.key(self.people["viewer"]))
        made["viewer's key"] = replace(viewers, role="viewer")
        old = self._key("member's old key", self.workspace.old_key(self.member))
        made["member's old key"] = replace(old, names=frozenset())
        revoked = self._key("revoked key", self.workspace.key(self.owner))
        with self.workspace.scope():
            ApiKey.objects.latest("pk").revoke()
        made["revoked key"] = replace(revoked, holders=frozenset())
        return made

    def _session(self, name: str, browser: Client) -> Credential:
        cookies = {key: morsel.value for key, morsel in browser.cookies.items()}
        self.adopt("a session", cookies["sessionid"])
        with connection.cursor() as cursor:
            cursor.execute(
                f'SELECT session_key, session_data, expire_date FROM "{self.tenant.schema_name}".django_session '  # noqa: S608
                "WHERE session_key = %s",
                [cookies["sessionid"]],
            )
            self._sessions[cookies["sessionid"]] = cursor.fetchone()
        return Credential(name, frozenset({self.slug}), {"x-csrftoken": cookies["csrftoken"]}, cookies)

    def _key(self, name: str, secret: str) -> Credential:
        self.adopt("a key's secret", secret)
        ours = frozenset({self.slug})
        return Credential(name, ours, {"authorization": f"Bearer {secret}"}, names=ours)

    def _plant_rows(self) -> None:
        with self.workspace.scope():
            for model in planting.models_of_tenants():
                if not issubclass(model, User):
                    self._plant_model(model, far=self._is_far)
            for model in planting.shared_models():
                if not self._shared_rows(model).exists() or model._meta.label in self._plants:
                    self._plant_model(model, far=False)

    def _plant_model(self, model: type[models.Model], *, far: bool) -> None:
        """One row of the owner's, one of the member's; and at the neighbour one more, with an id of its own."""
        self.rows[model] = []
        # Where each person has one at most, the neighbour's are only those of the two.
        far = far and not any(field.one_to_one for field in model._meta.concrete_fields)
        for turn in range(3 if far else 2):
            self.rows[model].append(self._plant_row(model, turn))

    def _plant_row(self, model: type[models.Model], turn: int) -> Any:
        person = self.member if turn == 1 else self.owner

        def canary(name: str) -> str:
            return self._plant(f"{model._meta.label}.{name}")

        def refer(target: Any) -> Any:
            known = {User: person, type(self.tenant): self.tenant, type(self.workspace.account): self.workspace.account}
            if target in known:
                return known[target]
            return self.rows[target][-1 if turn else 0] if target in self.rows else target._base_manager.first()

        if own := self._plants.get(model._meta.label):
            return own(self, person, canary)
        try:
            return planting.plant(model, canary, refer, turn=turn, pk=FAR if turn == 2 else None)
        except Exception as exc:
            raise planting.CannotPlant(
                f"{model._meta.label} could not be filled with canaries ({exc}). Write a function for it: "
                f"PLANTS['{model._meta.label}'] in the app's crawl_cases.py, as tests/isolation/crawler/cases.py has."
            ) from exc

    def _shared_rows(self, model: type[models.Model]) -> Any:
        return model._base_manager.filter(**{planting.shared_models()[model]: self.tenant.pk})

    def _plant_elsewhere(self) -> None:
        """In the cache, among the files, in the queue."""
        with self.workspace.scope():
            cache.set("crawled", self._plant("a cache entry"))
            saved = default_storage.save(f"{self.tenant.pk}/crawled.txt", ContentFile(self._plant("a file").encode()))
            # As it lies under MEDIA_ROOT, whatever the storage makes of the name.
            self.file = str(Path(default_storage.path(saved)).relative_to(settings.MEDIA_ROOT))
            with connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO public.procrastinate_jobs (queue_name, task_name, args, scheduled_at) VALUES "
                    "('crawled', 'crawled', jsonb_build_object('tenant_id', %s::int, 'note', %s::text), '2999-01-01')",
                    [self.tenant.pk, self._plant("a job's argument")],
                )


def _values(row: models.Model) -> dict[str, Any]:
    return {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}
