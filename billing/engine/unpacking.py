"""What a compressed answer says, piece by piece as it comes.

Owns compression. Must not know how an answer is framed (billing.engine.exchange does). We ask for none: this is for
servers that compress whatever they are asked for.
"""

from __future__ import annotations

import zlib

# What a piece may become.
UNPACKED_BYTES = 16 * 1024 * 1024
_KNOWN = frozenset(("gzip", "x-gzip", "deflate"))
# Other words are found in this header that mean nothing, such as `none` and `utf-8`.
_UNKNOWN = frozenset(("br", "zstd", "compress"))
_GZIP = 0x1F
_MEMBERS_AT_ONCE = 1_000


class CannotUnpack(Exception):
    """It is not what it is said to be, or a few bytes become many."""


def unpacker_for(name: str) -> Unpacker | None:
    """By the Content-Encoding; None where there is nothing to unpack. Raises CannotUnpack."""
    names = [each.strip().lower() for each in name.split(",")]
    known = [each for each in names if each in _KNOWN]
    if len(known) > 1:
        raise CannotUnpack("compressed more than once")
    if unknown := next((each for each in names if each in _UNKNOWN), None):
        # What it says is not known, and its bytes are no words.
        raise CannotUnpack(f"compressed by {unknown}")
    return Unpacker() if known else None


class Unpacker:
    """`unpacked` of each piece in turn is what it says."""

    __slots__ = ("_inflate", "_is_over", "is_whole")

    def __init__(self) -> None:
        self._inflate: zlib._Decompress | None = None
        self._is_over = False
        self.is_whole = True  # what came so far

    def unpacked(self, data: bytes) -> bytes:
        """What this piece says, often nothing. Raises CannotUnpack."""
        if self._is_over:
            return b""
        if self._inflate is None:
            # Some send `deflate` without its two bytes of a header.
            is_bare = data[0] & 0x0F != zlib.DEFLATED and data[0] != _GZIP
            self._inflate = zlib.decompressobj(wbits=-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS | 32)
        parts, left = [_inflated(self._inflate, data, UNPACKED_BYTES)], UNPACKED_BYTES
        while rest := self._inflate.unused_data:
            if rest[0] != _GZIP:
                self._is_over = True  # some fill up what is left of a block
                break
            # Some compress each word by itself.
            left -= len(parts[-1])
            if left <= 0 or len(parts) == _MEMBERS_AT_ONCE:
                raise CannotUnpack("a few bytes become many")
            self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            parts.append(_inflated(self._inflate, rest, left))
        self.is_whole = self._inflate.eof
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _inflated(inflate: zlib._Decompress, data: bytes, most: int) -> bytes:
    try:
        unpacked = inflate.decompress(data, most)
    except zlib.error:
        raise CannotUnpack("compressed in another way than it says") from None
    if inflate.unconsumed_tail:
        raise CannotUnpack("a few bytes become many")
    return unpacked
