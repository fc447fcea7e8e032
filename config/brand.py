"""What the site is called and how it looks: BRAND_NAME, BRAND_ACCENT, BRAND_LOGO. A builder's own brand is these three.

Owns what they may be, and the style sheet that an accent becomes. Each is refused loudly where it could not be read on
a page or would break a mail's header. Serves nothing: that is tenants.brand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256

from django.core.exceptions import ImproperlyConfigured

from config.env import BASE_DIR, envstr

# The grounds of config/static/site.css on which the accent is read.
LIGHT_GROUNDS, DARK_GROUNDS = ("#f5f6f2", "#fdfdfb"), ("#0f1411", "#161c18")
# What WCAG asks of text, of which links and signs in the accent are some.
CONTRAST = 4.5
WASH = 0.12
LOGO_BYTES = 200_000
KINDS = {"svg": "image/svg+xml", "png": "image/png"}


@dataclass(frozen=True)
class Accent:
    """One colour in light and in dark, each readable on its grounds and on its own wash."""

    light: str
    light_wash: str
    dark: str
    dark_wash: str

    @property
    def stylesheet(self) -> str:
        return (
            f":root {{ --accent: {self.light}; --accent-wash: {self.light_wash}; }}\n"
            "@media screen and (prefers-color-scheme: dark) {\n"
            f"  :root {{ --accent: {self.dark}; --accent-wash: {self.dark_wash}; }}\n"
            "}\n"
        )


@dataclass(frozen=True)
class File:
    """What browsers keep for ever: its address changes with its content."""

    content: bytes
    kind: str

    @property
    def path(self) -> str:
        ending = {"text/css": "css", "image/svg+xml": "svg", "image/png": "png"}[self.kind]
        return f"/brand/{sha256(self.content).hexdigest()[:16]}.{ending}"


@dataclass(frozen=True)
class Brand:
    """`stylesheet` and `logo` are None where the site's own look is used."""

    name: str
    accent: Accent
    stylesheet: File | None
    logo: File | None

    @property
    def files(self) -> dict[str, File]:
        return {file.path: file for file in (self.stylesheet, self.logo) if file is not None}


# What site.css and the mails have by themselves.
DEFAULT_ACCENT = Accent("#0b6b4a", "#e3efe8", "#62d1a0", "#15291f")


def brand() -> Brand:
    accent = _accent("BRAND_ACCENT")
    return Brand(
        name=_name("BRAND_NAME", "Tenantry"),
        accent=accent or DEFAULT_ACCENT,
        stylesheet=File(accent.stylesheet.encode(), "text/css") if accent else None,
        logo=_logo("BRAND_LOGO"),
    )


def _name(name: str, default: str) -> str:
    """As it can stand in a mail's From and in an authenticator's list, beside a workspace's name."""
    value = envstr(name, default)
    if len(value) > 40 or not value.isprintable() or re.search(r'[<>"@:\\]', value):
        raise ImproperlyConfigured(f'{name} is {value!r}: write at most 40 signs in one line, without < > " @ : \\.')
    return value


def _accent(name: str) -> Accent | None:
    raw = envstr(name).lower()
    if not raw:
        return None
    if not re.fullmatch(r"#[0-9a-f]{6}", raw):
        raise ImproperlyConfigured(f"{name} is {raw!r}: write a colour such as {DEFAULT_ACCENT.light}.")
    if not _reads_on(raw, LIGHT_GROUNDS):
        darker = _nearest(raw, "#000000", LIGHT_GROUNDS)
        raise ImproperlyConfigured(
            f"{name} is {raw!r}: on the light page its contrast is below {CONTRAST}, and text in it could not be read. "
            f"Write a darker one, such as {darker}; the dark page's is made of it."
        )
    dark = _nearest(raw, "#ffffff", DARK_GROUNDS)
    return Accent(raw, _mixed(LIGHT_GROUNDS[1], raw, WASH), dark, _mixed(DARK_GROUNDS[1], dark, WASH))


def _nearest(colour: str, towards: str, grounds: tuple[str, ...]) -> str:
    """The first shade on the way to black or white that reads on all of them; at the end of the way each does."""
    shades = (_mixed(colour, towards, step / 50) for step in range(51))
    return next(shade for shade in shades if _reads_on(shade, grounds))


def _reads_on(colour: str, grounds: tuple[str, ...]) -> bool:
    wash = _mixed(grounds[1], colour, WASH)
    return all(contrast(colour, ground) >= CONTRAST for ground in (*grounds, wash))


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it: 1 for the same colour, 21 for black on white."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (value / 255 for value in bytes.fromhex(colour[1:]))
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _mixed(one: str, other: str, share: float) -> str:
    parts = zip(bytes.fromhex(one[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + bytes(round(first + (second - first) * share) for first, second in parts).hex()


def _logo(name: str) -> File | None:
    """A file by its path, which counts from the project's root."""
    raw = envstr(name)
    if not raw:
        return None
    kind = KINDS.get(raw.rpartition(".")[2].lower())
    if kind is None:
        raise ImproperlyConfigured(f"{name} is {raw!r}: write the path of an .svg or a .png file.")
    try:
        content = (BASE_DIR / raw).read_bytes()
    except OSError as exc:
        raise ImproperlyConfigured(f"{name} is {raw!r}, which cannot be read: {exc.strerror}.") from None
    is_one = content.startswith(b"\x89PNG\r\n\x1a\n") if kind == KINDS["png"] else b"<svg" in content[:1000]
    if not is_one or len(content) > LOGO_BYTES:
        raise ImproperlyConfigured(
            f"{name} is {raw!r}: its file must be such a picture of at most {LOGO_BYTES:,} bytes."
        )
    return File(content, kind)
