"""A model's words as HTML for a page, and where the blocks of words that are still coming end. Pure.

Owns what of Markdown is shown, and how. A model's text is hostile input: no tag of its own, no link but to the web or
to a mail address, nothing that a page loads by itself, and no text that costs more than a set time. Must not raise.

An address that stands bare is a link by a rule of ours, for whole web addresses alone. The parser's own needs
linkify-it-py (2.2.0 was measured): it is kept up and its licence is MIT, but it made links of file names such as
chat.py, and took 3.9 s for 64 KiB of "https://a/((((", where ours takes some hundredths.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, cast
from xml.etree import ElementTree

from django.conf import settings
from django.utils.html import escape, format_html
from django.utils.safestring import SafeString
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.common.normalize_url import normalizeLink
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from mdit_py_plugins.dollarmath import dollarmath_plugin

# A text above the first stays plain, and so does one of more work, which is counted outside of blocks of code. Together
# they bound the time to some 50 ms: see tests/chat/test_markdown.py.
MOST_CHARS = 64 * 1024
MOST_WORK = 4_000
MOST_NESTING = 12
# While an answer streams, a block above it is shown as it came: it would be kept, and rendered at one go.
BLOCK_CHARS = 16 * 1024

# Bare addresses of one text that become links.
MOST_ADDRESSES = 500
# Of all formulas together, and of each: a letter of them costs as much as one of the signs.
FORMULAS_CHARS = 4_000
FORMULA_CHARS = 400

_LINK = re.compile(r"(?:https?://|mailto:)[^\s\x00-\x20]+", re.IGNORECASE)
# Up to a space, a quotation mark, or a mark of a script that is written without spaces.
_BARE_ADDRESS = re.compile(r"(?<!\w)https?://[^\W_][^\s\x00-\x20<>\"`\u3000-\u303f\uff00-\uffef]*", re.IGNORECASE)
_REL = "nofollow noopener noreferrer"
# What may mean something costs about ten microseconds, each one of it; what the parser only stops at, a sixth of that.
_SIGNS = re.compile(r"[\[\]!*_~`<>|$&\\]+")
_STOPS = re.compile(r"[{}^%@=#+:-]+")
# Items, headings and quotes, also in each other: a paragraph, and something around it.
_MARKED = re.compile(r"^(?:[ \t]*(?:[-+*>]|#+|\d+[.)]))+", re.MULTILINE)
# An address is taken apart, and written anew letter by letter.
_ADDRESS = re.compile(r"(?:\]\(|\]:|<)\s*(?:<[^>\n]*|\S*)")
# The line that makes a table of what is around it, also in a list or a quote.
_TABLE = re.compile(r"(?:[-+*>:| \t]|\d{1,9}[.)])+")
_LANGUAGE = re.compile(r"[\w+#.-]{1,30}")
_ALIGNED = {"text-align:left": "start", "text-align:center": "middle", "text-align:right": "end"}
_BLOCKS = {"paragraph_open", "heading_open", "bullet_list_open", "ordered_list_open", "blockquote_open", "table_open"}


def rendered(text: str) -> SafeString:
    """The text as HTML; as plain text in a paragraph where it is too long or too odd to be read as Markdown."""
    if len(text) > MOST_CHARS or work_of(text) > MOST_WORK:
        return plain(text)
    try:
        html: str = _parser(bool(settings.CHAT_MATHS)).render(text)
        return SafeString(html.strip())
    except Exception:  # an answer that was paid for is shown, whatever the parsers make of it
        return plain(text)


def rendered_block(text: str) -> SafeString:
    """The same of a block that ended while its answer streams."""
    return plain(text.strip("\r\n")) if len(text) > BLOCK_CHARS else rendered(text)


def plain(text: str) -> SafeString:
    return format_html('<p class="words__plain" dir="auto">{}</p>', text)


def work_of(text: str) -> int:
    """How much of it there is to read. What is in a block of code is not read."""
    if (work := _work(text)) <= MOST_WORK:
        return work
    blocks = Blocks(maths=False)
    ended = blocks.feed(text)
    return sum(map(_work_of_block, (*ended, blocks.rest)))


def _work_of_block(block: str) -> int:
    return 4 if _FENCE.match(block.lstrip("\r\n")) else _work(block)


def _work(text: str) -> int:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    addresses = _ADDRESS.findall(text)
    return (
        sum(map(len, _SIGNS.findall(text)))
        + sum(map(len, _STOPS.findall(text))) // 6
        + text.count("\n")
        + sum(2 + len(marks.split()) for marks in _MARKED.findall(text))
        + 2 * len(addresses)
        + sum(map(len, addresses)) // 6
        + 2 * _cells_without_words(text)
    )


def _cells_without_words(text: str) -> int:
    """Each row of a table is filled up to the width of its first one: 2 KB can be 65,000 cells."""
    cells = width = 0
    for line in text.split("\n") if "|" in text else ():
        if not line.strip(" \t"):
            width = 0
        elif "|" in line and _TABLE.fullmatch(line):
            width = max(width, line.count("|"))
        cells += max(0, width - line.count("|"))
    return cells


# --- what is made of Markdown ---


@functools.cache
def _parser(maths: bool) -> MarkdownIt:
    options = {"html": False, "breaks": True, "maxNesting": MOST_NESTING}
    parser = MarkdownIt("commonmark", options).enable(["table", "strikethrough"])
    parser.validateLink = lambda url: _LINK.fullmatch(url) is not None  # type: ignore[method-assign]
    parser.core.ruler.push("ours", lambda state: _make_ours(state.tokens))
    rules: dict[str, Any] = cast("Any", parser.renderer).rules
    rules |= {"fence": _code, "code_block": _code, "table_open": _table_open, "table_close": _table_close}
    if maths:
        dollarmath_plugin(parser, allow_labels=False, allow_space=False, allow_digits=False)
        for name, is_block in {"math_inline": False, "math_inline_double": True, "math_block": True}.items():
            rules[name] = functools.partial(_maths, is_block)
    return parser


def _make_ours(tokens: list[Token]) -> None:
    """Headings below the turn's own, directions, no style attribute (the policy forbids it), and links for images."""
    addresses = MOST_ADDRESSES
    for token in tokens:
        if token.type in _BLOCKS and token.level == 0:
            # Not on what is inside: a list is as its first words are, and its marks stand on the same side.
            token.attrSet("dir", "auto")
        if token.type in ("heading_open", "heading_close"):
            # Most answers begin with the second level. None may leave one out below the turn's h2.
            token.tag = f"h{min(6, max(3, int(token.tag[1]) + 1))}"
        elif token.type in ("th_open", "td_open"):
            if style := token.attrs.pop("style", None):
                token.attrSet("class", _ALIGNED[str(style)])
        elif token.type == "inline":
            token.children = _with_addresses(_without_images(token.children or []), addresses)
            addresses -= sum(child.info == _BARE for child in token.children)
    formulas = 0
    for part in (inner for token in tokens for inner in (token, *(token.children or ()))):
        if part.type.startswith("math_"):
            formulas += len(part.content)
            part.meta = {"is_source": formulas > FORMULAS_CHARS}


