"""Servers that answer oddly, too soon or too much: nobody else waits for it, and nobody is given another's answer."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import threading
import time
import zlib

import pytest

from billing.engine.exchange import PIECE_BYTES, Broken
from tests.support.bare_http import MOST, OK, asked, client, floods, on_both_loops, serving
from tests.support.raw_model import RawModel

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def packed(body: bytes, how: bytes = b"gzip") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (how, len(body)) + body


# --- whose answer it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        CHUNKED + b"2;a=b\r\nok\r\n0\r\nX-Late: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        packed(gzip.compress(b"ok")),
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    ],
    ids=["chunks", "interim", "gzip", "bare line feeds"],
)
@on_both_loops
async def test_an_answer_that_comes_byte_by_byte_is_the_same_one(said):
    async def slowly(reader, writer):
        for at in range(len(said)):
            writer.write(said[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(slowly) as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [b"ok"] * 2
        assert server.connections == 1


@pytest.mark.parametrize("unasked", ["an answer", "the end"])
@on_both_loops
async def test_a_kept_connection_is_looked_at_although_the_loop_had_no_time_to_hear_what_came(unasked):
    """Its next caller would be given an answer to another's question, or be charged for what nobody worked on."""

    released, came = threading.Event(), threading.Event()

    def script(line):
        line.send(OK)
        if len(model.requests) == 1:
            released.wait(20)
            line.send(OK.replace(b"ok", b"no")) if unasked == "an answer" else line.close()
            came.set()

    with RawModel(script) as model:
        async with client() as http:
            for _ in range(2):
                answer = await http.ask("POST", model.base_url, "/", {}, b"{}")
                assert await answer.read(MOST) == b"ok"
                answer.release()
                released.set()
                assert came.wait(20)  # the loop is busy
        assert (model.connections_made, len(model.requests)) == (2, 2)


@on_both_loops
async def test_a_connection_that_answered_before_all_was_sent_is_not_used_again():
    """Its server takes the rest of the body for the next request, or never reads it."""
    async with serving(OK) as server, client() as http:

        async def early(reader, writer):
            server.connections += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            await asyncio.sleep(5)

        listening = await asyncio.start_server(early, "127.0.0.1", 0)
        base = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        for _ in range(2):
            answer = await http.ask("POST", base, "/", {}, bytes(20_000_000))
            assert (answer.status, await answer.read(MOST)) == (413, b"")
            answer.release()
        assert server.connections == 2
        assert not any(lines.idle for lines in http._lines.values())
        listening.close()


