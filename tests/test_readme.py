"""What the README shows is run."""

import json
import re
import sys
import tomllib
import types
from importlib import import_module
from pathlib import Path

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.management import call_command
from django.template import TemplateDoesNotExist
from django.test import RequestFactory
from django.urls import path

from billing import admin_client
from billing.errors import BudgetDenied, IdempotencyConflict, OutsideItsLimit
from billing.ledgers import ledgers_of
from billing.models import HouseLine
from tenants.api import Api, session_or_key
from tenants.audit.models import AuditEvent
from tenants.context import current_tenant
from tenants.http import Invalid
from tenants.mail.models import OutgoingMail
from tenants.users.models import ApiKey, User
from tests.support.plane import PlaneClient

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()

APP, GUARDED, REPEATED, JOB, ON_THE_PLANE, BOUGHT, OF_THE_HOUSE, THREADS, FILES, COMMAND, TOLD = re.findall(
    r"<!-- a test runs this block -->\n```python\n(.*?)```", README, re.DOTALL
)


def test_an_apps_operation_and_page_work_for_who_may(workspace, upstream, settings, tmp_path, monkeypatch):
    urls = types.ModuleType("readme_app")
    exec(APP, vars(urls))
    api = Api(urls_namespace="readme-app", auth=session_or_key)
    api.add_router("", urls.router)
    ours = import_module(settings.ROOT_URLCONF).urlpatterns
    urls.urlpatterns = [path("haikus/", urls.shelf), path("api/", api.urls), *ours]
    monkeypatch.setitem(sys.modules, "readme_app", urls)
    settings.ROOT_URLCONF = "readme_app"
    (tmp_path / "haikus").mkdir()
    page = re.search(r"<!-- a test shows this page -->\n```html\n(.*?)```", README, re.DOTALL)[1]
    (tmp_path / "haikus" / "shelf.html").write_text(page)
    (engine,) = settings.TEMPLATES
    settings.TEMPLATES = [engine | {"DIRS": [tmp_path, *engine["DIRS"]]}]

    program = workspace.api()
    assert program.post("/api/haikus/", {"topic": "rain"}).json() == {"text": "Hello, world.", "cost": 26_000}
    assert program.post("/api/haikus/", {"topic": 7}).json()["fields"].keys() == {"topic"}
    (line,) = workspace.lines()
    assert (line.app, line.user_id, line.key_id is None) == ("haiku", workspace.owner.pk, False)
    assert "/api/haikus/" in api.get_openapi_schema()["paths"]
    viewer = workspace.member("vera@x.example", "viewer")
    assert workspace.api(workspace.key(viewer)).post("/api/haikus/", {"topic": "rain"}).status_code == 403
    shown = {who: workspace.client(who).get("/haikus/").content.decode() for who in (workspace.owner, viewer)}
    assert all(f"Haikus of {who.email}" in text for who, text in shown.items())
    assert ["Write one" in text for text in shown.values()] == [True, False]
    assert workspace.client().get("/haikus/").url == "/login/?next=/haikus/"


def test_the_lines_that_an_app_needs_are_for_places_that_are_there():
    wanted = README.partition("## An app of your own")[2].partition("\n## ")[0]
    assert "TENANT_APPS = [" in (ROOT / "config" / "settings.py").read_text()
    assert 'path("", include("' in (ROOT / "config" / "urls.py").read_text()
    api = (ROOT / "config" / "api.py").read_text()
    assert 'tenant_api.add_router("", "' in api
    assert re.search(r'public_api\.add_router\("", "[a-z.]+", auth=_key\)', api)
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert {"chat", "billing", "tenants"} <= set(linter["contracts"][0]["layers"])
    (named,) = [one for one in linter["contracts"] if f'"{one["name"]}"' in wanted]
    assert "source_modules" in named


def test_a_job_that_runs_twice_buys_once(workspace, upstream):
    world, kept = {}, []
    exec(REPEATED, world)
    exec(JOB.replace("@app.task", ""), world)
    world["Haiku"] = types.SimpleNamespace(
        objects=types.SimpleNamespace(update_or_create=lambda **row: kept.append((row["number"], row["defaults"])))
    )
    with workspace.scope():
        for _ in range(2):
            world["send_haiku"](number=7, topic="rain", member_id=workspace.owner.pk)
    assert kept == [(7, {"text": "Hello, world."})] * 2
    assert [line.cost for line in workspace.lines()] == [26_000]
    assert len(upstream.calls) == 1


