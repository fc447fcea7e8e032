"""What is kept of an image, by its bytes and not by its name. Bytes in, an image out that we have written ourselves.

Owns which files are images, and what is said of those that are not taken. Must not know whose they are, nor which
model is asked (chat.image_models). It may take seconds: for web's threads, never for the plane's loop.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

from chat.models import Attachment
from chat.unread import Unread

SECONDS = 12.0
AT_ONCE = 2

_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8")
_ERRORS = {
    "pixels": "This picture has more than 50 million pixels. Save it smaller and add that.",
    "broken": "This picture is damaged and cannot be read. Save it anew and try again.",
    "costly": "This picture takes too long to read. Save it anew, or smaller.",
}
_being_read = threading.BoundedSemaphore(AT_ONCE)


def is_image(raw: bytes) -> bool:
    """PNG, JPEG, GIF or WebP, to be read further; others are no text, and nothing else either."""
    return raw.startswith(_BEGINNINGS) or (raw[:4] == b"RIFF" and raw[8:12] == b"WEBP")


def made_anew(raw: bytes) -> tuple[Attachment.Kind, bytes]:
    """A PNG or a JPEG, no larger than models look at, of its pixels alone. Raises Unread.

    In a process of its own, as a PDF is: a hostile image of 2 KB can unpack into gigabytes.
    """
    program = [sys.executable, "-I", str(Path(__file__).with_name("image_made.py"))]
    if not _being_read.acquire(timeout=SECONDS):
        raise Unread("Too many pictures are being read just now. Try again in a moment.")
    try:
        done = subprocess.run(  # our own program; the file is its input
            program, input=raw, capture_output=True, timeout=SECONDS, check=False, env={}
        )
        head, _, made = done.stdout.partition(b"\n")
        said = json.loads(head)
    except (subprocess.TimeoutExpired, ValueError):
        raise Unread(_ERRORS["costly"]) from None  # killed by its limits, it said nothing
    finally:
        _being_read.release()
    if (error := said.get("error")) is not None:
        raise Unread(_ERRORS[error])
    return Attachment.Kind(said["kind"]), made
