"""The engine's HTTP client against servers of bare sockets: what is sent, what is kept, and what breaks."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import pytest

from billing.engine.exchange import NOISE_BYTES, WAITING_BYTES, Broken, NotSent
from billing.engine.unpacking import UNPACKED_BYTES
from tests.support.bare_http import MOST, OK, asked, client, floods, on_both_loops, serving, until


@on_both_loops
async def test_a_request_is_written_as_http_has_it_and_its_connection_used_again():
    async with serving(OK) as server, client() as http:
        assert await asked(http, server) == b"ok"
        assert await asked(http, server, "GET", "/b?c=d%20e") == b"ok"
    host = server.base.removeprefix("http://").encode()
    assert server.requests == [
        b"POST /a HTTP/1.1\r\nHost: " + host + b"\r\nUser-Agent: tenantry\r\nX-Own: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /b?c=d%20e HTTP/1.1\r\nHost: " + host + b"\r\nUser-Agent: tenantry\r\nX-Own: 1\r\n\r\n",
    ]
    assert server.connections == 1


@on_both_loops
async def test_status_and_headers_are_told_and_repeated_headers_joined():
    said = b"HTTP/1.1 418 I am\r\nX-One: a\r\nx-one: b\r\nContent-Length: 0\r\n\r\n"
    async with serving(said) as server, client() as http:
        answer = await http.ask("GET", server.base, "/", {})
        assert (answer.status, answer.headers["x-one"], await answer.read(MOST)) == (418, "a, b", b"")
        answer.release()


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\nX-Late: 1\r\n\r\n",
            b"abc",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2  \r\nab\r\n0\r\n\r\n", b"ab"),
    ],
    ids=["chunks", "interim answers", "no body", "spaces after a chunk's size"],
)
@on_both_loops
async def test_each_framing_is_read_to_its_end_and_the_connection_kept(said, body):
    async with serving(said) as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [body, body]
        assert server.connections == 1


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n"])
@on_both_loops
async def test_a_body_without_a_length_ends_with_its_connection(head):
    async with serving(head + b"all of it", closes=True) as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [b"all of it"] * 2
        assert server.connections == 2


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n",
    ],
    ids=["short", "no last chunk", "half a head", "nothing", "no HTTP", "another protocol", "two lengths", "bad chunk"],
)
@on_both_loops
async def test_what_breaks_off_or_cannot_be_read_is_broken_and_never_sent_again(said):
    async with serving(said, closes=True) as server, client() as http:
        with pytest.raises(Broken):
            await asked(http, server)
        assert len(server.requests) == 1


@on_both_loops
async def test_what_came_before_a_break_is_read_first():
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    async with serving(said, closes=True) as server, client() as http:
        answer = await http.ask("GET", server.base, "/", {})
        await server.ended.wait()
        await asyncio.sleep(0.05)
        assert await answer.read_some() == b"half"
        with pytest.raises(Broken):
            await answer.read_some()
        answer.close()


@on_both_loops
async def test_a_read_waits_as_long_as_it_may_and_can_be_ended_before():
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    async with serving(said) as server, client() as http:
        answer, loop = await http.ask("GET", server.base, "/", {}), asyncio.get_running_loop()
        # What is there is read, however late it is.
        await asyncio.sleep(0.05)
        assert await answer.read_some(loop.time() - 1.0) == b"half"
        with pytest.raises(TimeoutError):
            await answer.read_some(loop.time() + 0.01)
        loop.call_later(0.01, answer.wait_no_longer)
        with pytest.raises(TimeoutError):
            await answer.read_some(loop.time() + 60.0)
        answer.close()


@on_both_loops
async def test_an_answer_that_nobody_asked_for_is_given_to_nobody():
    late = OK.replace(b"ok", b"no")

    async def twice(reader, writer):
        writer.write(OK + late)

    async def later(reader, writer):
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(late)

    for unasked in (twice, later):
        async with serving(unasked, OK) as server, client() as http:
            assert await asked(http, server) == b"ok"
            await asyncio.wait_for(server.ended.wait(), 20)
            assert await asked(http, server) == b"ok"
            assert server.connections == 2, unasked


async def one_late(reader, writer):
    """A server, or a proxy before it, that is one answer behind: the next request is answered with the last one's."""
    writer.write(OK)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(OK.replace(b"ok", b"no"))


@on_both_loops
async def test_an_answer_that_comes_late_meets_nobody_elses_request():
    """Nothing tells it from the right one once the next request is sent, so that nobody else's is sent there."""
    async with serving(one_late, OK, OK) as server, client() as http:
        assert [await asked(http, server, whose=whose) for whose in ("acme", "globex", "globex")] == [b"ok"] * 3
        assert server.connections == 2


@on_both_loops
async def test_a_connection_that_its_server_closed_is_not_used_again():
    async with serving(OK, closes=True) as server, client() as http:
        assert await asked(http, server) == b"ok"
        await asyncio.sleep(0.05)
        assert await asked(http, server) == b"ok"
        assert server.connections == 2


@on_both_loops
async def test_what_only_reads_is_asked_again_where_a_kept_connection_dies_and_what_buys_is_not():
    async def dies(reader, writer):
        writer.transport.abort()

    async with serving(OK, dies, OK) as server, client() as http:
        await asked(http, server, "GET")
        assert await asked(http, server, "GET") == b"ok"
        assert len(server.requests) == 3
    async with serving(OK, dies, OK) as server, client() as http:
        await asked(http, server)
        with pytest.raises(Broken):
            await asked(http, server)
        assert len(server.requests) == 2
    async with serving(dies) as server, client() as http:
        with pytest.raises(Broken):
            await asked(http, server, "GET")
        assert len(server.requests) == 1  # a new connection that dies says enough


