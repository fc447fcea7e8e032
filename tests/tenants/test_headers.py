"""What browsers are told with every answer, by both doors; and that no page of ours needs to be told less."""

import re
from pathlib import Path

import pytest
from django.test import Client

from config.asgi import PlaneHandler

ROOT = Path(__file__).resolve().parents[2]
EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
POLICY = "default-src 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'; form-action 'self'"
BARE, TENANT, NOBODY = "localhost", "acme.localhost", "nobody.localhost"
PLACES = [
    (BARE, "/"), (BARE, "/signup/"), (BARE, "/nothing/"), (BARE, "/api/budget/"), (BARE, "/healthz"),
    (BARE, "/readyz"), (BARE, "/static/site.css"), (BARE, "/static/nothing.css"), (TENANT, "/"), (TENANT, "/login/"),
    (TENANT, "/nothing/"), (TENANT, "/api/budget/"), (TENANT, "/login"), (NOBODY, "/"), (NOBODY, "/api/budget/"),
    ("bad host", "/"),
]  # fmt: skip


def told(response):
    return {name: response[name] for name in EVERYWHERE}


@pytest.mark.parametrize(("host", "path"), PLACES)
def test_each_answer_of_web_has_them(acme, host, path):
    response = Client(headers={"host": host}, raise_request_exception=False).get(path)
    assert told(response) == EVERYWHERE
    assert response["Content-Security-Policy"].startswith(POLICY)
    assert not response.has_header("Strict-Transport-Security")


def test_each_answer_of_the_plane_has_the_same(plane, acme):
    program = plane(headers={"host": acme.host, "authorization": f"Bearer {acme.key()}"})
    stranger = plane(headers={"host": acme.host})
    asked = [program.get("/api/plain/"), program.get("/api/stream/?name=headers"), program.get("/api/nothing/")]
    asked += [program.get("/api/fails/?how=crash"), stranger.get("/api/plain/"), stranger.get("/healthz")]
    for response in asked:
        assert told(response) == EVERYWHERE
        assert response["Content-Security-Policy"].startswith(POLICY)
        response.close()


def test_forms_go_to_workspaces_from_the_bare_host_and_from_a_workspace_to_itself_alone(acme):
    bare = Client(headers={"host": BARE}).get("/signup/")["Content-Security-Policy"]
    assert bare == f"{POLICY} http://*.localhost:8000"
    assert Client(headers={"host": TENANT}).get("/login/")["Content-Security-Policy"] == POLICY


def test_what_came_by_tls_is_to_come_so_for_a_year(plane, acme, settings):
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    settings.SECURE_HSTS_SECONDS, settings.SECURE_HSTS_INCLUDE_SUBDOMAINS = 31_536_000, True
    for client in (Client(), plane(application=PlaneHandler())):
        for proto, header in (("https", "max-age=31536000; includeSubDomains"), ("http", None)):
            answer = client.get("/api/nothing/", headers={"host": acme.host, "x-forwarded-proto": proto})
            assert (
                answer.headers.get("Strict-Transport-Security", answer.headers.get("strict-transport-security"))
                == header
            )


def test_the_documentation_may_show_the_pictures_of_its_style_sheet_and_nothing_else_more(acme):
    page = Client(headers={"host": TENANT}).get("/api/docs")
    assert page["Content-Security-Policy"] == f"{POLICY}; img-src 'self' data:"
    assert b'"validatorUrl": null' in page.content
    assert b"http" not in page.content.replace(b"http://www.w3.org", b"")


def test_djangos_debug_pages_are_left_as_they_are(acme, settings):
    settings.DEBUG = True
    client = Client(headers={"host": BARE}, raise_request_exception=False)
    assert not client.get("/nothing/").has_header("Content-Security-Policy")
    assert client.get("/").has_header("Content-Security-Policy")


# A block of JSON is data that no browser runs.
INLINE = re.compile(
    r"<style|\sstyle=|\son[a-z]+=|javascript:|\{\{ *form\.media"
    r'|<script(?![^>]*\ssrc=)(?! type="application/json")',
    re.IGNORECASE,
)


def test_no_template_has_a_script_or_a_style_within():
    pages = [*ROOT.glob("*/templates/**/*.html"), *ROOT.glob("*/*/templates/**/*.html")]
    # A mail program knows no style sheet of ours, and a mail is no page: it has no policy.
    pages = [page for page in pages if page.parent.name != "mail"]
    assert len(pages) > 20
    assert {str(page) for page in pages if INLINE.search(page.read_text())} == set()


def test_a_form_refused_for_want_of_the_proxys_word_is_explained_to_the_operator(acme, settings, caplog):
    settings.SITE_URL = "https://localhost"
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    client = Client(headers={"host": TENANT, "origin": "https://acme.localhost"}, enforce_csrf_checks=True)
    client.get("/login/")
    form = {"csrfmiddlewaretoken": client.cookies["csrftoken"].value, "email": "a@b.example", "password": "x"}
    assert client.post("/login/", form).status_code == 403
    assert "X-Forwarded-Proto" in caplog.text
    caplog.clear()
    assert client.post("/login/", form, headers={"x-forwarded-proto": "https"}).status_code == 400  # a wrong password
    assert caplog.text == "" or "X-Forwarded-Proto" not in caplog.text
