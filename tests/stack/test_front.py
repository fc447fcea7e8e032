"""The front: real Caddy, real sockets, and stand-ins behind it that say what they were asked."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from config.stack.front import Listener, front_environment
from tenants.headers import policy
from tenants.http import Invalid, TooLarge, Unavailable
from tests.stack.conftest import Upstream, wait_until
from tests.support.front import Front

LARGE = b"x" * 9_000_000
CHAT = "/api/chat/stream/"
# The front tries for 3 s to reach who is away; nobody else here is in a hurry.
get, post, request = (partial(ask, timeout=30) for ask in (httpx.get, httpx.post, httpx.request))
UNREADABLE = Invalid({"body": ["This cannot be read as it was sent."]})


def say(front, words: str) -> None:
    post(f"{front.url}/api/chat/say/", content=words).raise_for_status()


def in_pieces():
    return (LARGE[at : at + 65_536] for at in range(0, len(LARGE), 65_536))


def seen_headers(answer: httpx.Response) -> dict[str, str]:
    return dict(answer.json()["headers"])


def test_chat_goes_to_the_plane_and_everything_else_to_web(front, web, plane):
    for path in ("/", "/healthz", "/api/budget/", "/api/chat", "/api/chatter/", "/api/chat/"):
        get(front.url + path)
    assert plane.seen() == ["/api/chat/"]
    assert web.seen() == ["/", "/healthz", "/api/budget/", "/api/chat", "/api/chatter/"]


@pytest.mark.parametrize("content", [LARGE, in_pieces], ids=["by its length", "without a length"])
@pytest.mark.parametrize("path", ["/api/chat/", "/api/summarize/"])
def test_a_body_over_the_limit_is_refused_in_the_contracts_words(front, plane, web, folder, content, path):
    answer = post(front.url + path, content=content if isinstance(content, bytes) else content())
    assert (answer.status_code, answer.json()) == (413, TooLarge().body())
    assert path not in plane.seen() + web.seen()
    assert not [*(folder / "tmp").iterdir(), *(folder / "home").iterdir()]


def test_outside_of_the_api_the_refusal_is_a_page(front):
    answer = post(f"{front.url}/login/", content=LARGE)
    assert answer.status_code == 413
    assert answer.headers["Content-Type"].startswith("text/html")
    assert TooLarge.message in answer.text
    assert "{" not in answer.text.replace(answer.text.partition("<style>")[2].partition("</style>")[0], "")


def test_a_body_of_just_the_limit_passes(front):
    for path in ("/api/chat/", "/api/summarize/"):
        for content in (b"x" * 1_048_576, iter([b"x" * 1_048_576])):
            assert post(front.url + path, content=content).json()["length"] == 1_048_576


@pytest.mark.parametrize("content", [bytes, lambda body: iter([body])], ids=["by its length", "without a length"])
def test_v1_goes_to_the_plane_with_a_limit_of_its_own_and_refusals_in_its_clients_shape(front, plane, web, content):
    path = f"{front.url}/v1/chat/completions"
    for size in (1_100_000, 8 * 1_048_576):
        assert post(path, content=content(b"x" * size)).json()["length"] == size
    refused = post(path, content=content(LARGE))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (413, "too_large", "invalid_request_error")
    assert "8 MiB" in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert "/v1/chat/completions" not in web.seen()
    plane.stop()
    away = post(path, content=b"{}")
    assert (away.status_code, away.json()["error"]["type"]) == (503, "server_error")
    assert (away.headers["Retry-After"], away.headers["x-should-retry"]) == ("2", "true")
    plane.start()


def test_a_file_goes_to_web_with_a_limit_of_its_own_and_what_is_done_with_it_later_has_none(front, plane, web):
    path = f"{front.url}/c/files/"
    # Its own eight MiB, and one for the rest of the form. Without a length the front lets through the most that an
    # operator can set, and web counts.
    for content, most in ((bytes, 9 * 1_048_576), (lambda body: iter([body]), 17 * 1_048_576)):
        for size in (1_100_000, 9 * 1_048_576):
            assert post(path, content=content(b"x" * size)).json()["length"] == size
        refused = post(path, content=content(b"x" * (most + 1)))
        assert refused.status_code == 413
        assert "This file is larger than 8 MiB. Go back and add a part of it." in refused.text
        for other in ("7/", "7/remove/"):
            assert post(path + other, content=content(b"x" * 1_100_000)).status_code == 413, other
    assert (web.seen(), plane.seen()) == (["/c/files/"] * 4, [])


def test_what_the_front_answers_itself_tells_browsers_what_web_and_plane_tell_them(front, web, settings):
    web.stop()
    for answer in (post(f"{front.url}/login/", content=LARGE), get(f"{front.url}/api/budget/")):
        # A page has a style of its own, for web is away that has the site's.
        style = answer.text.partition("<style>")[2].partition("</style>")[0]
        hashed = b64encode(sha256(style.encode()).digest()).decode()
        assert answer.headers["Content-Security-Policy"] == policy(
            {"style-src": [f"'sha256-{hashed}'"]} if style else None
        )
        assert answer.headers["X-Frame-Options"] == settings.X_FRAME_OPTIONS
        assert answer.headers["Referrer-Policy"] == settings.SECURE_REFERRER_POLICY
        assert answer.headers["Cross-Origin-Opener-Policy"] == settings.SECURE_CROSS_ORIGIN_OPENER_POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_plane_that_is_away_is_the_contracts_503_and_web_goes_on(front, plane):
    plane.stop()
    answer = post(f"{front.url}/api/chat/", json={})
    assert (answer.status_code, answer.json()) == (503, Unavailable().body())
    assert answer.headers["Retry-After"] == "2"
    assert get(f"{front.url}/page").status_code == 200
    plane.start()
    assert post(f"{front.url}/api/chat/", json={}).status_code == 200


def test_a_plane_that_dies_before_it_answers_is_the_same(front):
    answer = post(f"{front.url}/api/chat/dies/", json={})
    assert (answer.status_code, answer.json()) == (503, Unavailable().body())


def test_while_one_of_two_planes_is_started_anew_the_other_answers_each_call(folder, web, plane):
    both = f"{plane.listener.for_caddy()} unix/{folder / 'away.sock'}"
    with Front(folder, web=web.listener, plane=plane.listener, PLANE_UPSTREAM=both) as front:
        for path in ("/api/chat/", "/v1/chat/completions"):
            assert [post(front.url + path, json={}).status_code for _ in range(6)] == [200] * 6


def answer_in_time(ask):
    """Where a machine stands still for longer than the front tries to reach somebody, it is asked again."""
    for _ in range(5):
        began = time.monotonic()
        answer = ask()
        if answer.status_code != 503 or time.monotonic() - began < 3.5:
            break
    return answer


def answer_of_one_that_is_back_soon(where: Path, ask):
    return answer_in_time(lambda: _answer_of_one_that_is_back_soon(where, ask))


def _answer_of_one_that_is_back_soon(where: Path, ask):
    """Asked while nobody listens at `where`, a socket's file; from a moment later on somebody does."""
    away = where.rename(where.with_suffix(".away"))
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(where))  # it leaves its file
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask)
        try:
            answer.result(0.3)
        except TimeoutError:
            pass
        finally:
            away.rename(where)
        return answer.result()


