"""The main job in a real browser: sign up, ask, see what it cost, run out, top up, go on."""

import re
import signal
import uuid

import httpx
import pytest
from django.core.management import call_command
from playwright.sync_api import expect

from billing.models import Account
from tests.e2e.conftest import PATIENCE_MS
from tests.support.cast import PASSWORD, Workspace
from tests.support.jobs import until

pytestmark = pytest.mark.browser
# The page says how an answer ended before its line is written.
SETTLED_SECONDS = 60.0


def sign_up(page, web, slug):
    page.goto(web.address() + "/signup/")
    page.get_by_label("Workspace name").fill("Acme Robotics")
    page.get_by_label("Address").fill(slug)
    page.get_by_label("E-mail").fill("alice@acme.example")
    page.get_by_label("Password").fill(PASSWORD)


def settled(page):
    """What stands under answers that are over."""
    return page.locator(".turn__facts", has_text=" out · ")


def ask(page, words):
    before = settled(page).count()
    page.locator("textarea[name=prompt]").fill(words)
    page.locator("input[name=max_tokens]").fill("60")
    page.get_by_role("button", name="Send").click()
    return settled(page).nth(before)


def test_the_walk_from_sign_up_to_a_paid_answer_and_past_an_empty_budget(page, web, picture):
    slug = "acme-robotics"
    sign_up(page, web, slug)
    picture(page, "sign-up")
    page.get_by_role("button", name=re.compile("create|sign up", re.IGNORECASE)).click()
    page.wait_for_url(web.address(slug) + "/")
    workspace = Workspace(Account.objects.select_related("tenant").get(tenant__slug=slug))

    # An answer streams in; its cost and its model stand under it.
    facts = ask(page, "Name three things a small robot can do.")
    facts.wait_for()
    assert re.search(r"\$0\.\d+ · \d+ in / \d+ out · smollm2", facts.inner_text())
    lines = workspace.settled(lines=1, seconds=SETTLED_SECONDS)
    assert workspace.ledger()["spent"] == sum(line.cost for line in lines) > 0

    # A reload shows the conversation, and says the same of its answer.
    said = facts.inner_text()
    assert re.search(r"/c/\d+/$", page.url)
    answer = page.locator(".turn__text").nth(1).inner_text()
    page.reload()
    assert facts.inner_text() == said
    assert page.locator(".turn__text").nth(0).inner_text() == "Name three things a small robot can do."
    assert page.locator(".turn__text").nth(1).inner_text().split() == answer.split()

    # A key made on the page opens the API on the bare host.
    page.goto(web.address(slug) + "/settings/keys/")
    page.get_by_label("Name").fill("Server")
    page.get_by_role("button", name="Make key").dblclick()
    page.get_by_role("heading", name="Copy your new key now").wait_for()
    assert page.locator(".rows .row").count() == 1, "a double click makes one key"
    secret = re.search(r"tk_[0-9a-f]{12}_\w{8}_[A-Za-z0-9_-]{43}", page.content()).group(0)
    with web.client(workspace, secret) as program:
        assert program.post("/api/chat/", json={"prompt": "hi", "max_tokens": 4}).status_code == 200
        assert program.post("/api/summarize/", json={"text": "Robots help.", "max_tokens": 4}).status_code == 200

    workspace.settled(lines=3, seconds=SETTLED_SECONDS)
    page.goto(web.address(slug) + "/budget/")
    assert page.locator("tbody tr").count() == 3
    picture(page, "budget")

    # The page of members, with a limit and an invitation.
    workspace.member("bob@acme.example", "admin")
    workspace.member("carol@acme.example")
    page.goto(web.address(slug) + "/settings/members/")
    page.get_by_text("Set a limit of carol@acme.example…").click()
    page.get_by_label("US dollars a period").fill("0.50")
    page.keyboard.press("Enter")
    page.get_by_role("status").get_by_text("carol@acme.example may spend $0.50").wait_for()
    page.get_by_label("E-mail addresses").fill("dave@acme.example")
    page.get_by_role("button", name="Send invitations").click()
    page.get_by_role("status").get_by_text("Invited dave@acme.example.").wait_for()
    page.goto(page.url)
    picture(page, "members")

    # The budget refuses: the page says so in words and keeps the draft; the model is not called.
    workspace.leave(0)
    calls = len(workspace.lines())
    page.goto(web.address(slug) + "/")
    page.locator("textarea[name=prompt]").fill("One more question, please")
    page.locator("input[name=max_tokens]").fill("20")
    page.get_by_role("button", name="Send").click()
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "used up" in alert.inner_text()
    assert "The next period begins on" in alert.inner_text()
    assert page.locator("textarea[name=prompt]").input_value() == "One more question, please"
    assert len(workspace.lines()) == calls

    # A top-up, once for its key, and the same message goes through.
    for _ in range(2):
        call_command("top_up", slug, "0.25", "--key", "walk-1")
    assert workspace.ledger()["remaining"] == 25_000_000
    page.get_by_role("button", name="Send").click()
    settled(page).wait_for()
    assert len(workspace.settled(lines=calls + 1, seconds=SETTLED_SECONDS)) == calls + 1


