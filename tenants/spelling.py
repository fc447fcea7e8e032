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
_VISIBLE = re.compile(f"[^{_INVISIBLE}]")
# What has no business in a name. Joiners and variation selectors have: scripts and emoji need them.
_CLUTTER = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
# In no address. Not the joiners, which tell two domains apart; nor spaces, which people see, and refuse.
_UNSEEN = re.compile(f"(?![ \xa0\u1680\u2000-\u200a\u200c\u200d\u202f\u205f\u3000])[{_INVISIBLE}]")
_JOINERS = str.maketrans("", "", "\u200c\u200d")
# Of what cannot be seen alone, what changes the sign before it: ❤ is not ❤️, and a flag is more than its pole.
_SHAPES = "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0020-\U000e007f\U000e0100-\U000e01ef"
_NAME = re.compile(f"[^{_INVISIBLE}](?:.*[^{_INVISIBLE}])?[{_SHAPES}]*", re.DOTALL)
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_DOMAIN = re.compile("[a-z0-9.-]+")
LONGEST = 4_096
LONGEST_EMAIL = 512


def is_blank(text: str) -> bool:
    """Whether there is nothing in it to see: zero-width characters are not a name, a prompt or a password."""
    return _VISIBLE.search(text) is None


def normal_name(text: str) -> str:
    """A name on one line, composed, with single spaces. Empty where nothing of it can be seen."""
    if len(text) > LONGEST:
        return text
    line = " ".join(unicodedata.normalize("NFC", _CLUTTER.sub("", text)).split())
    seen = _NAME.search(line)
    return seen[0] if seen else ""


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
    if len(text) > LONGEST_EMAIL:
        return text
    local, at, domain = _folded(text).rpartition("@")
    return _unjoined(local) + at + _punycode(domain)


def email_forms(text: str) -> list[str]:
    """The normal form, then those in which an address of before may be stored. Mostly one."""
    if len(text) > LONGEST_EMAIL:
        return [text]
    normal = normal_email(text)
    local, at, domain = normal.rpartition("@")
    shown = local + at + _unicode(domain)
    return list(dict.fromkeys([normal, text.strip().lower(), shown, unicodedata.normalize("NFD", shown)]))


def _folded(text: str) -> str:
    # Each step may leave work for another: what is composed once a character between is gone, a space within a sign.
    for _ in range(4):
        before, text = text, unicodedata.normalize("NFKC", _UNSEEN.sub("", text)).lower().strip()
        if text == before:
            break
    return text


def _unjoined(text: str) -> str:
    return _folded(text.translate(_JOINERS)) if "\u200c" in text or "\u200d" in text else text


def _punycode(domain: str) -> str:
    if domain.isascii():
        return domain
    # By the rules of today (2008), under which straße.de is not strasse.de and a joiner where its script needs one is
    # a letter; by those of before for what they alone allow, such as ☃.net. What neither allows stays as it is, for its
    # field to refuse.
    for spelled in dict.fromkeys([domain, _unjoined(domain)]):
        try:
            return idna.encode(spelled, uts46=True).decode()
        except idna.IDNAError:
            pass
    try:
        encoded = spelled.encode("idna").decode()
    except UnicodeError:
        return spelled
    return encoded if _DOMAIN.fullmatch(encoded) else spelled


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


def number_in(text: str) -> int | None:
    """The number that an address or a hidden field names, as rows have them; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
