"""What the person at the terminal reads when everything is up."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

from config.env import envstr, envurl

DELETED = "    the demo workspace was deleted; to get it back: .venv/bin/python manage.py reopen_workspace demo"


def banner(state: Path, port: int, seconds: float, *, chat_port: int) -> str:
    """`chat_port` is where a chat is asked for: the front's, or the plane's own where there is none."""
    demo = json.loads((state / "demo.json").read_text())
    site = envurl("SITE_URL", f"http://{envstr('BASE_DOMAIN', 'localhost')}:{port}")
    parts = urlsplit(site)
    chat = site if chat_port == port else f"{parts.scheme}://{parts.hostname}:{chat_port}"
    address = f"{parts.scheme}://{demo['slug']}.{parts.netloc}"
    return f"""
  Ready after {seconds:.0f} s.

    {site:<34} sign up, or read on
{_demo(demo, address, chat) if demo["slug"] else DELETED}

  Ctrl-C stops everything; `make test` runs the tests. Logs are in {state / "logs"}.
"""


def _demo(demo: dict[str, str], address: str, chat: str) -> str:
    asking = '{"prompt": "Say hello in five words.", "stream": true}'
    return f"""    {address:<34} the demo workspace
    log in as  {demo["email"]}  with  {demo["password"]}

  A streamed, paid answer:

    curl -N {chat}/api/chat/ -H 'X-Tenant-ID: {demo["slug"]}' \
-H 'Authorization: Bearer {demo["api_key"]}' -H 'Content-Type: application/json' -d '{asking}'"""