def test_a_waiting_room_looks_without_loading_itself_anew(page, web):
    """Loaded every two seconds it would be read out from its top each time, and lose the focus."""
    slug = f"wait-{uuid.uuid4().hex[:8]}"
    web.jobs.process.send_signal(signal.SIGSTOP)
    try:
        page.clock.install()  # the two seconds between looks are gone forward, not waited for
        sign_up(page, web, slug)
        page.get_by_role("button", name=re.compile("create|sign up", re.IGNORECASE)).click()
        page.get_by_role("status").get_by_text("This takes a moment").wait_for()
        page.get_by_role("link", name="Look now").focus()
        with page.expect_response(lambda said: said.request.method == "HEAD") as look:
            page.clock.fast_forward(2_000)
        assert look.value.status == 202
        expect(page.get_by_role("link", name="Look now")).to_be_focused()
    finally:
        web.jobs.process.send_signal(signal.SIGCONT)
    page.clock.fast_forward(2_000)
    page.wait_for_url(web.address(slug) + "/")


def test_stopping_an_answer_pays_for_what_came(page, web):
    slug = f"stop-{uuid.uuid4().hex[:8]}"
    sign_up(page, web, slug)
    page.get_by_role("button", name=re.compile("create|sign up", re.IGNORECASE)).click()
    page.wait_for_url(web.address(slug) + "/")
    workspace = Workspace(Account.objects.select_related("tenant").get(tenant__slug=slug))
    page.locator("textarea[name=prompt]").fill("Write a very long story about a lighthouse.")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".turn__text").nth(1)).to_contain_text(re.compile(r"[\s\S]{40}"))
    page.get_by_role("button", name="Stop").click()
    # The page says how it ended and what that cost, in the words of the line.
    page.locator(".turn").get_by_text("not reported, estimated").wait_for()
    assert page.locator(".turn__end:not(:empty)").inner_text() == "Stopped before its end."
    (line,) = workspace.settled(lines=1, seconds=SETTLED_SECONDS)
    assert f"{line.tokens_input} in / {line.tokens_output} out" in settled(page).inner_text()
    assert line.outcome == "estimated"
    assert 0 < line.tokens_output < 512
    assert workspace.ledger()["spent"] == line.cost < line.estimate
    assert re.search(r"/c/\d+/$", page.url)


def test_without_script_all_but_streaming_works(browser, web):
    slug = f"plain-{uuid.uuid4().hex[:8]}"
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    sign_up(page, web, slug)
    page.get_by_role("button", name=re.compile("create|sign up", re.IGNORECASE)).click()
    page.get_by_role("button").first.click()  # what the script would have sent
    page.wait_for_url(web.address(slug) + "/")
    page.locator("textarea[name=prompt]").fill("Say hello.")
    page.locator("input[name=max_tokens]").fill("8")
    page.get_by_role("button", name="Send").click()
    page.wait_for_url(re.compile(r"/c/\d+/$"))
    assert page.locator(".turn__text").count() >= 2
    workspace = Workspace(Account.objects.select_related("tenant").get(tenant__slug=slug))
    workspace.settled(lines=1, seconds=SETTLED_SECONDS)
    page.get_by_role("link", name="Budget").click()
    assert page.locator("tbody tr").count() == 1
    page.get_by_role("button", name=re.compile("log out|sign out", re.IGNORECASE)).click()
    page.wait_for_url(re.compile(r"/login/$"))
    page.get_by_label("E-mail").fill("alice@acme.example")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name=re.compile("log in|sign in", re.IGNORECASE)).click()
    page.wait_for_url(web.address(slug) + "/")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_scrolls_sideways_on_a_small_screen(browser, web, acme, scheme):
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    for address in (
        web.address(),
        web.address() + "/signup/",
        web.address() + "/find/",
        web.address("acme") + "/login/",
    ):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


def test_every_page_is_reached_by_keyboard_and_nothing_comes_from_elsewhere(page, web):
    foreign = []
    page.on("request", lambda request: foreign.append(request.url) if "localhost" not in request.url else None)
    page.goto(web.address() + "/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "A"
    for path in ("/signup/", "/nothing/", "/api/docs"):
        page.goto(web.address() + path)
    # The documentation is a program of its own, and works under its policy.
    page.locator(".opblock").first.click()
    page.get_by_role("button", name="Try it out").first.click()
    page.get_by_role("button", name="Execute").first.click()
    page.locator(".live-responses-table").wait_for()
    assert foreign == []


def test_what_got_into_a_page_neither_runs_nor_sends_forms_away(browser, web, acme):
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    forbidden = []
    page.on("console", lambda said: forbidden.append(said.text) if "Security Policy" in said.text else None)
    page.goto(web.address("acme") + "/login/")
    page.evaluate("""() => {
        document.body.append(Object.assign(document.createElement("script"), {textContent: "window.ran = true"}));
        const within = `<p id="in" style="color: red" onclick="window.ran = true">x</p>`;
        document.body.insertAdjacentHTML("beforeend", within);
        document.getElementById("in").click();
    }""")
    for action in (web.address("globex") + "/welcome/", web.address() + "/signup/"):
        page.evaluate(
            """action => {
            const form = Object.assign(document.createElement("form"), {action, method: "post"});
            document.body.append(form);
            form.submit();
        }""",
            action,
        )
        page.wait_for_timeout(100)
    # The browser says each a moment later; what it would say beyond them, too.
    until(lambda: page.wait_for_timeout(100) or len(forbidden) >= 5, said=lambda: str(forbidden))
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") is None
    assert page.url == web.address("acme") + "/login/"
    assert len(forbidden) == 5, forbidden
    context.close()


def test_the_stack_answers_its_health_through_the_front(web):
    assert httpx.get(f"{web.url}/healthz", timeout=60).status_code == 200
    ready = httpx.get(f"{web.url}/readyz", timeout=60)
    assert (ready.status_code, ready.json()["not_ready"]) == (200, [])
