"""A session is tied to its tenant, whatever else the request carries: a copied row is nobody, at both doors."""

import pytest
from django.contrib.sessions.models import Session
from django.db import connection
from django.http import JsonResponse
from django.test.utils import CaptureQueriesContext
from django.urls import include, path

from tenants.users.models import User


def whoami(request):
    """A builder's view: it knows nothing of keys and asks Django."""
    return JsonResponse({"user": request.user.pk, "keys": sorted(request.session.keys())})


urlpatterns = [path("api/whoami/", whoami), path("whoami/", whoami), path("", include("config.urls"))]

HEADERS = {
    "none": {},
    "a word": {"authorization": "x"},
    "basic": {"authorization": "Basic YWxpY2U6cHc="},
    "empty": {"authorization": ""},
    "a wrong key": {"authorization": f"Bearer tk_{'x' * 43}"},
    "ours": None,
}


@pytest.fixture
def copied(home, neighbour, settings):
    """The session of home's owner, copied into the neighbour's schema, where the same id has the same password."""
    settings.ROOT_URLCONF = __name__
    owner = home.owner
    cookie = home.client(owner).cookies["sessionid"].value
    with home.scope():
        row = Session.objects.get(pk=cookie)
    with neighbour.scope():
        row.save(force_insert=True)
        assert User.objects.filter(pk=owner.pk).update(password=owner.password) == 1
    return cookie


@pytest.mark.parametrize("kind", HEADERS)
def test_a_copied_session_is_nobody_whatever_header_comes_with_it(home, neighbour, copied, kind):
    headers = HEADERS[kind] if HEADERS[kind] is not None else {"authorization": f"Bearer {neighbour.key()}"}
    # The page last: it drops the session for good.
    for address in ("/api/whoami/", "/whoami/"):
        client = neighbour.client()
        client.cookies["sessionid"] = copied
        assert client.get(address, headers=headers).json() == {"user": None, "keys": []}, address
    if kind != "ours":
        client = neighbour.client()
        client.cookies["sessionid"] = copied
        assert neighbour.plane(client).post("/api/chat/", {"prompt": "hello"}, headers=headers).status_code == 401
    # The same cookie at home: what is seen above is the tie, and no broken cookie.
    client = home.client()
    client.cookies["sessionid"] = copied
    assert client.get("/whoami/", headers=headers).json()["user"] == home.owner.pk


def test_an_api_request_with_a_key_has_no_session_and_asks_for_none(home, settings):
    settings.ROOT_URLCONF = __name__
    client = home.client(home.owner)
    headers = {"authorization": f"Bearer {home.key()}"}
    with CaptureQueriesContext(connection) as seen:
        answer = client.get("/api/whoami/", headers=headers)
    assert answer.json() == {"user": None, "keys": []}
    assert not any("django_session" in query["sql"] for query in seen)
    # It was not signed out: the browser's own requests go on.
    assert "sessionid" not in answer.cookies
    assert client.get("/api/whoami/").json()["user"] == home.owner.pk
