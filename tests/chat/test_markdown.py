"""chat.markdown: what of a model's Markdown is shown, that nothing hostile is, and where its blocks end."""

import json
import math
import random
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from chat.markdown import MOST_CHARS, Blocks, mathml, plain, rendered, rendered_block


def bare(address, link=None):
    return f'<a href="{link or address}" rel="nofollow noopener noreferrer">{address}</a>'


CASES = [
    ("one\ntwo", '<p dir="auto">one<br />\ntwo</p>'),
    ("# A", '<h3 dir="auto">A</h3>'),
    ("## A\n### B", '<h3 dir="auto">A</h3>\n<h4 dir="auto">B</h4>'),
    ("##### A", '<h6 dir="auto">A</h6>'),
    ("~~a~~ **b** `c`", '<p dir="auto"><s>a</s> <strong>b</strong> <code>c</code></p>'),
    ("- a\n- b", '<ul dir="auto">\n<li>a</li>\n<li>b</li>\n</ul>'),
    ("> a", '<blockquote dir="auto">\n<p>a</p>\n</blockquote>'),
    ("<b>a</b>", '<p dir="auto">&lt;b&gt;a&lt;/b&gt;</p>'),
    ("[a](https://b.c)", '<p dir="auto"><a href="https://b.c" rel="nofollow noopener noreferrer">a</a></p>'),
    ("![a *b*](https://b.c/d)", '<p dir="auto"><a href="https://b.c/d" rel="nofollow noopener noreferrer">a b</a></p>'),
    (
        "[![a](https://b.c/d)](https://e.f)",
        '<p dir="auto"><a href="https://e.f" rel="nofollow noopener noreferrer">a</a></p>',
    ),
    ("see https://b.c/d_e_f?g=h&i.", f'<p dir="auto">see {bare("https://b.c/d_e_f?g=h&amp;i")}.</p>'),
    ("(**HTTP://b.c/(d)**) x", f'<p dir="auto">(<strong>{bare("HTTP://b.c/(d)")}</strong>) x</p>'),
    ("(https://b.c), https://b.c。A", f'<p dir="auto">({bare("https://b.c")}), {bare("https://b.c")}。A</p>'),
    ('- "https://b.c"', f'<ul dir="auto">\n<li>&quot;{bare("https://b.c")}&quot;</li>\n</ul>'),
    ("[https://b.c https://d.e](https://f.g)", f'<p dir="auto">{bare("https://b.c https://d.e", "https://f.g")}</p>'),
    (
        "`https://b.c` xhttp://b.c http:// b.c/chat.py",
        '<p dir="auto"><code>https://b.c</code> xhttp://b.c http:// b.c/chat.py</p>',
    ),
    ("https://б.c/ы", f'<p dir="auto">{bare("https://б.c/ы", "https://xn--90a.c/%D1%8B")}</p>'),
    ("[a *b*]()", '<p dir="auto">a <em>b</em></p>'),
    ("[a](/logout/)", '<p dir="auto">[a](/logout/)</p>'),
    ("$x$", '<p dir="auto">$x$</p>'),
    ("", ""),
]
HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "[a](JaVaScRiPt:alert(1))",
    "[a](&#106;avascript:alert(1))", "[a](java\tscript:alert(1))", "[a](data:text/html,x)", "[a](//evil.example)",
    "[a](vbscript:x)", "<javascript:alert(1)>", "![a](javascript:alert(1))", "[a]: javascript:alert(1)\n\n[a]",
    '[a](https://b.c "\\" onclick=alert(1) x=\\"")', "```\" onload=a\nx\n```", "```<script>\n</code><script>\n```",
    "|a|\n|:-:|\n|<script>|", "![\" onerror=\"x](https://b.c)", "<https://b.c/\"onclick=x>", "[a](https://b.c\x00)",
    "\x00\x1b\u202e\ufeff", "https://b.c/'onclick=x>", "https://b.c/\"onclick=x", "javascript:https://b.c", "https://[::1",
    "[a](file:///etc/passwd)", "$\\href{javascript:alert(1)}{x}$", "<!-- a", "&lt;script&gt;",
    "[a]()", "![a]()", "[a](<>)", "[b [a]() ![c](https://d.e)](https://f.g)", "[![a]()]()",
]  # fmt: skip
DEEP = ["[", "*a", "*a_", "**a ", "`", "`a``b", "> ", "- ", "[a](", "![", "|a", "a|b\n-|-\n", "<a", "&amp;", "- a\n",
        "  - a\n", "```\n", "a\n\n", "1. a\n\n", "<http://x.y> ", "$a$ ", "[a]: http://x\n", "\\[", "{^", "a\r", "a- ",
        "===\n", "![a](https://b.c) ", "<mailto:a@é.é> ", "[a](http://é%%)", "[a](<é é>)", "- - a\n", "a  \n",
        "|a" * 125 + "\n" + "|-" * 125 + "\na" * 250, "> " + "|a" * 9 + "\n> " + "|-" * 9 + "\n> |" * 99,
        "$" + "x'" * 190 + "$ ", "http://a ", "https://a/((", "https://a))"]  # fmt: skip
