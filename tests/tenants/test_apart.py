"""What is not in a schema is kept apart too: cache entries, files, and whose work a line of the log is about."""

import asyncio
import io
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.cache import cache, caches
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.base import ContentFile
from django.db import models
from django.http import HttpResponse
from django.template import Context, Template
from django.test import RequestFactory
from django.urls import path
from django.views.decorators.cache import cache_page

from billing.guard import guarded
from tenants.cache import make_key, reverse_key
from tenants.checks import caches_keep_tenants_apart, files_keep_tenants_apart, tenants_are_kept_apart
from tenants.context import NoContext, bind, public_scope
from tenants.files import NoFileHere, TenantFiles
from tenants.logs import WithTenant
from tenants.middleware import TenantMiddleware
from tenants.threads import carrying
from tests.support.money import eventually

pytestmark = pytest.mark.usefixtures("app")

# --- caches ----------------------------------------------------------------------------------------------------------


def test_the_bare_host_and_each_tenant_have_entries_of_their_own(acme, globex):
    cache.set("report", "public's")
    for workspace in (acme, globex):
        with workspace.scope():
            assert cache.get("report") is None
            cache.set("report", workspace.slug)
    with acme.scope():
        assert cache.get("report") == "acme"
        assert acme.slug not in make_key("report", "", 1)  # a slug may be another customer's one day
    assert cache.get("report") == "public's"


def test_a_thread_reads_its_starters_entries_and_a_bare_one_none(acme):
    with ThreadPoolExecutor(1) as threads, acme.scope():
        cache.set("plan", "acme's")
        assert threads.submit(carrying(cache.get), "plan").result() == "acme's"
        assert isinstance(threads.submit(cache.get, "plan").exception(), NoContext)


def test_async_code_reads_its_own_tenants_entries(acme, globex):
    async def request(tenant):
        bind(tenant)
        await cache.aset("async", tenant.slug)
        await asyncio.sleep(0)
        return await cache.aget("async"), cache.get("async")

    async def both():
        return await asyncio.gather(request(acme.tenant), request(globex.tenant))

    assert asyncio.run(both()) == [("acme", "acme"), ("globex", "globex")]


def test_a_key_is_given_back_as_it_came(acme):
    with acme.scope():
        assert reverse_key(make_key("a:b", "prefix", 1)) == "a:b"


def page_of(workspace, view):
    """What the workspace's program is answered on the bare host: there one address is every tenant's."""
    headers = {"host": "localhost", "x-tenant-id": workspace.slug, "authorization": f"Bearer {workspace.key()}"}
    return TenantMiddleware(view)(RequestFactory(headers=headers).get("/api/report/")).content.decode()


def whose(request):
    """A view that says `public`; where it does not, Django keeps an answer apart for each Authorization."""
    return HttpResponse(request.tenant.slug, headers={"Cache-Control": "public"})


def test_cache_page_without_our_key_gives_one_tenants_page_to_another(acme, globex, settings):
    settings.CACHES = {**settings.CACHES, "plain": {"BACKEND": settings.CACHES["default"]["BACKEND"], "LOCATION": "p"}}
    view = cache_page(60, cache="plain")(whose)
    assert [page_of(workspace, view) for workspace in (acme, globex)] == ["acme", "acme"]


def test_cache_page_with_it_does_not(acme, globex):
    view = cache_page(60)(whose)
    assert [page_of(workspace, view) for workspace in (acme, globex, acme)] == ["acme", "globex", "acme"]


def test_a_templates_fragment_is_its_tenants(acme, globex):
    template, found = Template("{% load cache %}{% cache 60 greeting %}{{ who }}{% endcache %}"), []
    for workspace in (acme, globex):
        with workspace.scope():
            found.append(template.render(Context({"who": workspace.slug})))
    assert found == ["acme", "globex"]


def test_a_cache_without_our_key_is_refused_unless_it_is_meant(settings):
    assert caches_keep_tenants_apart(None) == []
    redis = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://h"}
    settings.CACHES = {**settings.CACHES, "redis": redis}
    (error,) = caches_keep_tenants_apart(None)
    assert (error.id, "CACHES['redis']" in error.msg) == ("tenants.E005", True)
    assert "CACHES_SHARED_ON_PURPOSE" in error.hint
    settings.CACHES_SHARED_ON_PURPOSE = ["redis"]
    assert caches_keep_tenants_apart(None) == []
    settings.CACHES_SHARED_ON_PURPOSE = []
    ours = redis | {"KEY_FUNCTION": make_key}
    for wrong, code in (
        ({"KEY_FUNCTION": "django_tenants.cache.make_key"}, "tenants.E005"),
        ({"REVERSE_KEY_FUNCTION": "django_tenants.cache.other"}, "tenants.E008"),
        ({"KEY_PREFIX": "a:b"}, "tenants.E009"),
    ):
        settings.CACHES = {"default": ours | wrong}
        assert [error.id for error in caches_keep_tenants_apart(None)] == [code]
    del settings.CACHES
    assert caches["default"]


def test_another_database_backend_is_refused(settings, monkeypatch):
    monkeypatch.setitem(settings.DATABASES["default"], "ENGINE", "django_tenants.postgresql_backend")
    assert [error.id for error in tenants_are_kept_apart(None)] == ["tenants.E007"]


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    return TenantFiles(location=tmp_path)


