"""The application as gunicorn serves it: a chunked body is a body, and one that is too large is refused."""

import io
import json
import subprocess
import sys

import httpx
import pytest
from django.test import RequestFactory

from tests.support.web import ROOT, WebProcess

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def web(app, database_url, authority):
    with WebProcess(database_url=database_url, authority=authority, workers=1, threads=4) as web:
        yield web


def chunked(size):
    """A JSON body without a length: httpx sends an iterator in chunks."""
    body = json.dumps({"name": "x" * size}).encode()
    return (body[at : at + 4_096] for at in range(0, len(body), 4_096))


@pytest.mark.parametrize(("size", "status", "code"), [(10, 400, "invalid"), (1_100_000, 413, "too_large")])
def test_a_chunked_body_is_read_and_bounded(web, acme, size, status, code):
    with web.client(acme, acme.key()) as client:
        headers = {"Content-Type": "application/json"}
        response = client.post("/api/summarize/", content=chunked(size), headers=headers)
    assert (response.status_code, response.json()["error"]) == (status, code)
    if status == 400:
        # It was read: what is wrong is its field, not that there is nothing.
        assert "name" in response.json()["fields"]


@pytest.mark.parametrize("path", ["/healthz", "/nothing/", "/api/budget/", "/static/site.css", "/login/"])
def test_a_body_that_nobody_wants_is_read_to_its_end(app, acme, path):
    """Else the server closes the connection on it, and the front, which still writes, answers 503 for us."""
    from config.wsgi import application

    body = io.BytesIO(b"x" * 1_000_000)
    environ = RequestFactory(headers={"host": acme.host}).post(path).environ
    environ |= {"wsgi.input": body, "CONTENT_LENGTH": "1000000", "CONTENT_TYPE": "text/plain"}
    answers = []
    list(application(environ, lambda *start: answers.append(start[0])))
    assert body.read() == b""
    assert answers[0][:3] in ("200", "401", "403", "404", "405")


def test_a_look_without_the_body_leaves_no_line_in_the_log(web, acme):
    """Monitors send HEAD every few seconds."""
    with web.client(acme, acme.key()) as client:
        for path in ("/healthz", "/readyz", "/login/"):
            client.head(path)
            assert client.head(path).content == b""
    assert "HEAD" not in web.log()


# What some servers or frameworks take for where the application is mounted, what was asked, or how.
MOUNTS = [
    "SCRIPT_NAME",
    "SCRIPT-NAME",
    "X-Script-Name",
    "X_SCRIPT_NAME",
    "PATH_INFO",
    "X-Forwarded-Prefix",
    "SCRIPT_URL",
    "X-Original-URL",
    "X-Rewrite-URL",
]


def test_a_client_on_this_machine_does_not_say_where_the_application_is_mounted(web, acme):
    """A proxy beside it comes from loopback as well, and passes on what its clients wrote."""
    with web.client(acme, acme.key()) as client:
        plain = client.get("/api/budget/").json()
        for name in MOUNTS:
            for value in ("/api", "/evil", "/login/"):
                answer = client.get("/api/budget/", headers={name: value})
                assert answer.status_code == 200, (name, value, answer.text)
                assert answer.json()["tenant"] == plain["tenant"]
        for name in MOUNTS:
            # A page that redirects to an address it makes.
            page = httpx.get(
                f"http://127.0.0.1:{web.port}/signup/wait/", headers={"Host": "localhost", name: "/signup"}
            )
            assert page.headers["Location"] == "/signup/"


@pytest.mark.parametrize("application", ["config.asgi", "config.wsgi"])
def test_a_process_that_has_started_collects_its_garbage(web, application):
    """It does not while it loads; left so, it would grow for as long as it lives."""
    script = f"import gc, {application}; raise SystemExit(not gc.isenabled())"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=web.env, check=False).returncode == 0