@contextlib.contextmanager
def refusing(after=0.0):
    """The URL of a server that refuses each body before it has read it, so many seconds after its head."""

    def refuse():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                connection.recv(1000)
                time.sleep(after)
                connection.sendall(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                connection.close()  # with a body unread: a reset follows

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


async def is_refused(base, *sizes):
    async with client() as http:
        for size in sizes:
            answer = await http.ask("POST", base, "/", {}, bytes(size))
            assert answer.status == 413
            answer.close()


@on_both_loops
async def test_a_refusal_is_heard_of_a_server_that_closes_before_it_has_read_the_body():
    """It costs nothing, where an answer that never came may cost all of the input."""
    with refusing() as base:
        await is_refused(base, *(100_000, 1_000_000, 8_000_000) * 10)


@on_both_loops
async def test_a_refusal_is_heard_that_comes_just_before_more_of_the_body_is_sent():
    """On a loop that is busy: the write fails before what has come is read."""

    async def busy():
        while True:
            time.sleep(0.03)  # noqa: ASYNC251  it is the point
            await asyncio.sleep(0)

    with refusing(after=0.01) as base:
        other = asyncio.create_task(busy())
        await is_refused(base, *(8_000_000,) * 5)
        other.cancel()


@on_both_loops
async def test_a_long_body_arrives_whole_and_waits_in_pieces_for_a_server_that_does_not_read():
    body = bytes(range(256)) * 40_000
    async with serving(OK) as server, client() as http:
        answer = await http.ask("POST", server.base, "/", {}, body)
        assert await answer.read(MOST) == b"ok"
        answer.release()
        assert server.requests[0].endswith(b"\r\n\r\n" + body)
        assert await asked(http, server) == b"ok"
        assert server.connections == 1

    async def never(reader, writer):
        reader._transport.pause_reading()
        await asyncio.sleep(0.4)
        writer.close()

    listening = await asyncio.start_server(never, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with client() as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await http.ask("POST", base, "/", {}, bytes(100 * PIECE_BYTES))
    listening.close()


# --- the head -------------------------------------------------------------------------------------------------------


@on_both_loops
async def test_what_follows_a_body_does_not_change_its_head():
    said = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    said += b"2\r\nok\r\n0\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\nX-Late: 1\r\n\r\n"
    async with serving(said) as server, client() as http:
        answer = await http.ask("GET", server.base, "/", {})
        assert await answer.read(MOST) == b"ok"
        assert (answer.headers["content-type"], "x-late" in answer.headers) == ("text/event-stream", False)
        answer.release()
        assert await asked(http, server) == b"ok"
        assert server.connections == 1


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 200 OK\r\n", CHUNKED + b"2\r\nok\r\n0\r\n"],
    ids=["before the body", "after it"],
)
@on_both_loops
async def test_a_flood_of_one_header_keeps_nobody_waiting(said):
    async with serving(floods(b"a:b\r\n" * 20_000, said)) as server, client() as http:
        began = time.thread_time()
        with pytest.raises(Broken, match="much that says nothing"):
            await asyncio.wait_for(asked(http, server), 60)
        assert time.thread_time() - began < 1.0  # a minute, where each was put to those before


@on_both_loops
async def test_an_apache_that_offers_another_protocol_is_answered_in_this_one():
    offers = b"\r\nUpgrade: h2,h2c\r\nConnection: Upgrade, Keep-Alive\r\n\r\n"
    async with serving(OK.replace(b"\r\n\r\n", offers)) as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [b"ok"] * 2
        assert server.connections == 1


@pytest.mark.parametrize(
    ("head", "connections"),
    [
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive", 1),
        (b"HTTP/1.0 200 OK", 2),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive, close", 2),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nConnection: close", 2),
    ],
)
@on_both_loops
async def test_a_connection_is_kept_only_where_its_server_keeps_it(head, connections):
    async with serving(head + b"\r\nContent-Length: 2\r\n\r\nok") as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [b"ok"] * 2
        assert server.connections == connections


@on_both_loops
async def test_identity_is_no_framing_and_what_cannot_be_framed_is_broken():
    identity = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nall of it"
    async with serving(identity, closes=True) as server, client() as http:
        assert await asked(http, server) == b"all of it"
    for lies in (
        b"Transfer-Encoding: gzip\r\n\r\nx",
        b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"Content-Length: +2\r\n\r\nok",
        b"Content-Length: -2\r\n\r\nok",
        b"Content-Length: 2, 2\r\n\r\nok",
        b"Content-Length: 99999999999999999999999\r\n\r\nok",
    ):
        async with serving(b"HTTP/1.1 200 OK\r\n" + lies, closes=True) as server, client() as http:
            with pytest.raises(Broken):
                await asked(http, server)


@on_both_loops
async def test_a_body_where_none_may_be_is_nobodys():
    said = b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello"
    async with serving(said) as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [b""] * 2
        assert server.connections == 2


# --- compression ----------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_compressed_stream_is_told_word_by_word():
    going_on = asyncio.Event()

    async def word_by_word(reader, writer):
        going_on.clear()
        press = zlib.compressobj(wbits=31)
        writer.write(CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"))
        for word in (b"one ", b"two ", b"three"):
            said = press.compress(word) + press.flush(zlib.Z_SYNC_FLUSH)
            writer.write(b"%x\r\n%b\r\n" % (len(said), said))
            await going_on.wait()
            going_on.clear()
        said = press.flush()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(said), said))

    async with serving(word_by_word) as server, client() as http:
        answer = await http.ask("GET", server.base, "/", {})
        words = []
        while word := await asyncio.wait_for(answer.read_some(), 20):
            words.append(word)
            going_on.set()
        assert words == [b"one ", b"two ", b"three"]
        answer.release()


