"""One spelling of what people type, before anything is compared, called blank, or hashed. Pure: text in, text out.

The same word reaches us in several spellings: composed and decomposed letters, an address in Unicode or as punycode,
characters that nobody sees. Normalising takes quadratic time on combining marks, so a text that is far too long to be
used is left as it is, for its field to refuse.
"""

from __future__ import annotations

import re
import unicodedata

import idna

# Whitespace, controls, format characters, and letters and signs that show nothing. Those of the Cf class that do show
# something (Arabic number signs and their kind) are not among them.
_INVISIBLE = (
    "\x00-\x20\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f\u205f-\u206f"
    "\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d159"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_ANY_INVISIBLE = re.compile(f"[{_INVISIBLE}]")
_VISIBLE = re.compile(f"[^{_INVISIBLE}]")
# What has no business in a name. Joiners and variation selectors have: scripts and emoji need them.
_CLUTTER = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_DOMAIN = re.compile("[a-z0-9.-]+")
LONGEST = 4_096


def is_blank(text: str) -> bool:
    """Whether there is nothing in it to see: zero-width characters are not a name, a prompt or a password."""
    return _VISIBLE.search(text) is None


def normal_name(text: str) -> str:
    """A name on one line, composed, with single spaces. Empty where nothing of it can be seen."""
    if len(text) > LONGEST:
        return text
    line = " ".join(unicodedata.normalize("NFC", _CLUTTER.sub("", text)).split())
    first, last = _VISIBLE.search(line), _VISIBLE.search(line[::-1])
    return line[first.start() : len(line) - last.start()] if first and last else ""


def normal_password(text: str) -> str:
    """What is hashed: composed, each space the same one. Everything else counts as it was typed."""
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)) if len(text) <= LONGEST else text


def password_forms(text: str) -> list[str]:
    """The normal form, then those that hashes of before may have been made from. Mostly one."""
    if len(text) > LONGEST:
        return [text]
    normal = normal_password(text)
    return list(dict.fromkeys([normal, text, unicodedata.normalize("NFD", normal)]))


def normal_email(text: str) -> str:
    """An address in lower case and without what cannot be seen, its domain as it is looked up: in punycode."""
    if len(text) > LONGEST:
        return text
    local, at, domain = _folded(text).rpartition("@")
    return local + at + _punycode(domain)


def email_forms(text: str) -> list[str]:
    """The normal form, then those in which an address of before may be stored. Mostly one."""
    if len(text) > LONGEST:
        return [text]
    normal = normal_email(text)
    local, at, domain = normal.rpartition("@")
    shown = local + at + _unicode(domain)
    return list(dict.fromkeys([normal, text.strip().lower(), shown, unicodedata.normalize("NFD", shown)]))


def _folded(text: str) -> str:
    # Each step may leave work for another: what is composed once a character between is gone, a space within a sign.
    for _ in range(4):
        text = unicodedata.normalize("NFKC", _ANY_INVISIBLE.sub("", text)).lower()
    return text


def _punycode(domain: str) -> str:
    if domain.isascii():
        return domain
    # By the rules of today (2008), under which straße.de is not strasse.de; by those of before for what they alone
    # allow, such as ☃.net. What neither allows stays as it is, for its field to refuse.
    try:
        return idna.encode(domain, uts46=True).decode()
    except idna.IDNAError:
        pass
    try:
        encoded = domain.encode("idna").decode()
    except UnicodeError:
        return domain
    return encoded if _DOMAIN.fullmatch(encoded) else domain


def _unicode(domain: str) -> str:
    if "xn--" not in domain:
        return domain
    try:
        return idna.decode(domain)
    except idna.IDNAError:
        pass
    try:
        return domain.encode().decode("idna")
    except UnicodeError:
        return domain
