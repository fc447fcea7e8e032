"""An answer's bytes on their way to a reader who wants them as they came. Pure.

Owns where they may be parted: whole lines go on at once, the end's own [DONE] does not, for it is ours to say once the
call is settled. Must not know what the bytes mean; chat.answer reads the same ones for the books.
"""

from __future__ import annotations

_DONE = b"[DONE]"


class Relay:
    """Bytes in, split anywhere; out come the same bytes in whole lines, up to [DONE]."""

    __slots__ = ("_is_over", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._is_over = False

    def feed(self, data: bytes) -> bytes:
        if self._is_over:
            return b""
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        whole, self._rest = data[:end], data[end:]
        return self._before_done(whole) if _DONE in whole else whole

    def _before_done(self, whole: bytes) -> bytes:
        kept = bytearray()
        for line in whole.splitlines(keepends=True):
            if is_done(line):
                self._is_over = True
                break
            kept += line
        return bytes(kept)

    def rest(self) -> bytes:
        """What came after the last line's end: the whole, of an answer in one piece."""
        rest, self._rest = self._rest, b""
        return b"" if self._is_over or is_done(rest) else rest


def is_done(line: bytes) -> bool:
    return line.strip().removeprefix(b"data:").strip(b' \t"').upper() == _DONE