@pytest.mark.parametrize("size", [2, 1_000_000])
@pytest.mark.parametrize("path", ["/api/chat/", "/login/"])
def test_who_asks_while_a_part_is_started_anew_waits_for_it_and_loses_nothing(front, web, plane, path, size):
    part = plane if path == "/api/chat/" else web
    for content in (lambda: b"x" * size, lambda: iter([b"x" * size])):
        answer = answer_of_one_that_is_back_soon(
            part.listener.path, lambda content=content: post(front.url + path, content=content())
        )
        assert (answer.status_code, answer.json()["length"]) == (200, size)
    assert part.seen() == [path, path]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_was_passed_on_is_never_sent_to_the_next_one(folder, web, plane, method):
    other = Upstream(folder / "other.sock")
    both = f"{plane.listener.for_caddy()} {other.listener.for_caddy()}"
    try:
        with Front(folder, web=web.listener, plane=plane.listener, PLANE_UPSTREAM=both) as front:
            assert request(method, f"{front.url}/api/chat/dies/").status_code == 503
        assert plane.listener.answers() != other.listener.answers()  # one of them died, and one alone
    finally:
        other.stop()


@pytest.fixture
def hangs_up(folder):
    """A web that takes each request and hangs up: where it listens, and the methods that it was asked by."""
    path, asked = folder / "hangs-up.sock", []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as connection:
                        asked.append(connection.recv(65_536).partition(b" ")[0].decode())

        with ThreadPoolExecutor(1) as pool:
            pool.submit(serve)
            yield Listener(path=path), asked
            listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("method", ["GET", "POST", "NONE"])
