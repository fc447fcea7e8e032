"""A site that others can reach: starts with safe variables, is refused with each dangerous one by its name."""

import os
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path
from random import Random

import pytest
from django.core.exceptions import ImproperlyConfigured

from config.production import refuse_half_a_mail_server, refuse_known_secrets, refuse_unsafe, refuse_unsendable

ROOT = Path(__file__).resolve().parents[2]
SAFE = {
    "BASE_DOMAIN": "example.com",
    "SITE_URL": "https://example.com",
    "FRONT_TRUSTED_PROXIES": "10.0.0.5 private_ranges",
    "DATABASE_URL": "postgresql://serving:p@h/n",
    "DATABASE_OWNER_URL": "postgresql://owner:p@h/n",
    "SECRET_KEY": "Zq8-vT2mXw4Lr9_bKf6NhYc1JdPs7GuEa3iQoR5tVzWx0SyMlCnUeB",
    "KEY_SEALING_KEY": "3q2-7wAR_r0jRWeJq83vECNFZ4mrze8QI0VniavN7xA=",
    "CYCLES_ADMIN_API_KEY": "uT5-kQz8_Wm2xRb7YdLc4NfH",
    "SMTP_HOST": "mail.example.com",
}
SETTINGS = ["-c", "import config.settings"]


