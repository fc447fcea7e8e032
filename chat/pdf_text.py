"""A program: a PDF on its input, JSON on its output: {"text": …}, or {"error": name}. Run by chat.file_text alone.

Owns its own limits: a file made to be endless ends this process, and nothing else. Must import nothing of ours.
"""

from __future__ import annotations

import io
import json
import logging
import resource
import sys

import pypdf
from pypdf.errors import PyPdfError

CPU_SECONDS = 8
MEMORY = 768 * 1024 * 1024
MOST_PAGES = 500


def main(most: int) -> dict[str, str]:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    logging.disable()
    try:
        return _read(sys.stdin.buffer.read(), most)
    except MemoryError:
        return {"error": "costly"}
    # Of a broken file it raises whatever the broken part leads to.
    except (PyPdfError, Exception):
        return {"error": "broken"}


def _read(raw: bytes, most: int) -> dict[str, str]:
    pdf = pypdf.PdfReader(io.BytesIO(raw))
    # Many are encrypted with no password at all, only to forbid printing.
    if pdf.is_encrypted and not _opens(pdf):
        return {"error": "encrypted"}
    if len(pdf.pages) > MOST_PAGES:
        return {"error": "pages"}
    texts: list[str] = []
    room = most
    for page in pdf.pages:
        texts.append(page.extract_text())
        room -= len(texts[-1])
        if room < 0:
            return {"error": "long"}
    text = "\n\n".join(texts)
    return {"text": text} if text.strip() else {"error": "scanned"}


def _opens(pdf: pypdf.PdfReader) -> bool:
    try:
        return bool(pdf.decrypt(""))
    except Exception:  # also for a cipher that needs a library which is not here
        return False


if __name__ == "__main__":
    json.dump(main(int(sys.argv[1])), sys.stdout)
