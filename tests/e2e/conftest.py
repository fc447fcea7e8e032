"""A real browser on the real parts: front, web, plane, Postgres, authority, and the embedded model if there is one."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Self

import httpx
import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher

from config.env import state_dir
from config.stack.front import Listener
from tests.support.cast import PASSWORD
from tests.support.front import Front
from tests.support.jobs import JobsProcess, until
from tests.support.plane import PlaneProcess
from tests.support.ports import free_port
from tests.support.web import ROOT, WebProcess

# A small model on a machine that does other things as well.
PATIENCE_MS = 90_000
SCREENSHOTS = Path(__file__).parent / "screenshots"
# The first is the same engine without a browser's own pages around it, and takes half of the time.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
# Root may not use Chromium's sandbox; the rest keeps it from calling home on a closed network.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@functools.cache
def hash_of_password() -> str:
    """As the stack's own settings have it: the tests' faster hash would mean nothing there."""
    return PBKDF2PasswordHasher().encode(PASSWORD, "salt")


@pytest.fixture(scope="package")
def browser():
    if CHROMIUM is None:
        pytest.skip("There is no Chromium on this machine: install Debian's package chromium to run the browser tests.")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)  # a page's own does not count for it, and it would be 5 s
    # Playwright keeps a loop on this thread; Django would take that for async code and refuse the ORM.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()
    os.environ.pop("DJANGO_ALLOW_ASYNC_UNSAFE")


@pytest.fixture(scope="package")
def model():
    """The embedded model in a process of its own."""
    folder = state_dir() / "model"
    if not any(folder.rglob("*.gguf")):
        pytest.skip("The embedded model is not installed: run `make model`.")
    port = free_port()
    command = [sys.executable, "-m", "chat.local_model", "--port", str(port), "--model-dir", str(folder)]
    # Other workers and the browser keep the cores busy, and two threads that wait for each other spin meanwhile.
    command += ["--threads", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=1).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer in 180 s")


class Stack:
    """The front with web, plane and jobs behind it, as `make run` has them, on one model."""

    running: ClassVar[list[Stack]] = []

    def __init__(self, folder: Path, *, database_url: str, authority, **model: str) -> None:
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        parts = {"database_url": database_url, "authority": authority, "SITE_URL": self.url, **model}
        self.web = WebProcess(**parts)
        self.plane = PlaneProcess(**parts)
        self.jobs = JobsProcess(**parts)
        self.front = Front(
            folder,
            web=Listener(port=self.web.port),
            plane=Listener(port=self.plane.port),
            FRONT_ADDRESS=f"http://:{self.port}",
        )
        self.front.port = self.port

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for part in (self.web, self.plane, self.jobs, self.front):
                stack.enter_context(part)
            self._parts = stack.pop_all()
        Stack.running.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        Stack.running.remove(self)
        self._parts.close()

    def address(self, slug: str | None = None) -> str:
        """As a browser types it."""
        return self.url if slug is None else f"http://{slug}.localhost:{self.port}"

    def mailed(self, slug: str | None, path: str) -> str:
        """The newest link to `path` on that workspace's host, or on the bare one, that was mailed.

        By whatever stack's jobs process: they share the queue, and each writes links to its own port.
        """
        host = re.escape(self.address(slug).rpartition(":")[0])

        def links() -> list[str]:
            return [link for one in Stack.running for link in re.findall(rf"{host}:\d+(/{path}/\S+)", one.jobs.output)]

        until(links, said=lambda: self.jobs.output)
        return self.address(slug) + links()[-1]

    def client(self, workspace, key: str) -> httpx.Client:
        """A program of `workspace` on the bare host."""
        headers = {"X-Tenant-ID": workspace.slug, "Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)


@pytest.fixture(scope="package")
def web(app, database_url, authority, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack")
    with Stack(folder, database_url=database_url, authority=authority, MODEL_PORT=str(model)) as stack:
        yield stack


@pytest.fixture
def page(browser):
    """A new person's browser. A script error on any page fails the test, and so does what its policy forbids."""
    # Colours on their way from one to the other have a contrast that nobody chose.
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    context.on("console", lambda said: errors.append(said.text) if "Security Policy" in said.text else None)
    yield page
    context.close()
    assert errors == []


@pytest.fixture
def picture():
    """`picture(page, "chat")`: kept for the README when UPDATE_SCREENSHOTS is set."""

    def take(page, name: str) -> None:
        if os.environ.get("UPDATE_SCREENSHOTS"):
            SCREENSHOTS.mkdir(exist_ok=True)
            page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    return take