def _without_images(tokens: Sequence[Token]) -> list[Token]:
    made: list[Token] = []
    around: list[bool] = []  # of the links that are open, whether they lead anywhere
    for token in tokens:
        if token.type == "link_open":
            # An empty address is never asked about, and leads to the page itself.
            around.append(bool(token.attrs["href"]))
            token.attrSet("rel", _REL)
        if token.type != "image":
            leads = around.pop() if token.type == "link_close" else token.type != "link_open" or around[-1]
            if leads:
                made.append(token)
            continue
        alt = Token("text", "", 0, content=_words_of(token) or "Image")
        if any(around) or not token.attrs["src"]:  # a link in a link is none
            made.append(alt)
            continue
        attributes = {"href": token.attrs["src"], "rel": _REL}
        made += [Token("link_open", "a", 1, attrs=attributes), alt, Token("link_close", "a", -1)]
    return made


_BARE = "bare"


def _with_addresses(tokens: list[Token], most: int) -> list[Token]:
    """The same with links for the first bare addresses, which are marked as such."""
    made: list[Token] = []
    in_link = False
    for token in tokens:
        if token.type in ("link_open", "link_close"):
            in_link = token.type == "link_open"
        if token.type != "text" or in_link or most <= 0 or "://" not in token.content:
            made.append(token)
            continue
        at = 0
        for found in _BARE_ADDRESS.finditer(token.content):
            shown = _without_end_of_sentence(found[0])
            if most <= 0 or _LINK.fullmatch(link := normalizeLink(shown)) is None:
                continue
            most -= 1
            end = found.start() + len(shown)
            attributes: dict[str, str | int | float] = {"href": link, "rel": _REL}
            made += [
                Token("text", "", 0, content=token.content[at : found.start()]),
                Token("link_open", "a", 1, attrs=attributes, info=_BARE),
                Token("text", "", 0, content=shown),
                Token("link_close", "a", -1),
            ]
            at = end
        made.append(Token("text", "", 0, content=token.content[at:]))
    return made


