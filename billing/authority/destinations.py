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

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))


# Of IPv6 only this is given to anybody on the internet. What lies elsewhere, or in it as below, is another network's
# way in: 6to4, Teredo and NAT64 carry an IPv4 address, which may be a private one.
_UNICAST = ipaddress.ip_network("2000::/3")
_SPECIAL = _networks("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")
_DOCUMENTATION = _networks("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")
# The last 32 bits of an address in these are the IPv4 address that it stands for.
_CARRIERS = _networks("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")


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

    @property
    def only_public(self) -> bool:
        """Until an operator takes a range off the list, what is no address of the public internet is refused, too."""
        return set(DEFAULT_RANGES) <= set(self.blocked_cidr_ranges)

    def blocked(self, address: str) -> bool:
        """Is this address in a blocked range, or an IPv4 address within it?"""
        ip = ipaddress.ip_address(address.partition("%")[0])
        if self.only_public and not _is_public(ip):
            return True
        networks = [network for text in self.blocked_cidr_ranges if (network := _network(text)) is not None]
        # Where loopback is blocked, so is the address that means "this host".
        return any(meant in network for meant in _meanings(ip) for network in networks) or (
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
            # Addresses kept for documentation lead nowhere. The reference servers store them, and so does this one;
            # they are refused when something is to be sent.
            return self.blocked(host) and not (self.only_public and _is_documentation(host))
        except ValueError:  # a name
            return False


def _is_public(ip: Address) -> bool:
    if ip.version == 6 and ip not in _UNICAST:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _SPECIAL)


def _is_documentation(host: str) -> bool:
    ip = ipaddress.ip_address(host)
    return any(ip in network for network in _DOCUMENTATION)


def _meanings(ip: Address) -> list[Address]:
    """The address, and the IPv4 addresses that it stands for where it is a way to them."""
    if ip.version == 4:
        return [ip]
    meanings: list[Address | None] = [ip, ip.sixtofour, *(ip.teredo or ())]
    if any(ip in network for network in _CARRIERS):
        meanings.append(ipaddress.IPv4Address(ip.packed[-4:]))
    return [meant for meant in meanings if meant is not None]


def _network(text: str) -> Network | None:
    """A range that is none blocks nothing: it is stored as it was written, and the operator can read it back."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
