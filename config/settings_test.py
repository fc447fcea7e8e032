"""Settings under pytest: the real ones on the test database, with a quick password hash and fixed secrets."""

from __future__ import annotations

import os

os.environ.setdefault("SECRET_KEY", "tests-only-secret-key-of-fifty-characters-or-so-000000")
os.environ.setdefault("KEY_SEALING_KEY", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
os.environ.setdefault("CYCLES_ADMIN_API_KEY", "tests-only-admin-key")
# Servers of somebody else's that the app's tests stand on (tests/support/servers.py): also for processes of its own.
if _key := os.environ.get("TEST_CYCLES_ADMIN_API_KEY", "").strip():
    os.environ["CYCLES_ADMIN_API_KEY"] = _key
# A machine that runs two sides of tests answers late at times; tests of an authority that hangs set their own.
os.environ.setdefault("CYCLES_READ_TIMEOUT", "6")
# All tests sign up from one address; those of the limits set their own.
for _name in ("SIGN_UP_ADDRESS_RATE", "SIGN_UP_SITE_RATE", "SIGN_UP_FORM_RATE"):
    os.environ.setdefault(_name, "1000000/0.001")
os.environ.setdefault("TRIAL_POOL_USD", "100000")
# Tests change rows and ask in the same millisecond, which is before any other process can be told. Those of what is
# kept set their own.
os.environ.setdefault("LOOKUPS_KEPT_SECONDS", "0")
# What a developer's shell says about production has no place in a test run. An authority's address might be meant for
# it, so tests refuse to run with one.
MISTAKEN = [_name for _name in ("CYCLES_BASE_URL", "CYCLES_ADMIN_URL") if os.environ.get(_name, "").strip()]
for _name in (
    "CYCLES_BASE_URL",
    "CYCLES_ADMIN_URL",
    "CYCLES_TENANT",
    "CYCLES_API_KEY",
    "CYCLES_APP",
    "CYCLES_WORKSPACE",
    "CYCLES_WORKFLOW",
    "CYCLES_AGENT",
    "CYCLES_TOOLSET",
    "LOGIN_GOOGLE_CLIENT_ID",
    "LOGIN_GOOGLE_CLIENT_SECRET",
    "LOGIN_GITHUB_CLIENT_ID",
    "LOGIN_GITHUB_CLIENT_SECRET",
    "LOGIN_OIDC",
    "LLM_BASE_URL",
    "LLM_PRICES",
    "LLM_MODEL",
    "LLM_DIALECT",
    "MODELS",
    "SMTP_HOST",
    "SMTP_PORT",
    "SMTP_USER",
    "SMTP_PASSWORD",
    "SMTP_SECURITY",
    "MAIL_FROM",
    "SITE_URL",
    "PORT",
    "BASE_DOMAIN",
    "KEY_RATES",
    "SIGNUP_CONFIRM_EMAIL",
):
    os.environ.pop(_name, None)

from config.database import act_as_owner  # noqa: E402

act_as_owner()  # tests make databases, schemas and tables; the processes that they start are who they are elsewhere

from config.settings import *  # noqa: E402, F403

# A process that a test starts is told its database; this would send its commands to another.
os.environ.pop("DATABASE_OWNER_URL", None)
# Two runs side by side have a database each, and so has each worker of `pytest -n`.
_worker = os.environ.get("PYTEST_XDIST_WORKER", "")
DATABASES["default"]["TEST"]["NAME"] = os.environ.get("TEST_DATABASE", "test_app") + _worker  # noqa: F405
DATABASES["default"]["TEST"]["TEMPLATE"] = os.environ.get("TEST_TEMPLATE") or None  # noqa: F405
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
