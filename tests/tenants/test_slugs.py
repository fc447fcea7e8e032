"""What a slug may be."""

import pytest

from tenants.slugs import slug_problem


@pytest.mark.parametrize("slug", ["abc", "a1b", "acme", "acme-corp", "a-b-c", "0ne", "a" * 32, "123", "a-1"])
def test_a_plain_slug_is_taken(slug):
    assert slug_problem(slug) is None


@pytest.mark.parametrize(
    "slug",
    [
        "", "a", "ab", "a" * 33, "-ab", "ab-", "Acme", "ac me", "acme\n", "ac.me", "ac_me", "äcme", "acme/", "a\x00b",
        "acme​", "ａｃｍｅ",
    ],
)  # fmt: skip
def test_a_slug_of_another_form_is_refused(slug):
    assert slug_problem(slug)


@pytest.mark.parametrize("slug", ["xn--acme", "ab--cd", "pg-acme", "pg--acme"])
def test_a_slug_that_reads_as_something_else_is_refused(slug):
    assert slug_problem(slug)


CONTRACT = """
    www admin api app static media public mail ftp status help support docs billing account login signup auth cdn
    assets localhost information-schema
"""


@pytest.mark.parametrize("slug", CONTRACT.split())
def test_a_reserved_slug_is_refused(slug):
    assert slug_problem(slug)
