"""One spelling before "same", "blank" and "hash": the rules alone. What the doors make of them: test_one_spelling."""

import sys
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenants.spelling import (
    email_forms,
    is_blank,
    normal_email,
    normal_name,
    normal_password,
    password_forms,
)

# Characters that a spelling may go wrong on, mixed with plain ones.
odd = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aé@.-\u0301\u200d\u00ad İßſ＠。ﬁ\u3164"))
)


@settings(max_examples=300, deadline=None)
@given(odd)
def test_what_is_normal_stays_as_it_is(text):
    for normal in (normal_name, normal_password, normal_email):
        once = normal(text)
        assert normal(once) == once


@settings(max_examples=200, deadline=None)
@given(odd)
def test_composed_and_decomposed_are_the_same(text):
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    for normal in (normal_name, normal_password, normal_email):
        assert normal(composed) == normal(decomposed)


@pytest.mark.parametrize(
    "spellings",
    [
        ["alice@example.com", " Alice@EXAMPLE.com ", "a\u200blice@exam\u00adple.com", "\ufeffalice@example.com\n",
         "ａlice＠ｅxample.com", "alice@example。com", "\u202aalice@example.com\u202c"],
        ["bob@xn--mller-kva.de", "bob@müller.de", "bob@mu\u0308ller.de", "BOB@MÜLLER.DE", "bob@XN--MLLER-KVA.de"],
        ["a@xn--strae-oqa.de", "a@straße.de", "a@STRAẞE.de"],
        ["a@strasse.de"],
        ["a@xn--n3h.net", "a@☃.net"],
        ["a@xn--r8jz45g.jp", "a@例え。jp"],
        ["a@xn--mgba3gch31f060k.com", "a@نامه\u200cای.com", "a@نامه\u200cای\u200b.com"],
        ["a@xn--mgba3gch31f.com", "a@نامهای.com"],
        ["alice@example.com", "a\u200clice@exam\u200dple.com"],
    ],
)  # fmt: skip
def test_an_address_has_one_spelling(spellings):
    assert {normal_email(text) for text in spellings} == {spellings[0]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # Two domains that were one by older rules.
        ("a@straße.de", "a@strasse.de"), ("a@نامه\u200cای.com", "a@نامهای.com"), ("a@σς.gr", "a@σσ.gr"),
        # Two mailboxes, and a slip of the finger that is none.
        ('"a b"@example.com', '"ab"@example.com'), ("john smith@example.com", "johnsmith@example.com"),
        ("a@exam ple.com", "a@example.com"), ("a\u00a0b@example.com", "ab@example.com"),
        ("a+b@example.com", "ab@example.com"), ("a.b@example.com", "ab@example.com"),
        # Letters that look alike.
        ("a@\u0430pple.com", "a@apple.com"), ("\u0430@example.com", "a@example.com"),
        ("adm\u0131n@example.com", "admin@example.com"), ("a@\u0131.com", "a@i.com"),
    ],
)  # fmt: skip
def test_two_addresses_are_two(one, other):
    assert normal_email(one) != normal_email(other)
    assert not set(email_forms(one)) & set(email_forms(other))


@pytest.mark.parametrize("text", ["", "@", "a@", "@b", "a@b@c", "a", "a@..ü", "a@" + "ü" * 80, "a@-ü.de", "\u0301@ü"])
def test_what_is_no_address_is_read_without_failing(text):
    assert isinstance(normal_email(text), str)
    assert normal_email(text) in email_forms(text)


def test_an_address_is_found_as_it_was_stored_before():
    for stored in ("bob@müller.de", "bob@mu\u0308ller.de", "bob@xn--mller-kva.de"):
        for typed in ("bob@müller.de", "bob@mu\u0308ller.de", "Bob@XN--mller-kva.de"):
            assert stored in email_forms(typed)
    assert email_forms("Alice@Example.com") == ["alice@example.com"]


def test_a_password_counts_as_it_was_typed_but_for_how_its_letters_are_made():
    assert normal_password("cafe\u0301 \u00a0X") == normal_password("café  X") == "café  X"
    assert len({normal_password(text) for text in ("pass", "Pass", "pass ", "ｐass", "pa\u200bss")}) == 5
    assert password_forms("plain ascii") == ["plain ascii"]
    assert set(password_forms("café")) == set(password_forms("cafe\u0301")) == {"café", "cafe\u0301"}


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        ("  Acme \t Inc\n", "Acme Inc"), ("A\u200bc\u00adme", "Acme"), ("\u202eemcA", "emcA"), ("Cafe\u0301", "Café"),
        ("Acme\u3164", "Acme"), ("\u200d", ""), ("\u3164\u2800 \u115f", ""), ("👩\u200d💻 Dev", "👩\u200d💻 Dev"),
        ("نمی\u200cخواهم", "نمی\u200cخواهم"), ("a\x00b", "ab"), ("Love ❤\ufe0f ", "Love ❤\ufe0f"),
        ("\ufe0fA\u200d ", "A"), ("A \u3164\ufe0f", "A"), ("1\ufe0f⃣", "1\ufe0f⃣"), ("葛\U000e0100", "葛\U000e0100"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001f3f4\U000e0067\U000e0062\U000e007f"),
    ],
)  # fmt: skip
def test_a_name_is_one_line_without_clutter(typed, normal):
    assert normal_name(typed) == normal


def test_everything_that_shows_nothing_is_blank():
    shows_nothing = [
        chr(point)
        for point in range(sys.maxunicode + 1)
        if unicodedata.category(chr(point)) in ("Zs", "Zl", "Zp", "Cc", "Cf")
        # Format characters that are drawn: signs that enclose or precede a number.
        and not unicodedata.name(chr(point), "").startswith(("ARABIC", "SYRIAC", "KAITHI"))
    ]
    # Letters and signs that show nothing, although their class does not say so.
    shows_nothing += list(
        "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180f\u2800\u3164\uffa0\ufe00\ufe0f\U000e0100\U000e01ef"
    )
    shows_nothing += ["\u061c"]
    assert [hex(ord(char)) for char in shows_nothing if not is_blank(char)] == []
    assert is_blank("".join(shows_nothing))
    for text in ("a", ".", "\u200b.", "。", "字", "👍", "\u0301", "\u0600", "\ufffd"):
        assert not is_blank(text)


def test_no_text_takes_long():
    """Combining marks are put in order by insertion: a mebibyte of them took minutes."""
    for text in (
        "\u0301\u0316" * 500_000, "\u200b" * 1_000_000, "\u0301\u0316" * 2_000, "ü." * 2_000, "@" * 4_000,
        "\ufdfa" * 4_096, "a@" + "\ufdfa" * 500,  # eighteen letters each
    ):  # fmt: skip
        taken = []
        for _ in range(3):
            began = time.thread_time()
            for spelled in (normal_name, normal_password, normal_email, password_forms, email_forms, is_blank):
                spelled(text)
            taken.append(time.thread_time() - began)
        assert min(taken) < 0.25
