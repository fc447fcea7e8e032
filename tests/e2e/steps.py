"""What several browser tests do on the chat page, and where they look."""


def ask(page, words, max_tokens=None):
    page.locator("textarea[name=prompt]").fill(words)
    page.locator("input[name=max_tokens]").fill(str(max_tokens or ""))
    page.locator("textarea[name=prompt]").press("Enter")


def draft(page):
    return page.locator("textarea[name=prompt]").input_value()


def shown(page, text):
    """In the conversation itself; the same is told to screen readers elsewhere."""
    return page.locator(".turn").get_by_text(text).first


def last(page, what):
    return page.locator(f".turn--assistant .turn__{what}").last
