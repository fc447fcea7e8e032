"""Web and plane behind the front: what their servers refuse by themselves is said in the contract's words, too."""

import httpx
import pytest

from tenants.http import Invalid
from tests.support.whole import Whole

pytestmark = pytest.mark.slow

UNREADABLE = Invalid({"body": ["This cannot be read as it was sent."]})
WAYS = {
    "a method in lower case": {"method": "get"},
    "a long address": {"params": {"x": "a" * 9_000}},
    "a long header": {"headers": {"Cookie": "sessionid=" + "a" * 9_000}},
    "many headers": {"headers": [(f"X-{number}", "a") for number in range(150)]},
    "a header twice": {"headers": [("Content-Type", "application/json")] * 2},
}


@pytest.fixture(scope="module")
def site(app, database_url, authority, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one-voice")
    with Whole(folder, database_url=database_url, authority=authority) as site:
        yield site


def ask(site, path, *, method="GET", headers=(), **sent):
    pairs = [("Host", "localhost"), *(headers.items() if isinstance(headers, dict) else headers)]
    with httpx.Client(trust_env=False, timeout=30) as client:
        request = client.build_request("GET", site.url + path, headers=pairs, **sent)
        request.method = method  # httpx would write it in capitals
        return client.send(request)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_a_server_refuses_before_us_is_said_in_our_words(site, way):
    for path in ("/api/budget/", "/api/chat/"):
        answer = ask(site, path, **way)
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.json() == UNREADABLE.body() or answer.json()["error"] in ("tenant_required", "method_not_allowed")
        assert not {"Server", "Via"} & answer.headers.keys()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_outside_of_the_api_it_is_a_page(site, way):
    answer = ask(site, "/login/", **way)
    assert answer.status_code == 400
    assert UNREADABLE.message in answer.text
    assert "gunicorn" not in answer.text.lower()
    assert "Error parsing" not in answer.text
