"""The crawler is red on each planted bug and names it; on the same app without the bug it is green."""

import base64
import gzip
import html
import json
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from tests.isolation.crawler import cases
from tests.isolation.crawler.canaries import Canaries
from tests.isolation.crawler.cases import all_cases
from tests.isolation.crawler.crawl import Covered, Crawl
from tests.isolation.crawler.planted import leaky
from tests.isolation.crawler.planted.crawl_cases import CASES
from tests.isolation.crawler.walk import patterns

pytestmark = pytest.mark.slow

# Each of its own kind: the address, and what the crawler must say of it.
BUGS = {
    "unscoped cache key": ("api/titles/", "its answer shows chat.Conversation.title of crawled-neighbour"),
    "raw SQL with a schema": ("api/report/", "its answer shows chat.Message.text of crawled-neighbour"),
    "media path": ("api/files/<path:name>/", "its answer shows a file of crawled-neighbour"),
    "job without tenant": ("api/letters/", "enqueues the job tests.isolation.crawler.planted.leaky.write_to_all "
                                           "without its tenant"),
    "what that job does": ("api/letters/", "a mail of the job tests.isolation.crawler.planted.leaky.write_to_all shows "
                                           "users.User.email of crawled-neighbour"),
    "view that trusts an id": ("api/top-ups/<int:pk>/", "its answer shows billing.TopUp.key of crawled-neighbour"),
    "write across": ("api/rename/", "changed table chat_conversation of crawled-neighbour"),
    "log line": ("api/logged/", "a log line shows billing.TopUp.key of crawled-neighbour"),
    "stream of the plane": ("api/chat/emails/", "its answer shows users.User.email of crawled-neighbour"),
    "an answer of 500": ("api/broken/", "answers 500 DoesNotExist"),
}  # fmt: skip


@pytest.fixture
def crawl_app(rooms, model, settings):
    """The findings at one address of the app `leaky` or `sound`, once the neighbour has been there."""

    def crawl_app(name, route, known=CASES):
        app = f"tests.isolation.crawler.planted.{name}"
        leaky.Report.sql = ""
        settings.CACHES = {**settings.CACHES, "shared": {"BACKEND": settings.CACHES["default"]["BACKEND"]}}
        settings.ROOT_URLCONF, settings.PLANE_URLCONF = app, f"{app}_plane"
        (pattern,) = [one for one in patterns() if one.route == route and one.door != "bare"]
        here, other = rooms
        crawl = Crawl(here, other, known, Covered())
        return [*crawl.control([pattern]), *crawl.findings(pattern)]

    return crawl_app


@pytest.mark.parametrize(("route", "said"), BUGS.values(), ids=BUGS)
def test_a_planted_bug_is_red_and_named(crawl_app, route, said):
    found = crawl_app("leaky", route)
    print("\n".join(map(str, found)))
    named = [str(one) for one in found if said in one.what]
    assert named
    assert "tests.isolation.crawler.planted.leaky." in named[0]


@pytest.mark.parametrize("route", sorted({route for route, _ in BUGS.values()}))
def test_without_its_bug_the_same_app_is_green(crawl_app, route):
    found = crawl_app("sound", route)
    assert not found, "\n".join(map(str, found))


def test_a_form_that_works_only_once_is_no_finding(crawl_app):
    assert crawl_app("sound", "api/claim/") == []


def test_a_view_without_a_case_is_red_and_says_what_to_write(crawl_app):
    found = crawl_app("sound", "api/top-ups/<int:pk>/", known={})
    assert {one.what for one in found} == {
        "nobody has said what its argument pk is. Write CASES['api/top-ups/<int:pk>/'] = Case(…) in crawl_cases.py of "
        "the app, as tests/isolation/crawler/cases.py does."
    }
    plain_function = {one.what for one in crawl_app("sound", "api/logged/", known={})}
    assert any('say methods=("GET",)' in what for what in plain_function)


def test_an_apps_own_cases_are_found(monkeypatch):
    assert not CASES.items() & all_cases().items()
    installed = SimpleNamespace(name="tests.isolation.crawler.planted")
    monkeypatch.setattr(cases, "apps", SimpleNamespace(get_app_configs=lambda: [installed]))
    assert CASES.items() <= all_cases().items()


WRITTEN = {
    "plain": str.encode,
    "in capitals": lambda text: text.upper().encode(),
    "in hex": lambda text: text.encode().hex().encode(),
    "in UTF-16": lambda text: text.encode("utf-16"),
    "in base64": lambda text: base64.b64encode(text.encode()),
    "packed": lambda text: gzip.compress(text.encode()),
}


@pytest.mark.parametrize("write", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("before", ["", "a", "ab"])
def test_a_canary_is_found_however_it_is_written(write, before):
    canaries = Canaries()
    word = canaries.plant("a word", "acme")
    canaries.plant("another word", "globex")
    assert {one.kind for one in canaries.find(write(f"{before}{word} and more"))} == {"a word"}


def test_a_secret_of_the_products_is_found_in_html_json_and_addresses():
    canaries, secret = Canaries(), 'tk_"quoted" & /more/'
    canaries.adopt("a secret", "acme", secret)
    for written in (html.escape(secret), json.dumps(secret), quote(secret), quote(secret, safe="")):
        assert {one.kind for one in canaries.find(f"<{written}>".encode())} == {"a secret"}