def test_the_guarded_view_pays_and_is_refused(workspace):
    called = []
    world = {"call_your_model": lambda topic: called.append(topic) or {"text": f"on {topic}", "cost": 12_345}}
    exec(GUARDED, world)
    request = RequestFactory().post("/haiku/?topic=rain", headers={"authorization": f"Bearer {workspace.key()}"})
    request.tenant, request.asker = workspace.tenant, None
    with workspace.scope():
        # A link on anybody's page is a GET of the member's own browser, with their session.
        assert world["haiku"](RequestFactory().get("/haiku/?topic=rain")).status_code == 405
        assert world["haiku"](request).content == b'{"haiku": "on rain"}'
        assert workspace.ledger()["spent"] == 12_345
        workspace.leave(49_999)
        with pytest.raises(BudgetDenied):
            world["haiku"](request)
    assert called == ["rain"]
    assert len(GUARDED.strip().splitlines()) <= 16


def test_the_view_of_one_s_own_is_paid_once_for_each_key(workspace, upstream):
    def ask(topic, **headers):
        headers |= {"authorization": f"Bearer {workspace.key()}"}
        request = RequestFactory().post(f"/haiku/?topic={topic}", headers=headers)
        request.tenant, request.asker = workspace.tenant, None
        return world["haiku"](request)

    world = {}
    exec(REPEATED, world)
    with workspace.scope():
        first, again = (ask("rain", **{"idempotency-key": "k-1"}) for _ in range(2))
        with pytest.raises(IdempotencyConflict):
            ask("snow", **{"idempotency-key": "k-1"})
        with pytest.raises(Invalid):
            ask("rain")
    assert first.content == again.content == b'{"haiku": "Hello, world.", "microcents": 26000}'
    assert [line.cost for line in workspace.lines()] == [26_000]
    assert len(upstream.calls) == 1


def test_the_async_view_buys_on_the_plane_and_is_refused(workspace, upstream, settings, monkeypatch):
    urls = types.ModuleType("readme_urls")
    exec(ON_THE_PLANE, vars(urls))
    monkeypatch.setitem(sys.modules, "readme_urls", urls)
    settings.PLANE_URLCONF = "readme_urls"
    plane = workspace.api().plane
    assert plane.get("/api/chat/haiku/?topic=rain").status_code == 405
    answer = plane.post("/api/chat/haiku/?topic=rain")
    assert answer.json() == {"haiku": "Hello, world.", "microcents": 26_000, "outcome": "exact"}
    assert upstream.calls[-1]["messages"][-1]["content"] == "A haiku on rain."
    (line,) = workspace.lines()
    assert (line.app, line.user_id, line.cost) == ("haiku", workspace.owner.pk, 26_000)
    workspace.leave(0)
    assert plane.post("/api/chat/haiku/?topic=rain").status_code == 402
    assert PlaneClient(headers={"host": workspace.host}).post("/api/chat/haiku/?topic=rain").status_code == 401
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("block", [GUARDED, REPEATED, ON_THE_PLANE], ids=["guarded", "once", "plane"])
def test_a_key_with_a_limit_buys_nothing_past_it_in_the_views_of_ones_own(
    workspace, upstream, settings, monkeypatch, block
):
    """Whoever copies an example copies what it leaves out: a key's limit counts what is bought in its name alone."""
    member = workspace.member("mia@acme.example")
    secret = workspace.key(member)
    with workspace.scope():
        pk = ApiKey.objects.latest("pk").pk
    limited = workspace.client(workspace.owner).post(f"/settings/keys/{pk}/limit/", {"amount": "0.10"})
    assert limited.status_code == 302
    urls = types.ModuleType("readme_urls")
    vars(urls)["call_your_model"] = lambda topic: pytest.fail("called past the limit")
    exec(block, vars(urls))
    if block is ON_THE_PLANE:
        monkeypatch.setitem(sys.modules, "readme_urls", urls)
        settings.PLANE_URLCONF = "readme_urls"
        answer = workspace.api(secret).plane.post("/api/chat/haiku/?topic=rain")
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    else:
        headers = {"authorization": f"Bearer {secret}", "idempotency-key": "k-1"}
        request = RequestFactory().post("/haiku/?topic=rain", headers=headers)
        request.tenant, request.asker = workspace.tenant, None
        with workspace.scope(), pytest.raises(OutsideItsLimit):
            urls.haiku(request)
    assert upstream.calls == []
    assert workspace.lines() == []


def test_answers_are_bought_and_kept_in_plain_functions(workspace, upstream, capsys):
    shelf = []
    with workspace.scope():
        exec(BOUGHT, {"shelf": shelf})
    assert capsys.readouterr().out == "Hello, world."
    assert upstream.wait_until(lambda _: len(shelf) == 2)
    assert shelf == [("Hello, world.", 26_000)] * 2
    assert [(line.app, line.cost) for line in workspace.lines()] == [("letters", 26_000)] * 2


