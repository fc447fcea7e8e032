"""A builder's brand: readable in light and dark whatever the colour, or refused."""

import re
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from config import brand
from config.brand import CONTRAST, DARK_GROUNDS, DEFAULT_ACCENT, LIGHT_GROUNDS, contrast

ROOT = Path(__file__).resolve().parents[2]
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><rect width="1" height="1"/></svg>'


def accent(monkeypatch, colour):
    monkeypatch.setenv("BRAND_ACCENT", colour)
    return brand.brand().accent


def test_contrast_is_what_wcag_says():
    assert round(contrast("#000000", "#ffffff"), 2) == 21
    assert round(contrast("#777777", "#ffffff"), 2) == 4.48


@given(st.integers(0, 0xFFFFFF))
def test_every_colour_is_readable_or_refused_with_one_that_is_taken(number):
    with pytest.MonkeyPatch.context() as patch:
        try:
            taken = accent(patch, f"#{number:06x}")
        except ImproperlyConfigured as refused:
            taken = accent(patch, re.search(r"such as (#[0-9a-f]{6});", str(refused))[1])
    for colour, grounds in (
        (taken.light, (*LIGHT_GROUNDS, taken.light_wash)),
        (taken.dark, (*DARK_GROUNDS, taken.dark_wash)),
    ):
        assert min(contrast(colour, ground) for ground in grounds) >= CONTRAST


def test_the_grounds_and_the_default_are_those_of_the_style_sheet():
    light, dark = (ROOT / "config/static/site.css").read_text().split("prefers-color-scheme: dark", 1)
    for text, grounds, own in (
        (light, LIGHT_GROUNDS, (DEFAULT_ACCENT.light, DEFAULT_ACCENT.light_wash)),
        (dark, DARK_GROUNDS, (DEFAULT_ACCENT.dark, DEFAULT_ACCENT.dark_wash)),
    ):
        for name, value in zip(("paper", "sheet", "accent", "accent-wash"), (*grounds, *own), strict=True):
            assert f"--{name}: {value};" in text


def test_the_brand_is_on_every_page_and_its_files_are_on_every_host(app, acme, settings, monkeypatch, tmp_path):
    (tmp_path / "logo.svg").write_bytes(SVG)
    for name, value in (("NAME", "Ümläut & Co."), ("ACCENT", "#7A1FA2"), ("LOGO", str(tmp_path / "logo.svg"))):
        monkeypatch.setenv(f"BRAND_{name}", value)
    settings.BRAND = brand.brand()
    settings.PRODUCT_NAME = settings.BRAND.name
    for host, path in (("localhost", "/"), (acme.host, "/login/"), ("nobody.localhost", "/")):
        client = Client(headers={"host": host})
        page = client.get(path).content.decode()
        assert "Ümläut &amp; Co." in page
        for file in settings.BRAND.files.values():
            assert f'"{file.path}"' in page
            answer = client.get(file.path)
            assert (answer.content, answer["Content-Type"]) == (file.content, file.kind)
            assert "immutable" in answer["Cache-Control"]
        assert client.get("/brand/0000000000000000.css").status_code == 404
    assert "--accent: #7a1fa2;" in settings.BRAND.stylesheet.content.decode()


def test_a_logo_is_what_its_name_says(monkeypatch, tmp_path):
    for name, content in (("a.png", SVG), ("b.svg", b"\x89PNG\r\n\x1a\n"), ("c.svg", SVG + b" " * brand.LOGO_BYTES)):
        (tmp_path / name).write_bytes(content)
        monkeypatch.setenv("BRAND_LOGO", str(tmp_path / name))
        with pytest.raises(ImproperlyConfigured, match="such a picture of at most"):
            brand.brand()


def test_icons_are_where_browsers_look_for_them_unasked(app, acme):
    for host in ("localhost", acme.host, "nobody.localhost"):
        for path in ("/favicon.ico", "/apple-touch-icon.png"):
            assert Client(headers={"host": host}).get(path).status_code == 200


def test_a_link_to_the_site_describes_it_and_one_to_a_workspace_does_not(app, acme):
    site = Client(headers={"host": "localhost"}).get("/").content.decode()
    assert '<meta property="og:image" content="http://localhost:8000/static/icon-512.png">' in site
    assert "og:" not in Client(headers={"host": acme.host}).get("/login/").content.decode()