ORDINARY = "The **answer** is `a`, as in [b](https://b.c).\n\n- one\n- two\n\n"
TAGS = {
    "p", "br", "h3", "h4", "h5", "h6", "s", "strong", "em", "code", "ul", "ol", "li", "blockquote", "a", "figure", "hr",
    "figcaption", "span", "button", "pre", "div", "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
ATTRIBUTES = {"dir", "rel", "href", "title", "class", "type", "data-copy", "tabindex", "role", "aria-label", "start"}


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.links = set(), set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name == "href"]


def is_harmless(html):
    reader = Reader()
    reader.feed(html)
    links_are_good = all(re.match("(https?://|mailto:)", link, re.IGNORECASE) for link in reader.links)
    return reader.tags <= TAGS and reader.attributes <= ATTRIBUTES and links_are_good


@pytest.mark.parametrize(("text", "html"), CASES)
def test_markdown_is_shown_as_a_page_can_show_it(text, html):
    assert rendered(text) == html


def test_code_says_its_language_and_a_table_has_no_style_of_its_own():
    code = rendered("```python title=x\na < b\n```")
    assert '<span class="code__language">python</span>' in code
    assert "<code>a &lt; b\n</code>" in code
    assert '<button class="code__copy" type="button"' in code
    table = rendered("|a|b|\n|-:|-|\n|1|2|")
    assert '<td class="end">1</td>' in table
    assert "style" not in table
    assert "region" not in table, "a conversation with two of them had two landmarks of one name"


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("maths", [False, True])
def test_no_text_of_a_model_becomes_more_than_words(text, maths, settings):
    settings.CHAT_MATHS = maths
    assert is_harmless(rendered(text))
    assert is_harmless(rendered(f"> - {text}\n\n{text}"))


def seconds_of(text):
    begun = time.thread_time()
    html = rendered(text)
    return time.thread_time() - begun, html


