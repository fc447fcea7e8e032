"""What a site that others can reach is not started with.

Owns these refusals, each a sentence that begins with its variable. Who serves under a name of this machine alone
(BASE_DOMAIN is localhost) is at a laptop: debug pages, plain http and the tests' secrets are theirs to use. Must not
know Django's settings, which call this.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from ipaddress import ip_network
from itertools import pairwise

from django.core.exceptions import ImproperlyConfigured

SECRET_KEY_LENGTH = 50
ADMIN_KEY_LENGTH = 16
# What generators of projects, examples and this project's own tests write: everybody has read these. Long enough that
# random characters spell one in less than a millionth of all keys.
KNOWN = re.compile("tests-only|change|secret|example|insecure|password|bootstrap|admin|qwerty|^your", re.IGNORECASE)
# Of the internet as many addresses as one owner has; Caddy believes each of them.
WIDEST = {4: 8, 6: 16}


def is_loopback(domain: str) -> bool:
    # Not all that begins so: 127.example.com is a name that anybody can own and reach.
    return domain == "localhost" or domain.endswith(".localhost") or bool(re.fullmatch(r"127(\.\d{1,3}){3}", domain))


def refuse_unsafe(
    *,
    base_domain: str,
    site_url: str,
    debug: bool,
    allowed_hosts: list[str],
    secret_key: str,
    front: bool,
    proxies: str,
) -> None:
    https = site_url.startswith("https://")
    # The front would believe nobody: each request would look like plain http and come from the proxy's own address, so
    # that every form is refused and one stranger's tries count against all.
    if https and front and not proxies:
        raise ImproperlyConfigured(
            "FRONT_TRUSTED_PROXIES is not set: with an https SITE_URL a proxy before the front does TLS. Write its "
            "address, or private_ranges; or FRONT=off where there is no front."
        )
    if is_loopback(base_domain):
        return
    if _is_address(base_domain):
        raise ImproperlyConfigured(
            f"BASE_DOMAIN is {base_domain!r}: write a name such as example.com, for workspaces are names below it."
        )
    if wide := next(filter(_is_too_wide, proxies.split()), None):
        raise ImproperlyConfigured(
            f"FRONT_TRUSTED_PROXIES has {wide!r}: write the addresses of your proxies. So large a part of the "
            "internet has strangers in it, and each of them could say who it is."
        )
    if not https:
        raise ImproperlyConfigured(
            f"SITE_URL is {site_url!r}: outside of localhost write it with https://, or passwords and sessions "
            "can be read on the way."
        )
    if debug:
        raise ImproperlyConfigured("DEBUG is on: outside of localhost set it off, its pages show settings and code.")
    if "*" in allowed_hosts:
        raise ImproperlyConfigured(
            f"ALLOWED_HOSTS has '*': name the hosts, or leave it empty for {base_domain} and its workspaces."
        )
    _refuse_weak("SECRET_KEY", secret_key, shortest=SECRET_KEY_LENGTH)


def refuse_known_secrets(*, base_domain: str, sealing_key: str, admin_key: str) -> None:
    """The two that web and the embedded authority share."""
    if is_loopback(base_domain):
        return
    raw = base64.urlsafe_b64decode(sealing_key)
    # Random bytes are all letters once in 10^14 keys, those of an example always.
    if _is_plain(raw) or all(32 <= byte < 127 for byte in raw):
        raise ImproperlyConfigured("KEY_SEALING_KEY is not random: make one with Fernet.generate_key().")
    _refuse_weak("CYCLES_ADMIN_API_KEY", admin_key, shortest=ADMIN_KEY_LENGTH)


def refuse_half_a_mail_server(*, base_domain: str, host: str, user: str, password: str, security: str) -> None:
    """Whatever the site: what is said of a mail server must be all that is needed."""
    if bool(user) != bool(password):
        missing, given = ("SMTP_PASSWORD", "SMTP_USER") if user else ("SMTP_USER", "SMTP_PASSWORD")
        raise ImproperlyConfigured(f"{missing} is not set: {given} is of no use without it.")
    for name, value in (("SMTP_USER", user), ("SMTP_PASSWORD", password)):
        # Python's client says it in ASCII or not at all: each mail would fail until it is given up.
        if not value.isascii():
            raise ImproperlyConfigured(f"{name} has a sign that is not ASCII, and cannot be sent: choose another.")
    if user and not host:
        raise ImproperlyConfigured("SMTP_HOST is not set: SMTP_USER and SMTP_PASSWORD are of no use without it.")
    if user and security == "none" and not is_loopback(base_domain):
        raise ImproperlyConfigured(
            "SMTP_SECURITY is 'none': write starttls or tls, or SMTP_PASSWORD can be read on the way."
        )


def refuse_unsendable(*, base_domain: str, smtp_host: str, confirm_email: bool) -> None:
    """Sign-ups would wait for a mail that is never sent. A laptop prints it."""
    if confirm_email and not smtp_host and not is_loopback(base_domain):
        raise ImproperlyConfigured(
            "SMTP_HOST is not set: with SIGNUP_CONFIRM_EMAIL on, each sign-up waits for a mail: name the server that "
            "sends it, or set SIGNUP_CONFIRM_EMAIL=off."
        )


def _is_address(domain: str) -> bool:
    """As browsers see it: a last label of digits makes the whole an IPv4 address."""
    return domain.rpartition(".")[2].isdigit()


def _is_too_wide(word: str) -> bool:
    if word == "private_ranges":
        return False
    network = ip_network(word, strict=False)
    return network.prefixlen < WIDEST[network.version]


def _refuse_weak(name: str, value: str, *, shortest: int) -> None:
    how = f"write at least {shortest} random characters, such as secrets.token_urlsafe(48) makes"
    if len(value) < shortest or _is_plain(value.encode()):
        raise ImproperlyConfigured(f"{name} is too short or too plain: {how}.")
    if KNOWN.search(value):
        raise ImproperlyConfigured(f"{name} is one that stands in examples: {how}.")


def _is_plain(value: Sequence[int]) -> bool:
    """Whether it says the same again and again, or counts. Random values have hardly a piece twice."""
    pieces = {tuple(value[at : at + 4]) for at in range(len(value) - 3)}
    steps = sum(abs(one - other) <= 1 for one, other in pairwise(value))
    return len(pieces) < len(value) / 2 or steps > len(value) * 2 / 3
