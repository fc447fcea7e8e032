"""A made-up model for benchmarks: OpenAI-compatible, quick, in a process of its own; and TCP proxies that count.

Owns what it answers and what it counted of its callers. Must know nothing of the product, and must stay cheap: it
shares the machine with what is measured. It ends when its standard input does.

    python -m tests.bench.model --count 7878 --count 7979    prints {"port": …, "counted": [ports of the proxies]}
    POST /control {"chunks": 20, "delay": 0.0}               how the next answers are written; counts begin at zero
    POST /go_on                                              those that wait say their last word
    GET /counts                                              {"calls": …, "cost": …, "requests": […], …}
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import uvicorn

NAME = "bench-model"
INPUT_PRICE, OUTPUT_PRICE = 1_000, 4_000  # microcents a token: whole, so that no call's cost is rounded
PRICES = json.dumps({NAME: {"input": 10, "output": 40}})
REQUEST_LINE = re.compile(rb"(?:GET|POST|PUT|PATCH|DELETE) (/[^ ?]*)[^ ]* HTTP/1\.1\r\n")
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass
class Behaviour:
    chunks: int = 4  # of an answer, a token each
    delay_first: float = 0.0  # seconds before the first
    delay: float = 0.0  # seconds between two
    waits: bool = False  # before the last word of a stream, until it is told to go on


@dataclass
class Counts:
    """What callers got since the last /control. `cost` counts finished answers alone, in microcents."""

    calls: int = 0
    finished: int = 0
    left: int = 0  # callers who were gone before the end
    tokens_input: int = 0
    tokens_output: int = 0
    cost: int = 0
    requests: list[str] = field(default_factory=list)  # that went through the proxies

    def finish(self, tokens_input: int, tokens_output: int) -> None:
        self.finished += 1
        self.tokens_input += tokens_input
        self.tokens_output += tokens_output
        self.cost += tokens_input * INPUT_PRICE + tokens_output * OUTPUT_PRICE


behaviour, counts = Behaviour(), Counts()
goes_on = asyncio.Event()


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    path = scope["path"]
    if path == "/v1/chat/completions":
        await complete(json.loads(body), receive, send)
    elif path == "/control":
        control(json.loads(body))
        await answer(send, {})
    elif path == "/go_on":
        goes_on.set()
        await answer(send, {})
    elif path == "/counts":
        await answer(send, asdict(counts))
    else:
        await answer(send, {"error": {"message": "no such path"}}, status=404)


def control(wanted: dict[str, Any]) -> None:
    global behaviour, counts
    behaviour, counts = Behaviour(**wanted), Counts()
    goes_on.clear()


async def complete(asked: dict[str, Any], receive: Any, send: Send) -> None:
    mine, book = behaviour, counts  # of the moment it began
    book.calls += 1
    tokens_input = 8 + sum(len(message["content"]) for message in asked["messages"]) // 4
    most = asked.get("max_completion_tokens") or asked.get("max_tokens") or mine.chunks
    tokens_output = min(mine.chunks, most)
    usage = {
        "prompt_tokens": tokens_input,
        "completion_tokens": tokens_output,
        "total_tokens": tokens_input + tokens_output,
    }
    reason = "stop" if tokens_output == mine.chunks else "length"
    if not asked.get("stream"):
        book.finish(tokens_input, tokens_output)
        message = {"role": "assistant", "content": " word" * tokens_output}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        await answer(send, {"id": "c", "object": "chat.completion", "model": NAME, "choices": [choice], "usage": usage})
        return
    gone = asyncio.ensure_future(_gone(receive)) if mine.delay or mine.delay_first or mine.waits else None
    try:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(tokens_output):
            if pause := mine.delay if number else mine.delay_first:
                await asyncio.sleep(pause)
            if mine.waits and number == tokens_output - 1 and gone is not None:
                waiting = asyncio.ensure_future(goes_on.wait())
                await asyncio.wait([gone, waiting], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            if gone is not None and gone.done():
                book.left += 1
                return
            await write(send, WORD)
        await write(send, WHY[reason])
        await write(send, frame({"choices": [], "usage": usage}))
        book.finish(tokens_input, tokens_output)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
    finally:
        if gone is not None:
            gone.cancel()


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def frame(content: dict[str, Any]) -> bytes:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": NAME}
    return b"data: " + json.dumps(head | content).encode() + b"\n\n"


WORD = frame({"choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]})
WHY = {
    reason: frame({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}) for reason in ("stop", "length")
}


async def write(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def answer(send: Send, content: Any, status: int = 200) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


# Counting what passes between two processes


async def proxy(target: int) -> int:
    """Hand on what comes at a new port, and note each request's method and path. The port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            hand_on(reader, back_writer, note=True), hand_on(back_reader, writer, note=False), return_exceptions=True
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    _proxies.append(server)
    return int(server.sockets[0].getsockname()[1])


_proxies: list[asyncio.Server] = []  # kept from the garbage collector


async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, note: bool) -> None:
    try:
        while data := await reader.read(65_536):
            if note:
                counts.requests += [
                    f"{found.group(0).split(b' ')[0].decode()} {shape(found.group(1).decode())}"
                    for found in REQUEST_LINE.finditer(data)
                ]
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


def shape(path: str) -> str:
    """A path without the ids in it, so that equal requests are counted together."""
    return "/".join("…" if len(part) > 30 or part.isdigit() else part for part in path.split("/"))


async def serve(targets: list[int]) -> None:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", 0))
    # Before the port is told, for a caller may be quicker than the server. 4,096: streams that begin at one moment.
    listening.listen(4096)
    ports = [await proxy(target) for target in targets]
    config = uvicorn.Config(
        app, lifespan="off", log_level="warning", timeout_keep_alive=120, backlog=4096, access_log=False
    )
    server = uvicorn.Server(config)
    print(json.dumps({"port": listening.getsockname()[1], "counted": ports}), flush=True)
    threading.Thread(target=_end_with_stdin, args=(server,), daemon=True).start()
    await server.serve(sockets=[listening])


def _end_with_stdin(server: uvicorn.Server) -> None:
    sys.stdin.read()
    server.should_exit = server.force_exit = True


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, action="append", default=[], help="a port to put a counting proxy before")
    uvloop.run(serve(parser.parse_args().count))


if __name__ == "__main__":
    main()