@pytest.mark.parametrize("piece", DEEP)
def test_no_text_takes_long(piece, settings):
    settings.CHAT_MATHS = True
    usual, ordinary = 0.0, (ORDINARY * MOST_CHARS)[:MOST_CHARS]
    for size in (2_000, 6_000, 20_000, MOST_CHARS, 1_000_000):
        text, best = (piece * (size // len(piece) + 1))[:size], math.inf
        for _ in range(8):
            usual = max(usual, seconds_of(ordinary)[0])
            seconds, html = seconds_of(text)
            best = min(best, seconds)
            if best < 8 * usual:  # the longest takes five times as long; one that is quadratic, hundreds of times
                break
        assert best < 8 * usual
        if size <= MOST_CHARS:
            assert is_harmless(re.sub("<math.*?</math>", "", html))
        else:
            assert html == plain(text)


def test_only_so_many_bare_addresses_become_links():
    assert rendered("http://a.b " * 200 + "\n\n" + "http://a.b " * 400).count("<a ") == 500


def test_a_long_answer_that_is_mostly_code_is_still_read():
    code = "x = [a, b][0] * _c\n" * 1_500
    assert rendered(f"# A\n\n```py\n{code}```\n").startswith("<h3")


def test_a_formula_is_shown_where_that_is_on_and_a_broken_one_stays_as_it_was_written(settings):
    settings.CHAT_MATHS = True
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in rendered("so $x^2$ is")
    assert 'display="block"' in rendered("$$\nx\n$$")
    assert rendered("it is $5 and $6") == '<p dir="auto">it is $5 and $6</p>'
    assert rendered("$\\left( x$") == '<p dir="auto">$\\left( x$</p>'
    for hostile in (r"\href{javascript:alert(1)}{x}", r"\class{a}{x}", r"\style{color:red}{x}", "{" * 300, "x" * 5_000):
        assert mathml(hostile, is_block=False) is None


def text_of_blocks(rng):
    parts = [
        "a",
        "# b",
        "- c",
        "  d",
        "1. e",
        "```",
        "~~~",
        "    f",
        "> g",
        "|h|i|",
        "|-|-|",
        "",
        "",
        "",
        "$$",
        "\t",
        "é😀",
    ]
    return rng.choice(["\n", "\r\n"]).join(rng.choice(parts) for _ in range(rng.randrange(25)))


def test_the_blocks_and_the_rest_are_the_text_however_it_is_split(settings):
    rng = random.Random(14)
    for turn in range(600):
        settings.CHAT_MATHS = bool(turn % 2)
        text, blocks, ended, place = text_of_blocks(rng), Blocks(), [], 0
        while place < len(text):
            step = rng.choice([1, 2, 3, 7, 50])
            ended += blocks.feed(text[place : place + step])
            place += step
        assert "".join(ended) + blocks.rest == text
        assert all(ended)


@pytest.mark.parametrize(
    "text",
    [
        "# A\n\nb\nc\n\n- d\n\n  e\n- f\n\ng\n\n```\nx\n\ny\n```\nz\n\n",
        "a\n```py\n\n\n```\nb\n\n1. c\n   ```\n   d\n\n   e\n   ```\n2. f\n\nz\n\n",
        "|a|b|\n|-|-|\n|1|2|\n\n    code\n\n    more\n\nz\n\n",
        "> a\n> - b\n\n~~~\n```\n\n~~~~\n\nz\n\n",
        "a\n\u2028\nb\n\nc\n\n- d\n\x0c\n- e\n\nz\n\n",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blocks_rendered_one_by_one_are_the_whole_rendered(text, end):
    blocks = Blocks()
    ended = [block for letter in text.replace("\n", end) for block in blocks.feed(letter)]
    assert len(ended) > 2
    assert blocks.rest.strip() == ""
    joined = "\n".join(filter(None, map(rendered_block, ended)))
    assert joined == rendered(text)


def test_a_block_costs_as_much_as_it_is_long_however_it_comes():
    def seconds(count):
        blocks, begun = Blocks(), time.thread_time()
        for _ in range(count):
            blocks.feed("word ")
        return time.thread_time() - begun

    small = min(seconds(5_000) for _ in range(3))
    assert min(seconds(50_000) for _ in range(3)) < 30 * small


def test_a_very_long_block_stays_plain_while_it_streams():
    assert "words__plain" in rendered_block("*a* " * 5_000)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent / "odd_answers").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_odd_answers_are_harmless(path):
    assert is_harmless(rendered(path.read_text()))
    assert is_harmless(rendered(json.dumps(yaml.safe_load(path.read_text()), default=str)))
