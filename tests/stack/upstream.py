"""A stand-in for web or plane behind the front: `uvicorn tests.stack.upstream:app`. Says what it was asked."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

seen: list[str] = []  # paths whose body has arrived, and readers who left
steps: asyncio.Queue[str] = asyncio.Queue()  # what open streams say next


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body, path = await _body(receive), scope["path"]
    if body is None:
        return
    if path == "/seen":
        if scope["method"] == "DELETE":
            seen.clear()
        await _answer(send, json.dumps(seen).encode())
        return
    seen.append(path)
    if path == "/page":
        await _answer(send, b"<p>" + b"hello " * 1000, b"text/html; charset=utf-8")
    elif path.endswith("/stream/"):
        await _stream(receive, send)
    elif path.endswith("/say/"):
        steps.put_nowait(body.decode())
        await _answer(send, b"{}")
    elif path.endswith("/dies/"):
        os._exit(3)
    else:
        headers = [[name.decode(), value.decode()] for name, value in scope["headers"]]
        await _answer(send, json.dumps({"length": len(body), "headers": headers, "padding": " " * 600}).encode())


async def _body(receive):
    """The whole of it; None where the rest never came."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def _answer(send: Any, body: bytes, kind: bytes = b"application/json") -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(receive: Any, send: Any) -> None:
    """Events as /say/ is told them, until "end"; who leaves before is written down."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b": open\n\n", "more_body": True})
    left = asyncio.ensure_future(receive())
    while True:
        step = asyncio.ensure_future(steps.get())
        await asyncio.wait([left, step], return_when=asyncio.FIRST_COMPLETED)
        if left.done():
            step.cancel()
            seen.append("left")
            return
        await send({"type": "http.response.body", "body": f"data: {step.result()}\n\n".encode(), "more_body": True})
        if step.result() == "end":
            left.cancel()
            await send({"type": "http.response.body", "body": b""})
            return
