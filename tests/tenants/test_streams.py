"""Streams of web: half of a worker's threads are for them, and no view is refused once it has bought."""

from __future__ import annotations

from contextlib import ExitStack

import httpx
import pytest
from django.test import Client

from tests.support import stream_urls
from tests.support.jobs import until
from tests.support.web import WebProcess


@pytest.fixture
def browser(app, settings):
    """A new one for each test: places and views are remembered by its handler's middleware."""
    settings.PUBLIC_SCHEMA_URLCONF = "tests.support.stream_urls"
    settings.WEB_STREAMS = 2
    for said in (stream_urls.ran, stream_urls.closed):
        said.clear()
    stream_urls.enough.set()
    return Client(headers={"host": "localhost"})


def refused(response) -> bool:
    if response.status_code != 503:
        return False
    assert (response.json()["error"], int(response["Retry-After"]) > 0) == ("unavailable", True)
    return True


def test_streams_take_the_places_there_are_and_give_them_back_when_closed(browser):
    one, two = browser.get("/api/stream/one/"), browser.get("/api/stream/two/")
    assert (one.streaming, two.streaming) == (True, True)
    assert refused(browser.get("/api/stream/three/"))
    assert browser.get("/api/plain/").content == b"plain"
    one.close()
    one.close()
    three = browser.get("/api/stream/three/")
    assert refused(browser.get("/api/stream/four/"))
    # Read to its end it is closed as well, as servers do.
    assert b"".join(three.streaming_content) == b"data: 1\n\n"
    for response in (two, browser.get("/api/stream/four/")):
        assert response.status_code == 200
        response.close()


def test_a_view_known_to_stream_is_refused_before_it_buys(browser):
    streams = [browser.get(f"/api/stream/{name}/") for name in ("one", "two")]
    assert refused(browser.get("/api/stream/three/"))
    assert stream_urls.ran == ["one", "two"]
    for response in streams:
        response.close()


def test_what_a_view_not_yet_known_has_begun_is_closed_when_it_is_refused(browser):
    streams = [browser.get(f"/api/stream/{name}/") for name in ("one", "two")]
    assert refused(browser.get("/api/other/three/"))
    assert stream_urls.closed == ["three"]
    for response in streams:
        response.close()


def test_a_view_that_fails_instead_of_streaming_keeps_no_place(browser):
    browser.get("/api/stream/one/").close()
    for _ in range(3):
        assert browser.get("/api/stream/odd/").status_code == 400
    streams = [browser.get(f"/api/stream/{name}/") for name in ("one", "two")]
    assert [response.status_code for response in streams] == [200, 200]
    for response in streams:
        response.close()


@pytest.mark.slow
def test_slow_streams_leave_threads_for_pages_and_their_readers_leave_places(app, database_url, authority):
    settings = "tests.support.stream_settings"
    options = {"workers": 1, "threads": 4, "DJANGO_SETTINGS_MODULE": settings}
    with ExitStack() as readers:
        web = readers.enter_context(WebProcess(database_url=database_url, authority=authority, **options))
        address = {"base_url": f"http://127.0.0.1:{web.port}", "headers": {"Host": "localhost"}}
        with httpx.Client(**address, timeout=30) as client:
            leave = []
            for name in ("one", "two"):
                leave.append(readers.enter_context(ExitStack()))
                leave[-1].enter_context(client.stream("GET", f"/api/stream/{name}/"))
            for _ in range(8):
                assert client.get("/api/stream/three/").status_code == 503
                assert client.get("/api/plain/").status_code == 200
            leave[0].close()

            def streams() -> bool:
                with client.stream("GET", "/api/stream/three/") as response:
                    return bool(response.status_code == 200)

            until(streams)
