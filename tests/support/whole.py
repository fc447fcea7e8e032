"""Front, plane and web together on one port, as people and programs meet them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from config.stack.front import Listener
from tests.support.front import Front
from tests.support.plane import PlaneProcess
from tests.support.web import Served, WebProcess


class Whole(Served):
    """`with Whole(folder, database_url=…, authority=…) as site:` serves until the block ends."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.web, self.plane = WebProcess(**options), PlaneProcess(**options)
        self.front = Front(folder, web=Listener(port=self.web.port), plane=Listener(port=self.plane.port))
        self.port = self.front.port
        for process in (self.web, self.plane):
            process.env["SITE_URL"] = self.url

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for part in (self.web, self.plane, self.front):
                stack.enter_context(part)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
