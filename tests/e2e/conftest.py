"""A real browser on the real parts: front, plane, web, authority, and the embedded model where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from config.env import state_dir
from tests.support.authority import free_port
from tests.support.web import ROOT
from tests.support.whole import Whole

SCREENSHOTS = Path(__file__).parent / "screenshots"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Root may not use Chromium's sandbox; the rest keeps it from calling home on a closed network.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """Of one module: while Playwright is there, its loop runs on this thread, and nothing else can be bought on it."""
    if CHROMIUM is None:
        pytest.skip("There is no Chromium on this machine: install Debian's package chromium to run the browser tests.")
    from playwright.sync_api import sync_playwright

    # Playwright keeps a loop on this thread; Django would take that for async code and refuse the ORM.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()
    os.environ.pop("DJANGO_ALLOW_ASYNC_UNSAFE")


@pytest.fixture(scope="module")
def model():
    """The embedded model in a process of its own."""
    folder = state_dir() / "model"
    if not any(folder.rglob("*.gguf")):
        pytest.skip("The embedded model is not installed: run `make model`.")
    port = free_port()
    command = [sys.executable, "-m", "chat.local_model", "--port", str(port), "--model-dir", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=1).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer in 60 s")


@pytest.fixture(scope="module")
def web(app, database_url, authority, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    with Whole(folder, database_url=database_url, authority=authority, MODEL_PORT=str(model)) as site:
        yield site


@pytest.fixture
def page(browser):
    """A new person's browser. A script error on any page fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    # A small model on a machine that does other things as well.
    page.set_default_timeout(90_000)
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