@on_both_loops
async def test_an_idle_connection_ends_after_its_time():
    async with serving(OK) as server, client(keep_seconds=0.1) as http:
        await asked(http, server)
        await asyncio.wait_for(server.ended.wait(), 20)
        await asked(http, server)
        assert server.connections == 2


@on_both_loops
async def test_connection_close_is_heard():
    async with serving(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [b"ok"] * 2
        assert server.connections == 2


@on_both_loops
async def test_who_is_cancelled_leaves_no_connection_behind():
    heard = asyncio.Event()

    async def never(reader, writer):
        heard.set()
        await reader.read()

    async with serving(never) as server, client() as http:
        task = asyncio.create_task(http.ask("POST", server.base, "/", {}, b"{}"))
        await asyncio.wait_for(heard.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.ended.wait(), 20)


@on_both_loops
async def test_nobody_there_is_not_sent():
    async with serving(OK) as server:
        pass
    async with client() as http:
        for base in (
            server.base,
            "http://nobody.invalid",
            "ftp://x",
            "http://",
            "http://[::1",
            "http://x:99999",
            "http://ü" * 70,
        ):
            with pytest.raises(NotSent):
                await http.ask("POST", base, "/", {}, b"{}")


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "a\rb", "a\0b", "half a letter \ud83d"])
@on_both_loops
async def test_a_value_cannot_become_another_header(value):
    async with serving(OK) as server, client() as http:
        with pytest.raises(NotSent):
            await http.ask("POST", server.base, "/", {"X-Key": value}, b"{}")
        with pytest.raises(NotSent):
            await http.ask("POST", server.base, "/", {value: "x"}, b"{}")
        assert server.connections == 0


@on_both_loops
async def test_a_path_cannot_become_another_request():
    async with serving(OK) as server, client() as http:
        await asked(http, server, path="/a b\r\nX: ☃/commit")
    assert server.requests[0].startswith(b"POST /a%20b%0D%0AX:%20%E2%98%83/commit HTTP/1.1\r\n")


@on_both_loops
async def test_much_that_says_nothing_ends_it():
    interim = floods(b"HTTP/1.1 100 Continue\r\n\r\n" * 4096)
    extensions = floods(b"y" * 65536, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=")
    head = floods(b"X-More: and more\r\n" * 1000, b"HTTP/1.1 200 OK\r\n")
    for noise in (interim, extensions, head):
        async with serving(noise) as server, client() as http:
            with pytest.raises(Broken):
                await asyncio.wait_for(asked(http, server), 60)
    assert NOISE_BYTES < 4 * MOST


@pytest.mark.parametrize(
    ("how", "packed"),
    [
        ("gzip", gzip.compress(b"words")),
        ("deflate", zlib.compress(b"words")),
        ("deflate", zlib.compress(b"words")[2:-4]),
    ],
    ids=["gzip", "deflate", "deflate without its head"],
)
@on_both_loops
async def test_what_is_compressed_all_the_same_is_unpacked(how, packed):
    said = f"HTTP/1.1 200 OK\r\nContent-Encoding: {how}\r\nContent-Length: {len(packed)}\r\n\r\n".encode() + packed
    async with serving(said) as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [b"words"] * 2


@on_both_loops
async def test_a_few_bytes_do_not_become_gigabytes():
    packed = gzip.compress(bytes(UNPACKED_BYTES * 4))
    said = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode() + packed
    async with serving(said) as server, client() as http:
        with pytest.raises(Broken):
            await asked(http, server, most=10**9)


@on_both_loops
async def test_more_than_was_wanted_is_not_taken_into_memory():
    async with serving(floods(bytes(65536), b"HTTP/1.1 200 OK\r\n\r\n")) as server, client() as http:
        with pytest.raises(Broken):
            await asyncio.wait_for(asked(http, server), 60)
        # Nor is what nobody reads: its server has to wait.
        answer = await http.ask("GET", server.base, "/", {})
        await until(lambda: answer._connection._is_paused)
        await asyncio.sleep(0.3)
        assert WAITING_BYTES < len(await answer.read_some()) < 4 * WAITING_BYTES
        assert await asyncio.wait_for(answer.read_some(), 20)
        answer.close()


@on_both_loops
async def test_a_long_answer_comes_whole_however_slowly_it_is_read():
    body = bytes(range(256)) * 16_384

    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body) as server, client() as http:
        answer = await http.ask("GET", server.base, "/", {})
        got = b""
        while part := await answer.read_some():
            got += part
            await asyncio.sleep(0.01)
        answer.release()
        assert got == body
        assert await asked(http, server, most=len(body)) == body
        assert server.connections == 1


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"], ids=["head", "body"])
@on_both_loops
async def test_an_answer_that_drips_ends_with_its_time_and_closes_its_connection(head):
    ended = asyncio.Event()

    async def drip(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        while not writer.transport.is_closing():
            writer.write(b"a" if head else b"\r\n")  # an empty line before a status line is no answer yet
            await asyncio.sleep(0.01)
        ended.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with server, client() as http:
        with pytest.raises(TimeoutError):
            answer = await http.ask("GET", base, "/", {}, until=began + 0.3)
            try:
                await answer.read(MOST, began + 0.3)
            finally:
                answer.close()
        assert 0.25 < loop.time() - began < 20
        async with asyncio.timeout(20):
            await ended.wait()
