"""Where a webhook may go, pure: schemes, address ranges, patterns. Asks no name server; outbound.py does, and then
asks `blocked` here about what it found, for a name may point anywhere by the time it is used."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

DEFAULT_RANGES = (
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "::1/128", "fc00::/7",
)  # fmt: skip
SETTING = "webhook-security"


@dataclass(frozen=True)
class Security:
    """What the operator allows."""

    allow_http: bool = False
    blocked_cidr_ranges: tuple[str, ...] = DEFAULT_RANGES
    allowed_url_patterns: tuple[str, ...] | None = None

    @classmethod
    def of(cls, value: Mapping[str, Any] | None) -> Security:
        """From the stored setting; what it leaves out is as strict as at the start."""
        value = value or {}
        ranges, patterns = value.get("blocked_cidr_ranges"), value.get("allowed_url_patterns")
        return cls(
            bool(value.get("allow_http")),
            DEFAULT_RANGES if ranges is None else tuple(ranges),
            None if patterns is None else tuple(patterns),
        )

    def blocked(self, address: str) -> bool:
        """Is this address in a blocked range? An IPv4 address written as IPv6 is the IPv4 address."""
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        networks = [network for text in self.blocked_cidr_ranges if (network := _network(text)) is not None]
        # Where loopback is blocked, so is the address that means "this host".
        return any(ip in network for network in networks) or (
            ip.is_unspecified and any(network.is_loopback for network in networks)
        )

    def why_not(self, url: str) -> str | None:
        """Why this URL is refused, or None. Names are judged when they are resolved, but for localhost."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            return "url cannot be read. Write https://host/path."
        if not url.isascii() or not url.isprintable() or " " in url:
            return "url must be plain ASCII without blanks. Write other letters of a host as punycode."
        if not host or parts.scheme not in ("http", "https") or parts.username is not None:
            return "url must be https://host/path, without a user in it."
        if parts.scheme == "http" and not self.allow_http:
            return "url must begin with https://, for http is not allowed by webhook-security."
        if self.allowed_url_patterns and not any(fnmatchcase(url, pattern) for pattern in self.allowed_url_patterns):
            return "url fits none of the patterns that webhook-security allows."
        if self._points_inside(host):
            return "url points into an address range that webhook-security blocks."
        return None

    def _points_inside(self, host: str) -> bool:
        if host == "localhost" or host.endswith(".localhost"):
            return self.blocked("127.0.0.1") or self.blocked("::1")
        try:
            return self.blocked(host)
        except ValueError:  # a name
            return False


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """A range that is none blocks nothing: it is stored as it was written, and the operator can read it back."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
