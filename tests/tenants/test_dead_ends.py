"""Where people end up who took a wrong turn: each page has a way on, and none tells a stranger who is there."""

import re
from contextlib import closing

import psycopg
import pytest
from django.db import OperationalError, connection
from django.test import Client, RequestFactory
from django.urls import path
from django.utils.functional import SimpleLazyObject
from psycopg_pool import ConnectionPool

from chat.calls import complete
from config import urls as workspaces_urls
from config.settings import _reset_session
from tenants.connections import own_connection_params
from tenants.http import Forbidden, Unavailable, error_response
from tenants.models import Tenant
from tests.support.cast import PASSWORD
from tests.support.only_reads import only_reads

pytestmark = pytest.mark.usefixtures("upstream")

SITE = "http://localhost:8000"


def at(host):
    return Client(headers={"host": host})


def links(page):
    return re.findall(r'<a [^>]*?href="([^"]*)"', page.content.decode())


def test_an_unknown_name_and_a_closed_workspace_are_one_page_that_leads_to_the_site(workspace):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(status=Tenant.Status.CLOSED)
    pages = [at(host).get("/any/") for host in ("never-was.localhost", workspace.host, "www.localhost", "127.0.0.1")]
    assert {page.status_code for page in pages} == {404}
    assert len({page.content for page in pages}) == 1
    found = set(links(pages[0])) - {"#main"}
    assert {f"{SITE}/", f"{SITE}/login/", f"{SITE}/signup/"} <= found
    assert not [link for link in found if not link.startswith(SITE)]


def test_the_bare_host_leads_to_the_log_in_that_is_named_whether_there_is_one_or_not(acme):
    for typed in ("acme", " ACME ", "acme.localhost", "http://acme.localhost:8000/c/7/", "acme.localhost."):
        response = at("localhost").post("/login/", {"slug": typed})
        assert (response.status_code, response["Location"]) == (302, "http://acme.localhost:8000/login/"), typed
    unknown = at("localhost").post("/login/", {"slug": "never-was"})
    assert (unknown.status_code, unknown["Location"]) == (302, "http://never-was.localhost:8000/login/")


@pytest.mark.parametrize(
    "typed", ["", "a b", "evil.example", "//evil.example", "acme.localhost.evil.example", "[x", "é"]
)
def test_what_names_no_workspace_is_said_on_the_form_and_leads_nowhere(typed):
    page = at("localhost").post("/login/", {"slug": typed})
    assert page.status_code == 400
    assert page.context["form"]["slug"].value() == typed
    assert page.context["form"].fields["slug"].widget.attrs["autofocus"] is True


def test_log_in_while_signed_in_goes_where_one_was_going_or_home(acme, alice):
    client = acme.client(alice)
    for target, goes in (("", "/"), ("/budget/", "/budget/"), ("//evil.example", "/"), ("https://evil.example/", "/")):
        response = client.get("/login/", {"next": target})
        assert (response.status_code, response["Location"]) == (302, goes), target


def test_an_errors_page_keeps_the_navigation_of_who_is_signed_in(acme, alice):
    member, stranger = acme.client(alice), acme.client()
    for address in ("/nothing/", "/c/999999/"):
        assert {"/", "/budget/", "/settings/"} <= set(links(member.get(address)))
    page = stranger.get("/nothing/")
    assert "/login/" in links(page)
    assert not {"/budget/", "/settings/"} & set(links(page))
    assert page.content.decode().index("<h1") < page.content.decode().index("404 not_found")


def test_an_errors_page_is_made_while_nobody_can_be_looked_up(acme):
    asked = []

    def lost():
        asked.append(1)
        raise OperationalError("the database is away")

    request = RequestFactory().get("/nothing/", headers={"host": acme.host})
    request.tenant, request.user = acme.tenant, SimpleLazyObject(lost)
    assert error_response(request, Unavailable()).status_code == 503
    assert asked == []
    assert error_response(request, Forbidden()).status_code == 403


def test_a_database_that_only_reads_is_said_to_be_away_and_no_defect(acme, alice):
    client = acme.client(alice)
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
        try:
            page = client.post("/settings/keys/", {"name": "mine"})
        finally:
            cursor.execute("SET default_transaction_read_only = off")
    assert (page.status_code, page["Retry-After"]) == (503, "2")


def test_a_connection_of_the_time_when_the_database_only_read_is_not_kept(acme):
    """Web's pool went on refusing what was written for a quarter of an hour after the database wrote again."""
    pool = ConnectionPool(kwargs=own_connection_params(), min_size=1, max_size=1, reset=_reset_session, open=False)
    with closing(pool):
        with only_reads():
            pool.open(wait=True)
            with pool.connection() as kept, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                kept.execute("CREATE TABLE public.nobodys ()")
        for _ in range(2):
            with pool.connection() as kept:
                kept.execute("CREATE TEMPORARY TABLE nobodys () ON COMMIT DROP")
            # One that writes is kept.
            assert pool.get_stats()["connections_num"] == 2


def bought_and_broken(request):
    complete([{"role": "user", "content": "hello"}])
    raise LookupError("after it was paid for")


handler500 = workspaces_urls.handler500
urlpatterns = [path("poems/", bought_and_broken), path("api/poems/", bought_and_broken), *workspaces_urls.urlpatterns]


@pytest.mark.parametrize("address", ["/poems/", "/api/poems/"])
def test_a_view_that_broke_after_it_bought_does_not_say_that_nothing_was_done(workspace, settings, address):
    """Who is told to try again, and that nothing was lost, pays again."""
    browser = workspace.client(workspace.owner)
    browser.raise_request_exception = False
    settings.ROOT_URLCONF = __name__
    answer = browser.get(address)
    assert answer.status_code == 500
    assert len(workspace.lines()) == 1
    assert b"Nothing was lost" not in answer.content
    assert b"See whether it was done" in answer.content


def test_a_sign_up_that_is_wrong_has_its_cursor_in_the_wrong_field(acme):
    form = {"name": "Mine", "slug": "Not Good", "email": "mine@example.org", "password": PASSWORD}
    page = at("localhost").post("/signup/", form).content.decode()
    assert re.findall(r"<input[^>]*\bautofocus\b[^>]*>", page)[0].count('name="slug"') == 1
    assert len(re.findall(r"<input[^>]*\bautofocus\b", page)) == 1
    assert 'data-sending="Creating…"' in page


def test_the_trail_says_in_which_zone_its_times_are(acme):
    page = acme.client(acme.owner).get("/settings/audit/").content.decode()
    assert re.search(r'class="line__when" datetime="[^"]+">[^<]*\d\d:\d\d:\d\d UTC<', page)