@pytest.mark.parametrize("at_once", [True, False])
@on_both_loops
async def test_words_that_are_each_compressed_by_themselves_are_all_told(at_once):
    words = [gzip.compress(word) for word in (b"one ", b"two ", b"three")]

    async def each(reader, writer):
        writer.write(CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"))
        for said in (
            [b"".join(words)] if at_once else [word[at:][:9] for word in words for at in range(0, len(word), 9)]
        ):
            writer.write(b"%x\r\n%b\r\n" % (len(said), said))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with serving(each) as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [b"one two three"] * 2


@on_both_loops
async def test_what_stands_behind_a_compressed_answer_is_no_part_of_it():
    for rest in (b"garbage", bytes(512)):
        async with serving(packed(gzip.compress(b"ok") + rest)) as server, client() as http:
            assert await asked(http, server) == b"ok"


@pytest.mark.parametrize(
    "said",
    [
        packed(gzip.compress(b"words and more")[:-9]),
        packed(zlib.compress(b"words and more")[:-5], b"deflate"),
        packed(b"words and more"),
        packed(b"words and more", b"br"),
        packed(b"words and more", b"zstd"),
    ],
    ids=["cut", "cut deflate", "not compressed", "br", "zstd"],
)
@on_both_loops
async def test_half_of_a_compressed_answer_or_what_we_cannot_unpack_is_no_answer(said):
    async with serving(said) as server, client() as http:
        with pytest.raises(Broken):
            await asked(http, server)


@on_both_loops
async def test_a_word_in_its_place_that_names_no_compression_means_nothing():
    for word in (b"none", b"utf-8", b"identity", b""):
        async with serving(packed(b"ok", word)) as server, client() as http:
            assert await asked(http, server) == b"ok"


GZIP = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
FLOODS = {
    "behind its end": (GZIP + gzip.compress(b"ok"), bytes(65536)),
    "empty blocks": (GZIP + gzip.compress(b"ok")[:10], b"\0\0\0\xff\xff" * 10_000),
    "a name without an end": (GZIP + b"\x1f\x8b\x08\x08\0\0\0\0\0\0", b"n" * 65536),
    "empty answers": (GZIP, gzip.compress(b"") * 3_000),
}


@pytest.mark.parametrize("flood", FLOODS)
@on_both_loops
async def test_a_compressed_flood_that_says_nothing_is_cut(flood):
    before, again = FLOODS[flood]
    async with serving(floods(again, before)) as server, client() as http:
        began = time.thread_time()
        with pytest.raises(Broken):
            await asyncio.wait_for(asked(http, server), 60)
        assert time.thread_time() - began < 1.0


@on_both_loops
async def test_many_small_pieces_do_not_become_gigabytes_either():
    press = zlib.compressobj(9, wbits=31)
    pieces = [press.compress(bytes(8_000_000)) + press.flush(zlib.Z_SYNC_FLUSH) for _ in range(8)]
    said = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    said += b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    async with serving(said + b"0\r\n\r\n") as server, client() as http:
        with pytest.raises(Broken):
            await asked(http, server, most=10**9)


# --- what is sent ---------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_key_is_sent_as_it_is_written():
    async with serving(OK) as server, client() as http:
        answer = await http.ask("POST", server.base, "/", {"Authorization": "Bearer Schlüssel ☃"}, b"{}")
        answer.close()
    assert "\r\nAuthorization: Bearer Schlüssel ☃\r\n".encode() in server.requests[0]


@on_both_loops
async def test_what_has_no_body_says_so_where_a_body_could_be():
    async with serving(OK) as server, client() as http:
        for method in ("POST", "GET"):
            answer = await http.ask(method, server.base, "", {})
            assert await answer.read(MOST) == b"ok"
            answer.release()
    assert [b"Content-Length: 0" in request for request in server.requests] == [True, False]
    assert [request.split()[1] for request in server.requests] == [b"/", b"/"]