def test_what_was_passed_on_is_sent_once_whatever_its_method_is_called(folder, plane, hangs_up, method):
    web, asked = hangs_up
    with Front(folder, web=web, plane=plane.listener) as front:
        assert request(method, f"{front.url}/login/").status_code == 503
    assert asked == [method]


@pytest.fixture
def gone():
    """An address at which nobody answers whoever wants to connect, as after a machine has died."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # more than it takes without being read
            full = held.enter_context(socket.socket())
            full.setblocking(False)
            full.connect_ex(listener.getsockname())
        yield "{}:{}".format(*listener.getsockname())


def test_while_the_machine_of_one_of_two_planes_is_gone_the_other_answers_each_call(folder, web, plane, gone):
    both = f"{plane.listener.for_caddy()} {gone}"
    with Front(folder, web=web.listener, plane=plane.listener, PLANE_UPSTREAM=both) as front:
        for _ in range(4):
            assert answer_in_time(lambda: post(f"{front.url}/api/chat/", json={})).status_code == 200


def test_who_sent_a_form_is_told_how_it_is_not_lost(front, web):
    form = {"text": "of an hour's work"}
    assert "before this one: go back" in post(f"{front.url}/prompts/", content=LARGE).text
    web.stop()
    assert "let the browser send it again" in post(f"{front.url}/prompts/", data=form).text
    assert "send it again" not in get(f"{front.url}/prompts/").text


def test_a_web_that_is_away_is_a_page_without_a_word_about_the_inside(front, web, folder):
    web.stop()
    answer = get(f"{front.url}/?secret=1", headers={"Authorization": "Bearer secret"})
    assert answer.status_code == 503
    assert Unavailable.message in answer.text
    assert str(folder) not in answer.text + str(answer.headers)
    assert not {"Server", "Via"} & answer.headers.keys()
    assert "secret" not in front.log()


def test_a_stream_passes_word_by_word(front):
    with httpx.stream("POST", front.url + CHAT, content=b"{}", timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": open"
        for words in ("one", "two"):
            next(lines)
            say(front, words)
            assert next(lines) == f"data: {words}"
        say(front, "end")


@pytest.mark.parametrize("content", [b"{}", iter([b"{}"])], ids=["by its length", "without a length"])
def test_a_reader_who_leaves_is_told_to_the_plane_without_waiting_for_words(front, plane, content):
    with httpx.stream("POST", front.url + CHAT, content=content) as answer:
        next(answer.iter_lines())
    wait_until(lambda: "left" in plane.seen())  # none ever come


def test_pages_and_json_are_compressed_and_streams_are_not(front):
    for path in ("/page", "/api/budget/"):
        answer = get(front.url + path, headers={"Accept-Encoding": "gzip"})
        assert answer.headers["Content-Encoding"] == "gzip"
        assert "Accept-Encoding" in answer.headers["Vary"]
    with httpx.stream("POST", front.url + CHAT, content=b"{}", headers={"Accept-Encoding": "gzip"}) as answer:
        assert "Content-Encoding" not in answer.headers


FORGED = {
    "Host": "acme.localhost:8000",
    "X-Forwarded-For": "10.0.0.9",
    "X-Real-IP": "10.0.0.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "globex.localhost",
    "X-Forwarded-Ssl": "on",
    "Forwarded": "for=10.0.0.9;proto=https",
    "X_Tenant_ID": "globex",
    "SCRIPT_NAME": "/evil",
}


@pytest.mark.parametrize("path", ["/api/chat/", "/api/budget/"])
@pytest.mark.parametrize("content", [None, iter([b"{}"])], ids=["no body", "a body without a length"])
def test_what_a_client_forges_does_not_get_through(front, path, content):
    answer = request("POST" if content else "GET", front.url + path, headers=FORGED, content=content)
    headers = seen_headers(answer)
    assert headers["host"] == headers["x-forwarded-host"] == "acme.localhost:8000"
    assert (headers["x-forwarded-for"], headers["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert headers["x-real-ip"] == "127.0.0.1"
    assert not {"x-forwarded-ssl", "forwarded"} & headers.keys()
    assert not any("_" in name for name in headers)
    assert not {"Server", "Via"} & {name for name in answer.headers if answer.headers[name] != "uvicorn"}


def test_a_proxy_that_is_trusted_says_whether_it_was_https(folder, web, plane):
    trusted = {"FRONT_TRUSTED_PROXIES": "private_ranges"}
    with Front(folder, web=web.listener, plane=plane.listener, **trusted) as front:
        seen = [seen_headers(post(front.url, headers=FORGED, content=body)) for body in (b"{}", iter([b"{}"]))]
    for headers in seen:
        assert headers["x-forwarded-proto"] == "https"
        assert headers["x-forwarded-for"].startswith("10.0.0.9")


def test_the_client_is_who_the_trusted_proxy_saw_and_not_whom_it_named(folder, web, plane):
    said = {**FORGED, "X-Forwarded-For": "203.0.113.9, 198.51.100.7, 10.0.0.1"}
    with Front(folder, web=web.listener, plane=plane.listener, FRONT_TRUSTED_PROXIES="private_ranges") as front:
        for body in (b"{}", iter([b"{}"])):
            assert seen_headers(post(front.url, headers=said, content=body))["x-real-ip"] == "198.51.100.7"


def test_after_a_kill_its_socket_file_is_in_nobodys_way(folder, web, plane):
    for _ in range(2):
        with Front(folder, web=web.listener, plane=plane.listener) as front:
            assert post(front.url, content=iter([b"{}"])).json()["length"] == 2


def test_a_body_without_a_length_waits_for_the_second_way_which_may_open_after_the_first(folder, front, web):
    inner = Path(front_environment(folder, front.port, web=web.listener, plane=web.listener)["FRONT_INNER"])
    answer = answer_of_one_that_is_back_soon(inner, lambda: post(front.url, content=iter([b"{}"])))
    assert answer.json()["length"] == 2


def test_at_term_nothing_new_is_taken_and_open_streams_have_their_end(front, plane):
    with httpx.stream("POST", front.url + CHAT, content=b"{}") as answer:
        lines = answer.iter_lines()
        next(lines)
        front.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not front.listens())
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(plane.listener.path))) as client:
            client.post("http://plane/api/chat/say/", content="end")
        next(lines)
        assert next(lines) == "data: end"
    assert front.process.wait(60) == 0


def test_a_browser_finds_it_at_both_loopbacks(front):
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        assert get(f"http://[::1]:{front.port}/healthz").status_code == 200


def until_the_end(front, sent: bytes) -> bytes:
    """All that is answered before the connection is closed."""
    with front.connect() as client:
        client.sendall(sent)
        answers = b""
        # Of what was sent some is left unread.
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(65_536):
                answers += piece
    return answers


MALFORMED = {
    "longer than announced": b"2\r\n{}XX",
    "no number": b"0x2\r\n{}\r\n0\r\n\r\n",
    "a line without CR": b"2\n{}\n0\n\n",
    "a trailer that is none": b"2\r\n{}\r\n0\r\n bad\r\n",
    "a trailer that is too long": b"2\r\n{}\r\n0\r\nX-Long: " + b"t" * 5_000 + b"\r\n\r\n",
    "a size that is too long a line": b"2;" + b"x" * 5_000 + b"\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("path", ["/api/chat/", "/api/summarize/"])
def test_chunks_that_are_none_are_400_and_nothing_after_them_is_taken_for_a_request(front, web, plane, path):
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    for name, body in MALFORMED.items():
        answers = until_the_end(front, head + body + b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answers.count(b"HTTP/1.1 ") == 1, name
        assert answers.startswith(b"HTTP/1.1 400 "), name
        assert json.loads(answers.partition(b"\r\n\r\n")[2]) == UNREADABLE.body(), name
    assert web.seen() + plane.seen() == []


@pytest.mark.parametrize("path", ["/api/chat/", "/api/budget/"])
def test_what_the_front_answers_itself_is_not_asked_again_behind_it(front, path):
    headers = b"Expect: 100-continue\r\nUpgrade: websocket\r\nConnection: upgrade, close\r\nContent-Length: 2\r\n"
    answers = until_the_end(front, f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode() + headers + b"\r\n{}")
    assert answers.count(b"100 Continue") == 1
    names = {name for name, _ in json.loads(answers.split(b"\r\n\r\n")[2])["headers"]}
    assert not {"expect", "upgrade"} & names
