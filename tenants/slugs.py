"""What a slug may be. Pure: no models, no settings.

A slug is the customer's name in addresses. It is never the schema's name and never the authority's id, so that
neither can be guessed from it nor reused with it.
"""

from __future__ import annotations

import re

SLUG = re.compile(r"[a-z0-9]([a-z0-9-]{1,30}[a-z0-9])")
_RESERVED = """
    www admin api app static media public mail ftp status help support docs billing account login signup
    auth cdn assets localhost information-schema accounts blog dashboard dev email health healthz imap
    logout metrics ns1 ns2 operator operators ops pop postmaster readyz root security settings smtp
    staging webmail webmaster welcome
"""
RESERVED = frozenset(_RESERVED.split())


def slug_problem(slug: str) -> str | None:
    """Why `slug` may not be used, in a sentence for people; None when it may."""
    if not SLUG.fullmatch(slug):
        return "Use 3 to 32 lower-case letters, digits and hyphens, beginning and ending with a letter or digit."
    # "xn--" and its kind read as another name to browsers; "pg-" would look like the database's own.
    if slug[2:4] == "--" or slug.startswith(("pg-", "xn--")):
        return "This name has a form that is kept for other uses. Choose another."
    if slug in RESERVED:
        return "This name is reserved. Choose another."
    return None
