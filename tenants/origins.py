"""Which origins a workspace may name, and how each is written: as browsers send it in `Origin`. Pure.

Must not know what an origin is let in to.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

import idna

MOST = 20
LONGEST = 300
_USUAL_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?)*")
EXAMPLE = "https://app.example.com"


class NotAnOrigin(ValueError):
    """The text says what is wrong, for who typed it."""


def origins_in(text: str) -> list[str]:
    """Those of a text that has one a line, each once. Raises NotAnOrigin."""
    found = list(dict.fromkeys(origin_of(line.strip()) for line in text.splitlines() if line.strip()))
    if len(found) > MOST:
        raise NotAnOrigin(f"These are {len(found)} origins, and {MOST} are allowed.")
    return found


def origin_of(written: str) -> str:
    """Scheme, host and port alone, in lower case and without a usual port. Raises NotAnOrigin."""
    said = written if len(written) <= 100 else f"{written[:99]}…"
    if "*" in written:
        raise NotAnOrigin(f"“{said}”: write each origin out. A * would let in pages of anybody.")
    try:
        parts = urlsplit(written)
        port = parts.port
        host = _host(parts.hostname or "")
    except ValueError:
        raise NotAnOrigin(f"“{said}” is no origin. Write one such as {EXAMPLE}.") from None
    if parts.scheme not in _USUAL_PORTS or not host or len(written) > LONGEST or "@" in parts.netloc or port == 0:
        raise NotAnOrigin(f"“{said}” is no origin. Write one such as {EXAMPLE}.")
    if parts.path not in ("", "/") or "?" in written or "#" in written:
        raise NotAnOrigin(f"“{said}” is more than an origin. Leave out what follows the host and its port.")
    if parts.scheme == "http" and not _is_loopback(host):
        raise NotAnOrigin(f"“{said}”: only pages over https can be let in, and over http those of this very machine.")
    return f"{parts.scheme}://{host}" + (f":{port}" if port and port != _USUAL_PORTS[parts.scheme] else "")


def _host(host: str) -> str:
    """As browsers write it. "" or a ValueError for what is none."""
    if ":" in host:
        return f"[{ip_address(host).compressed}]"
    if not host.isascii():
        # Not Python's own codec, an older rule: it makes fass.de of faß.de, which is somebody else's.
        host = idna.encode(host, uts46=True).decode()
    host = host.lower()
    # A browser writes 127.1 and 0x7f000001 as 127.0.0.1.
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2]):
        return str(ip_address(host))
    return host if _HOST.fullmatch(host) else ""


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