def test_the_house_is_set_up_and_pays_outside_any_tenant(workspace, upstream, settings):
    script = re.search(r"<!-- a test makes these calls -->\n```sh\n(.*?)```", README, re.DOTALL)[1]
    made = {
        path: admin_client.call("POST", f"/v1/admin/{path}", body=json.loads(body))
        for path, body in re.findall(r"^admin ([a-z-]+) '(.*?)'", script, re.DOTALL | re.MULTILINE)
    }
    settings.CYCLES_TENANT, settings.CYCLES_API_KEY = made["tenants"]["tenant_id"], made["api-keys"]["key_secret"]
    world = {}
    exec(OF_THE_HOUSE, world)
    assert world["write_digest"]() == "Hello, world."
    (ledger,) = ledgers_of([made["budgets"]["scope"]])
    assert (ledger.spent, ledger.remaining) == (26_000, 2_000_000_000 - 26_000)
    assert HouseLine.objects.latest("pk").cost == 26_000
    assert workspace.lines() == []


def test_its_variables_are_those_of_the_example():
    table = README[README.index("## Variables") :]
    named = set(re.findall(r"`([A-Z][A-Z_]+)`", table))
    example = (ROOT / ".env.example").read_text().split("# Only for docker-compose.yml")[0]
    explained = {line.partition("=")[0] for line in example.splitlines() if line and not line.startswith("#")}
    assert explained == named


def test_its_pictures_are_there():
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", README)
    for picture in (one or other for one, other in shown):
        assert (ROOT / picture).stat().st_size > 10_000


def test_a_builders_threads_work_inside_the_workspace(acme):
    seen = []

    def count_words(number):
        seen.append((number, current_tenant(), User.objects.filter(email=acme.account.owner_email).count()))

    with acme.scope():
        exec(THREADS, {"count_words": count_words})
    assert sorted(seen) == [(number, acme.tenant, 1) for number in (1, 2, 3, 4)]


def test_a_builders_view_of_files_sends_the_members_own(acme, globex, settings, tmp_path, monkeypatch):
    urls = types.ModuleType("readme_files")
    exec(FILES, vars(urls))
    monkeypatch.setitem(sys.modules, "readme_files", urls)
    settings.ROOT_URLCONF = "readme_files"
    options = {"location": tmp_path, "view": "upload"}
    settings.STORAGES = settings.STORAGES | {"default": settings.STORAGES["default"] | {"OPTIONS": options}}
    for workspace in (acme, globex):
        with workspace.scope():
            address = default_storage.url(default_storage.save("plan.txt", ContentFile(workspace.slug.encode())))
    answer = acme.api().get(address)
    assert b"".join(answer.streaming_content) == b"acme"
    assert answer["Content-Disposition"] == 'attachment; filename="plan.txt"'
    answer.close()
    for stranger in (acme.api(globex.key()), acme.client()):
        assert stranger.get(address).status_code == 401


def test_a_builders_command_works_inside_the_workspace(acme, capsys):
    from chat.models import Conversation

    built = {"Note": Conversation}
    exec(COMMAND, built)
    with acme.scope():
        Conversation.objects.create(owner=acme.owner)
        count = Conversation.objects.count()
    call_command(built["Command"](), "--tenant", "acme")
    assert capsys.readouterr().out == f"acme: {count}\n"


def test_what_an_app_does_is_in_the_trail_and_in_a_mail_or_not_done(acme, alice):
    from chat.models import Conversation

    # What a builder adds first: an event, and a mail's templates.
    told = TOLD.replace("POEM_PUBLISHED", "RENAMED").replace('"published"', '"confirm"')
    assert told.count("RENAMED") == told.count('"confirm"') == 1
    world = {}
    exec(told, world)
    request = RequestFactory().get("/")
    request.tenant, request.asker, request.user = acme.tenant, None, alice
    with acme.scope():
        world["publish"](request, Conversation(owner=alice, title="Rain on the harbour"))
        assert AuditEvent.objects.get(target="Rain on the harbour").actor == alice.email
        assert OutgoingMail.objects.filter(to=alice.email, subject="Your poem is out").count() == 1
        with pytest.raises(TemplateDoesNotExist):
            exec(TOLD.replace("POEM_PUBLISHED", "RENAMED"), world)
            world["publish"](request, Conversation(owner=alice, title="Nowhere"))
        assert not AuditEvent.objects.filter(target="Nowhere").exists()
        assert not Conversation.objects.filter(title="Nowhere").exists()