def started(command=SETTINGS, **variables):
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    run = [sys.executable, *command]
    done = subprocess.run(run, cwd=ROOT, env=kept | SAFE | variables, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_django_finds_nothing_to_say_against_it_before_a_deploy():
    code, said = started(["manage.py", "check", "--deploy", "--fail-level", "WARNING"])
    assert code == 0, said
    assert "no issues" in said


def test_a_site_with_one_role_still_starts_and_is_warned_before_a_deploy():
    assert started(DATABASE_OWNER_URL="")[0] == 0
    code, said = started(["manage.py", "check", "--deploy", "--fail-level", "WARNING"], DATABASE_OWNER_URL="")
    assert code != 0
    assert "tenants.W002" in said
    assert "DATABASE_OWNER_URL" in said


def test_a_site_without_a_mail_server_is_warned_and_prints_no_mail():
    without = {"SMTP_HOST": "", "SIGNUP_CONFIRM_EMAIL": "off"}
    code, said = started(["manage.py", "check", "--deploy", "--fail-level", "WARNING"], **without)
    assert code != 0
    assert "mail.W001" in said
    show = ["-c", "import config.settings as s; print(s.EMAIL_BACKEND)"]
    assert started(show, **without)[1].strip() == "tenants.mail.backends.Nowhere"
    assert started(show)[1].strip() == "tenants.mail.backends.Smtp"


def test_sign_ups_that_wait_for_a_mail_need_a_server_that_sends_it():
    with pytest.raises(ImproperlyConfigured, match=r"SMTP_HOST .*SIGNUP_CONFIRM_EMAIL=off"):
        refuse_unsendable(base_domain="example.com", smtp_host="", confirm_email=True)
    refuse_unsendable(base_domain="example.com", smtp_host="mail", confirm_email=True)
    refuse_unsendable(base_domain="example.com", smtp_host="", confirm_email=False)
    refuse_unsendable(base_domain="localhost", smtp_host="", confirm_email=True)


@pytest.mark.parametrize("named", ["user", "password"])
def test_what_the_mail_client_cannot_say_to_a_server_is_refused_and_not_quoted(named):
    given = {"base_domain": "localhost", "host": "mail", "user": "app", "password": "x", "security": "starttls"}
    with pytest.raises(ImproperlyConfigured, match=f"^SMTP_{named.upper()} has a sign that is not ASCII") as refused:
        refuse_half_a_mail_server(**given | {named: "pässwort"})
    assert "sswort" not in str(refused.value)


@pytest.mark.parametrize(
    ("named", "given"),
    [
        ("SMTP_PASSWORD", {"user": "app"}),
        ("SMTP_USER", {"password": "x"}),
        ("SMTP_HOST", {"user": "app", "password": "x", "host": ""}),
        ("SMTP_SECURITY", {"user": "app", "password": "x", "security": "none"}),
    ],
)
def test_half_a_mail_server_is_refused_by_the_missing_variables_name(named, given):
    whole = {"base_domain": "example.com", "host": "mail", "user": "", "password": "", "security": "starttls"}
    refuse_half_a_mail_server(**whole)
    with pytest.raises(ImproperlyConfigured, match=f"^{named} is"):
        refuse_half_a_mail_server(**whole | given)


DANGEROUS = [
    ("SECRET_KEY", "short"),
    ("SECRET_KEY", "a" * 60),
    ("SECRET_KEY", "django-insecure-" + SAFE["SECRET_KEY"]),
    ("SECRET_KEY", "tests-only-secret-key-of-fifty-characters-or-so-000000"),
    ("SECRET_KEY", "abcdefgh" * 7),
    ("SECRET_KEY", "x9Kq8v2m" * 7),
    ("SECRET_KEY", "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    ("SECRET_KEY", "please-change-me-" + SAFE["SECRET_KEY"]),
    ("KEY_SEALING_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),  # 0, 1, 2 …
    ("KEY_SEALING_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAECAwQFBgc="),
    ("KEY_SEALING_KEY", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="),
    ("CYCLES_ADMIN_API_KEY", "admin"),
    ("CYCLES_ADMIN_API_KEY", "tests-only-admin-key"),
    ("CYCLES_ADMIN_API_KEY", "admin-bootstrap-key"),
    ("CYCLES_ADMIN_API_KEY", "abcdefgh" * 2),
    ("DEBUG", "on"),
    ("SITE_URL", "http://example.com"),
    ("SITE_URL", ""),
    ("ALLOWED_HOSTS", "*"),
    ("ALLOWED_HOSTS", "example.com,*"),
    ("ALLOWED_HOSTS", "*.example.com"),
    ("ALLOWED_HOSTS", "https://example.com"),
    ("FRONT_TRUSTED_PROXIES", ""),
    ("FRONT_TRUSTED_PROXIES", "0.0.0.0/0"),
    ("FRONT_TRUSTED_PROXIES", "proxy.example.com"),
    ("FRONT_TRUSTED_PROXIES", "0.0.0.0/1 128.0.0.0/1"),
    ("FRONT_TRUSTED_PROXIES", "2000::/3"),
]


@pytest.mark.parametrize(("name", "value"), DANGEROUS)
def test_each_dangerous_value_is_refused_by_its_name(name, value):
    code, said = started(**{name: value})
    assert code != 0
    assert f"ImproperlyConfigured: {name} " in said.splitlines()[-1]
    assert not value or len(value) < 20 or value not in said  # no secret in the log of a start


@pytest.mark.parametrize("address", ["10.0.0.5", "203.0.113.7", "2130706433"])
def test_workspaces_have_names_and_so_no_address_for_a_domain(address):
    code, said = started(BASE_DOMAIN=address, SITE_URL=f"https://{address}")
    assert code != 0
    assert f"ImproperlyConfigured: BASE_DOMAIN is '{address}'" in said


def test_a_name_that_only_begins_as_this_machines_address_is_no_laptops():
    laptops = {"SITE_URL": "http://127.example.com", "DEBUG": "on", "SECRET_KEY": "short"}
    code, said = started(BASE_DOMAIN="127.example.com", **laptops)
    assert code != 0
    assert "ImproperlyConfigured: SITE_URL is " in said


def test_random_secrets_are_taken():
    random = Random(2026)
    for _ in range(300):
        raw = random.randbytes(48)
        for key in (b64(raw), raw[:25].hex()):
            refuse_unsafe(
                base_domain="example.com", site_url="https://example.com", debug=False, allowed_hosts=[],
                secret_key=key, front=True, proxies="10.0.0.0/8 fd00::/16 private_ranges",
            )  # fmt: skip
        for key in (b64(raw[:12]), raw[:8].hex(), b64(raw)):
            refuse_known_secrets(base_domain="example.com", sealing_key=b64(raw[:32]), admin_key=key)


def b64(raw):
    return urlsafe_b64encode(raw).decode()


def test_the_embedded_authority_refuses_the_secrets_that_it_shares():
    authority = ["-c", "import config.settings_authority"]
    assert started(authority)[0] == 0
    for name, value in DANGEROUS:
        if name in ("KEY_SEALING_KEY", "CYCLES_ADMIN_API_KEY"):
            assert f"ImproperlyConfigured: {name} " in started(authority, **{name: value})[1]


@pytest.mark.parametrize(
    "laptop",
    [
        {"DEBUG": "on", "SECRET_KEY": "short", "ALLOWED_HOSTS": "*", "SITE_URL": "", "FRONT_TRUSTED_PROXIES": ""},
        {"BASE_DOMAIN": "dev.localhost", "SITE_URL": "http://dev.localhost:8000", "DEBUG": "on"},
    ],
)
def test_on_a_laptop_all_of_it_is_its_owners_to_use(laptop):
    code, said = started(**{"BASE_DOMAIN": "localhost"} | laptop)
    assert (code, said) == (0, "")


def test_who_brings_a_front_of_their_own_names_no_proxies():
    assert started(FRONT="off", FRONT_TRUSTED_PROXIES="") == (0, "")