def _without_end_of_sentence(address: str) -> str:
    """A mark at its end is the sentence's, and so is a bracket that the address does not open."""
    unopened = address.count(")") - address.count("(")
    end = len(address)
    while (last := address[end - 1]) in ".,:;!?*_~'" or (last == ")" and unopened > 0):
        unopened -= last == ")"
        end -= 1
    return address[:end]


def _words_of(image: Token) -> str:
    return RendererHTML().renderInlineAsText(image.children, OptionsDict({}), {}).strip()  # type: ignore[typeddict-item]


def _code(tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    token = tokens[index]
    language = _LANGUAGE.match(token.info.strip())
    return format_html(
        '<figure class="code"><figcaption class="code__head"><span class="code__language">{}</span>'
        '<button class="code__copy" type="button" data-copy>Copy<span class="unseen"> this code</span></button>'
        '</figcaption><pre dir="ltr" tabindex="0"><code>{}</code></pre></figure>\n',
        language[0] if language else "Code",
        token.content,
    )


def _table_open(tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    # A group and no region: a conversation of many tables would have as many landmarks of one name.
    return '<div class="words__table" role="group" aria-label="Table" tabindex="0" dir="auto"><table>\n'


def _table_close(tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    return "</table></div>\n"


# --- maths ---

_MATHML = "{http://www.w3.org/1998/Math/MathML}"
_MATHML_TAGS = re.compile(
    "math|mi|mn|mo|ms|mtext|mspace|mrow|mfrac|msqrt|mroot|mstyle|mpadded|mphantom|mfenced|menclose|msub|msup|msubsup|"
    "munder|mover|munderover|mmultiscripts|mprescripts|none|mtable|mtr|mtd"
)
_MATHML_ATTRIBUTE = re.compile(
    "display|mathvariant|stretchy|fence|separator|form|lspace|rspace|minsize|maxsize|symmetric|movablelimits|accent|"
    "accentunder|linethickness|displaystyle|scriptlevel|width|height|depth|voffset|columnalign|rowspacing|rowlines|"
    "columnspacing|columnlines|notation|open|close|separators|mathcolor|largeop"
)


def _maths(is_block: bool, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    token = tokens[index]
    made = None if (token.meta or {}).get("is_source") else mathml(token.content.strip(), is_block=is_block)
    if made is None:
        made = escape(f"{token.markup}{token.content}{token.markup}")
    return f"<p>{made}</p>\n" if token.type == "math_block" else made


def mathml(formula: str, *, is_block: bool) -> str | None:
    """None where it is no formula, or more than one: its source is shown then."""
    if len(formula) > FORMULA_CHARS:
        return None
    try:
        made = convert(formula, display="block" if is_block else "inline")
        parts = list(ElementTree.fromstring(made).iter())  # noqa: S314 - no entity of its own: it was made just now
    except Exception:  # the library raises whatever a formula makes it stumble over
        return None
    # A command may set links, styles and classes; none of them is a formula's.
    return made if all(map(_is_of_a_formula, parts)) else None


def _is_of_a_formula(part: ElementTree.Element) -> bool:
    is_known = _MATHML_TAGS.fullmatch(part.tag.removeprefix(_MATHML)) is not None
    return is_known and all(map(_MATHML_ATTRIBUTE.fullmatch, part.attrib))


# --- where blocks end ---

_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`\n]*$)|~{3,})", re.MULTILINE)
_ITEM = re.compile(r" {0,3}(?:[-+*]|\d{1,9}[.)])(?:[ \t]|$)")
_INDENTED = re.compile(r"(?: {4}|\t)")


class Blocks:
    """Words in, split anywhere; the texts of the top-level blocks that have ended out. Together, and with the `rest`,
    they are the words.

    It looks at each line once. Where it takes a list or a fence for another than the parser does, the page shows that
    until the answer ends, which is rendered as a whole.
    """

    __slots__ = ("_fence", "_is_blank", "_kind", "_line", "_lines", "_maths")

    def __init__(self, *, maths: bool | None = None) -> None:
        self._line: list[str] = []  # of a line without its end
        self._lines: list[str] = []  # of a block without its end
        self._kind = ""  # of that: text, list (or indented code), fence
        self._fence = ""
        self._is_blank = False  # a blank line was its last
        self._maths = bool(settings.CHAT_MATHS) if maths is None else maths

    @property
    def rest(self) -> str:
        return "".join(self._lines + self._line)

    def feed(self, words: str) -> list[str]:
        ended: list[str] = []
        first, *others = words.split("\n")
        self._line.append(first)
        for other in others:
            self._take("".join(self._line) + "\n", ended)
            self._line = [other]
        # A list waits for its next item, but not until the paragraph after it has ended.
        if self._is_blank and self._kind == "list" and (begun := self._line[0]) and begun[0].isalpha():
            self._end(ended)
        return ended

    def _take(self, line: str, ended: list[str]) -> None:
        text = line.rstrip("\r\n")
        if self._kind == "fence":
            self._lines.append(line)
            if self._closes(text):
                self._end(ended)
            return
        if not text.strip(" \t"):
            self._lines.append(line)
            self._is_blank = True
            if self._kind == "text":
                self._end(ended)
            return
        if self._kind == "list" and self._leaves_list(text):
            self._end(ended)
        if fence := self._opens(text):
            if self._kind == "text":
                self._end(ended)
            if not self._kind:
                self._kind, self._fence = "fence", fence
        if not self._kind:
            self._kind = "list" if _ITEM.match(text) or _INDENTED.match(text) else "text"
        elif self._kind == "text" and _ITEM.match(text):
            self._kind = "list"  # it interrupts a paragraph
        self._lines.append(line)
        self._is_blank = False

    def _leaves_list(self, text: str) -> bool:
        if self._is_blank:
            return not text[0].isspace() and not _ITEM.match(text)
        return not text.startswith("  ") and bool(self._opens(text))

    def _opens(self, text: str) -> str:
        if found := _FENCE.match(text):
            return found[1]
        is_formula = self._maths and text.lstrip().startswith("$$") and text.strip().find("$$", 2) < 0
        return "$$" if is_formula else ""

    def _closes(self, text: str) -> bool:
        if self._fence == "$$":
            return text.rstrip().endswith("$$")
        end = text.strip()
        return len(end) >= len(self._fence) and not end.strip(self._fence[0]) and not _INDENTED.match(text)

    def _end(self, ended: list[str]) -> None:
        ended.append("".join(self._lines))
        self._lines, self._kind, self._fence, self._is_blank = [], "", "", False