def test_two_tenants_files_of_one_name_are_two(files, acme, globex, tmp_path):
    for workspace in (acme, globex):
        with workspace.scope():
            # Not even a changed name tells that another has one.
            assert files.save("2026/report.txt", ContentFile(workspace.slug.encode())) == "2026/report.txt"
    with acme.scope():
        assert files.open("2026/report.txt").read() == b"acme"
        assert files.listdir("") == (["2026"], [])
        files.delete("2026/report.txt")
    with globex.scope():
        assert files.open("2026/report.txt").read() == b"globex"
    assert sorted(found.name for found in tmp_path.iterdir()) == sorted(
        workspace.tenant.schema_name for workspace in (acme, globex)
    )


def test_no_name_leads_out_of_a_tenants_folder(files, acme, globex, tmp_path):
    with globex.scope():
        files.save("secret.txt", ContentFile(b"globex"))
    folder = globex.tenant.schema_name
    with acme.scope():
        for name in (f"../{folder}/secret.txt", str(tmp_path / folder / "secret.txt"), "a/../../x"):
            for act in (files.open, files.exists, files.delete, lambda name: files.save(name, ContentFile(b""))):
                with pytest.raises(SuspiciousFileOperation):
                    act(name)


def test_outside_a_tenant_there_are_no_files(files, acme):
    with pytest.raises(NoFileHere, match="tenant_scope"):
        files.save("report.txt", ContentFile(b""))
    with ThreadPoolExecutor(1) as threads, acme.scope():
        files.save("report.txt", ContentFile(b"acme"))
        assert isinstance(threads.submit(files.exists, "report.txt").exception(), NoFileHere)
        assert threads.submit(carrying(files.exists), "report.txt").result() is True


def test_a_file_has_an_address_only_where_a_view_checks_who_asks(acme, settings, tmp_path):
    with pytest.raises(NoFileHere, match="README"):
        TenantFiles(location=tmp_path).url("report.txt")
    settings.ROOT_URLCONF = __name__
    assert TenantFiles(location=tmp_path, view="file").url("2026/a b.txt") == "/files/2026/a%20b.txt"


urlpatterns = [path("files/<path:name>", whose, name="file")]


def test_a_field_of_a_tenants_app_that_keeps_its_files_with_the_others_is_named(app, monkeypatch, tmp_path):
    from django.core.files.storage import FileSystemStorage

    from chat.models import Conversation

    assert files_keep_tenants_apart(None) == []
    for storage, found in ((FileSystemStorage(tmp_path), ["tenants.W001"]), (TenantFiles(tmp_path), []), (None, [])):
        field = models.FileField(storage=storage)
        field.set_attributes_from_name("upload")
        monkeypatch.setattr(Conversation._meta, "local_fields", [*Conversation._meta.local_fields[:3], field])
        assert [warning.id for warning in files_keep_tenants_apart(None)] == found


# --- logs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lines(settings):
    """What a logger wrote, as settings format it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(WithTenant())
    handler.setFormatter(logging.Formatter(settings.LOGGING["formatters"]["line"]["format"].split(" ", 2)[2]))
    logger = logging.getLogger("tests.apart")
    logger.addHandler(handler)
    yield lambda: stream.getvalue().splitlines()
    logger.removeHandler(handler)


def test_a_line_says_whose_work_it_is_about(lines, acme, globex):
    logger = logging.getLogger("tests.apart")

    async def request(tenant):
        bind(tenant)
        await asyncio.sleep(0)
        logger.warning("async")

    async def both():
        await asyncio.gather(request(acme.tenant), request(globex.tenant))

    logger.warning("nobody's")
    with acme.scope():
        logger.warning("inside")
        with public_scope():
            logger.warning("public")
    asyncio.run(both())
    with ThreadPoolExecutor(1) as threads:
        threads.submit(logger.warning, "bare").result()
    assert lines() == [
        "tests.apart [-] nobody's",
        "tests.apart [acme] inside",
        "tests.apart [-] public",
        "tests.apart [acme] async",
        "tests.apart [globex] async",
        "tests.apart [-] bare",
    ]


def test_the_line_of_a_call_that_was_settled_says_whose_it_was_from_web_too(lines, home, neighbour):
    def said():
        # Not those of a call that an earlier test has left.
        found = [line.partition(" tenant=")[0] for line in lines()]
        return [line for line in found if f"[{home.slug}]" in line or f"[{neighbour.slug}]" in line]

    logging.getLogger("billing.engine.call").addHandler(writes := logging.getLogger("tests.apart").handlers[-1])
    try:
        for workspace in (home, neighbour):
            with workspace.scope():
                guarded(100)(lambda: None)()
        assert eventually(lambda: len(said()) == 2)
    finally:
        logging.getLogger("billing.engine.call").removeHandler(writes)
    assert sorted(said()) == sorted(f"billing.engine.call [{one.slug}] settled" for one in (home, neighbour))


def test_every_handler_of_settings_that_writes_such_lines_has_the_filter(settings):
    for handler in settings.LOGGING["handlers"].values():
        assert "tenant" in handler["filters"]
