"""What the words in a file are: text, Markdown, code, tables, and PDF. Bytes in, words out.

Owns which files are read, how many at once, and what is said of the others. Of whose they are it must know no more than
whether it is the same reader. It may take seconds: for web's threads, never for the plane's loop.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from chat.attached import MOST_TOKENS, tokens_of
from chat.images import is_image
from chat.models import Attachment
from chat.unread import Unread

NAME_LENGTH = 120
PDF_SECONDS = 12.0
PDFS_AT_ONCE = 2
# Of a process: those that are read and those that wait, each on a thread of web's, and of each member one.
PDFS_HERE = 6

_KINDS = {
    Attachment.Kind.MARKDOWN: "md markdown",
    Attachment.Kind.TABLE: "csv tsv",
    Attachment.Kind.CODE: "py js mjs ts tsx jsx java c h cc cpp hpp cs go rs rb php swift kt scala sh bash sql html "
    "css scss xml json yaml yml toml ini lua pl r m vue ipynb",
}
_KIND_OF = {ending: kind for kind, endings in _KINDS.items() for ending in endings.split()}

# What no text has, whichever letters it is written in.
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")

_PDF_ERRORS = {
    "encrypted": "This PDF is locked with a password. Save a copy without one and add that.",
    "broken": "This PDF is damaged and cannot be read. Save it anew and try again.",
    "scanned": "This PDF has pictures of pages and no text. Use one whose text can be selected.",
    "pages": "This PDF has more than 500 pages. Add the part that you need.",
    "long": "This PDF has too much text for one message. Add the part that you need.",
    "costly": "This PDF takes too long to read. Save it anew, or copy its text into a text file.",
}
BUSY = "Too many PDFs are being read just now. Try again in a moment."
_PICTURES = "Pictures are taken as PNG, JPEG, WebP or GIF."
_reading_pdfs = threading.BoundedSemaphore(PDFS_AT_ONCE)
_readers: set[Hashable] = set()
_readers_lock = threading.Lock()


def read(name: str, raw: bytes, reader: Hashable = None) -> tuple[Attachment.Kind, str]:
    """Raises Unread. `name` is a cleaned one. `reader` is whose it is."""
    if b"%PDF-" in raw[:1024]:
        with pdf_of(reader):
            kind, text = Attachment.Kind.PDF, _of_pdf(raw)
    else:
        ending = PurePosixPath(name).suffix[1:].lower()
        kind, text = _KIND_OF.get(ending, Attachment.Kind.TEXT), decoded(raw)
    # What Postgres cannot store, a PDF can have.
    text = re.sub("[\x00\ud800-\udfff]", "", text).replace("\r\n", "\n").strip("\n")
    if not text.strip():
        raise Unread("There is no text in this file.")
    # A letter is a token at least, and to count them takes a second for each ten million.
    tokens = len(text) if len(text) > MOST_TOKENS else tokens_of(name, text)
    if tokens > MOST_TOKENS:
        raise Unread(f"This file can be {tokens:,} tokens; {MOST_TOKENS:,} go into one message. Add a part of it.")
    return kind, text


def decoded(raw: bytes) -> str:
    """Text of a known mark, else UTF-8, else UTF-16 by where its zeros are, else Latin letters of one byte each."""
    if is_image(raw):
        raise Unread("Pictures have no text. Add text, Markdown, code, CSV or a PDF.")
    for encoding in _encodings(raw):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not _NO_TEXT.search(text):
            return text
    raise Unread(
        f"This is no text. Add text, Markdown, code, CSV or a PDF; save other documents as one of these. {_PICTURES}"
    )


def _encodings(raw: bytes) -> list[str]:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ["utf-16"]
    if (zeros := raw[:2000].count(0)) > len(raw[:2000]) // 4:
        return ["utf-16-le"] if raw[1:2000:2].count(0) > zeros // 2 else ["utf-16-be"]
    return ["utf-8-sig", "cp1252", "latin-1"]


@contextmanager
def pdf_of(reader: Hashable) -> Iterator[None]:
    """A place among those that are read, which may have to be waited for. Slow PDFs of one member must neither take all
    places for minutes, nor all threads of web's. Raises Unread.
    """
    with _readers_lock:
        if reader in _readers:
            raise Unread("Another PDF of yours is being read. Add this one once that is done.")
        if len(_readers) >= PDFS_HERE:
            raise Unread(BUSY)
        _readers.add(reader)
    try:
        if not _reading_pdfs.acquire(timeout=PDF_SECONDS):
            raise Unread(BUSY)
        try:
            yield
        finally:
            _reading_pdfs.release()
    finally:
        with _readers_lock:
            _readers.discard(reader)


def _of_pdf(raw: bytes) -> str:
    """In a process of its own: no thread can be stopped, and a hostile file of 2 KB can be read for ever."""
    program = [sys.executable, "-I", str(Path(__file__).with_name("pdf_text.py")), str(MOST_TOKENS)]
    try:
        done = subprocess.run(  # our own program; the file is its input
            program, input=raw, capture_output=True, timeout=PDF_SECONDS, check=False, env={}
        )
        found = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        raise Unread(_PDF_ERRORS["costly"]) from None  # killed by its limits, it said nothing
    if (error := found.get("error")) is not None:
        raise Unread(_PDF_ERRORS[error])
    text: str = found["text"]
    return text


def cleaned(name: str) -> str:
    """A file's name without its folders and without letters that cannot be seen, which could turn it around."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2])
    seen = "".join(letter if unicodedata.category(letter)[0] not in "CZ" else " " for letter in name)
    name = " ".join(seen.split()).strip(". ")
    if len(name) > NAME_LENGTH:
        ending = PurePosixPath(name).suffix[:12]
        name = name[: NAME_LENGTH - len(ending) - 1] + "…" + ending
    return name or "file"
