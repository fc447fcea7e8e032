"""Choosing a model, a system prompt and a kept prompt in a browser, with script and without."""

import io
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from chat.models import SavedPrompt
from tests.e2e.conftest import PATIENCE_MS
from tests.e2e.steps import ask, draft, shown

pytestmark = pytest.mark.browser


def drawn():
    into = io.BytesIO()
    Image.radial_gradient("L").resize((64, 40)).convert("RGB").save(into, "PNG")
    return into.getvalue()


PICTURE = {"name": "cat.png", "mimeType": "image/png", "buffer": drawn()}


@pytest.fixture
def prompt(workspace):
    with workspace.scope():
        text = "Sum this up in five sentences, for somebody in a hurry:"
        return SavedPrompt.objects.create(owner=workspace.owner, title="Sum up", text=text)


def wrong_with(page):
    found = [(one["id"], [node["target"] for node in one["nodes"]]) for one in Axe().run(page).response["violations"]]
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return [*found, *([("wide", wide)] if wide > 0 else [])]


def test_who_ticks_a_model_of_a_key_means_those_that_are_ticked(signed_in, odd, workspace):
    """It was a key that may call all of them: the button above stood at "All"."""
    signed_in.goto(odd.address(workspace.slug) + "/settings/keys/")
    signed_in.get_by_role("checkbox", name="big").check()
    expect(signed_in.get_by_role("radio", name="Only those that are ticked")).to_be_checked()


def test_a_model_and_a_prompt_are_chosen_and_the_conversation_keeps_its_model(prompt, signed_in, upstream):
    page, picker = signed_in, signed_in.get_by_label("Model", exact=True)
    assert picker.locator("option").all_inner_texts() == [
        "heron-1 · $10.00 in, $40.00 out per million tokens",
        "big · $1.00 in, $2.50 out per million tokens, reads 8,192 tokens, takes pictures",
    ]
    picker.select_option("big")
    expect(page.locator("[data-chat=price-model]")).to_have_text("$1.00 in and $2.50 out per million tokens")
    page.locator("textarea[name=prompt]").fill("a text")
    price = page.locator("[data-chat=price-message]")
    expect(price).to_contain_text("at most")
    before = price.inner_text()
    page.get_by_label("Add a file").set_input_files({"name": "a.csv", "mimeType": "text/csv", "buffer": b"1,2;" * 4000})
    expect(price).not_to_have_text(before)
    expect(page.locator("[data-file-price]")).to_have_text("$0.0161")
    picker.select_option("heron-1")
    expect(page.locator("[data-file-price]")).to_have_text("$0.1603")
    picker.select_option("big")
    page.get_by_role("button", name="Remove a.csv").click()
    expect(price).to_have_text(before)
    page.get_by_text("Prompts", exact=True).click()
    assert wrong_with(page) == []
    page.set_viewport_size({"width": 960, "height": 760})  # the least that has it beside the box
    options, send = (page.locator(part).bounding_box() for part in (".addfile", ".composer__send"))
    assert options["x"] + options["width"] <= send["x"], "nothing lies under Send"
    sheet = page.locator(".picker__sheet").bounding_box()
    assert 0 <= sheet["x"] <= 960 - sheet["width"]
    page.get_by_role("link", name="Sum up").click()
    expect(page.locator("textarea[name=prompt]")).to_have_value(f"{prompt.text}\n\na text")
    expect(page.locator("textarea[name=prompt]")).to_be_focused()
    page.locator("textarea[name=prompt]").press("Enter")
    shown(page, "10 in / 4 out").wait_for()
    assert upstream.calls[-1]["model"] == "big"
    page.reload()
    expect(picker).to_have_value("big")
    page.get_by_role("link", name="Settings of this conversation").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("3")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_label("Temperature")).to_be_focused()
    assert wrong_with(page) == []
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_role("button", name="Save").click()
    page.wait_for_url(re.compile(r"/c/\d+/$"))
    ask(page, "and?")
    page.locator(".turn--assistant").nth(1).get_by_text("in / 4 out").wait_for()
    last = upstream.calls[-1]
    assert (last["model"], last["temperature"]) == ("big", 0.5)
    assert last["messages"][0] == {"role": "system", "content": "Be brief."}


def test_a_picture_is_taken_where_the_model_takes_them_and_seen_in_its_turn(signed_in, upstream):
    page = signed_in
    page.get_by_label("Add a file").set_input_files(PICTURE)
    refused = page.get_by_role("alert").filter(has_text="cat.png: Pictures cannot be sent to heron-1. Choose big")
    refused.wait_for()
    page.get_by_label("Model", exact=True).select_option("big")
    page.get_by_label("Add a file").set_input_files(PICTURE)
    expect(page.locator(".files .file")).to_contain_text("PNG picture · at most 7")
    assert wrong_with(page) == []
    ask(page, "What is it?")
    shown(page, "10 in / 4 out").wait_for()
    words, image = upstream.calls[-1]["messages"][0]["content"]
    assert words["text"].endswith("What is it?")
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    page.reload()
    seen = page.locator(".turn--user").get_by_role("img", name="cat.png")
    expect(seen).to_be_visible()
    assert seen.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    assert wrong_with(page) == []


def test_on_a_phone_without_script_a_prompt_is_a_link_and_the_model_is_posted(
    browser, odd, signed_in, workspace, upstream, prompt
):
    state = signed_in.context.storage_state()
    context = browser.new_context(
        java_script_enabled=False, viewport={"width": 360, "height": 740}, storage_state=state, color_scheme="dark"
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(odd.address(workspace.slug) + "/")
    page.get_by_role("button", name="Options").click()
    page.get_by_text("Prompts", exact=True).click()
    page.get_by_role("link", name="Sum up").click()
    page.wait_for_url(re.compile("prompt_id="))
    assert draft(page) == prompt.text
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Model", exact=True).select_option("big")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Send").click()
    shown(page, "10 in / 4 out").wait_for()
    assert upstream.calls[-1]["model"] == "big"
    context.close()


def test_the_pages_of_prompts_and_of_the_chat_can_be_read_by_everybody(signed_in, odd, workspace, prompt):
    with workspace.scope():
        SavedPrompt.objects.filter(pk=prompt.pk).update(title="W" * 80)
    for scheme, width in (("light", 360), ("dark", 1280)):
        signed_in.set_viewport_size({"width": width, "height": 800})
        signed_in.emulate_media(color_scheme=scheme)
        for path in ("/prompts/", f"/prompts/{prompt.pk}/", "/settings/workspace/chat/", "/shared/"):
            signed_in.goto(odd.address(workspace.slug) + path)
            assert wrong_with(signed_in) == [], (path, scheme)
