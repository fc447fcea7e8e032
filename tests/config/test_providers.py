"""The variables of identity providers: off by default, loud on nonsense, silent about secrets."""

import json

import pytest
from django.core.exceptions import ImproperlyConfigured

from config.providers import envproviders

NAMES = [f"LOGIN_{which}_CLIENT_{part}" for which in ("GOOGLE", "GITHUB") for part in ("ID", "SECRET")]
ACME = {"name": "Acme SSO", "issuer": "https://sso.acme.example/", "client_id": "id", "client_secret": "hush-hush"}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in [*NAMES, "LOGIN_OIDC"]:
        monkeypatch.delenv(name, raising=False)


def test_none_is_offered_unless_a_variable_says_so(monkeypatch):
    assert envproviders() == {}
    monkeypatch.setenv("LOGIN_OIDC", "")
    assert envproviders() == {}


def test_all_three_kinds_are_read(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, name.lower())
    monkeypatch.setenv("LOGIN_OIDC", json.dumps({"acme-sso": ACME}))
    found = envproviders()
    assert list(found) == ["google", "github", "acme-sso"]
    assert found["google"]["issuer"] == "https://accounts.google.com"
    assert found["github"]["client_secret"] == "login_github_client_secret"
    assert found["acme-sso"] == {"kind": "oidc", **ACME, "scopes": ["openid", "email"]}


@pytest.mark.parametrize("name", NAMES)
def test_half_a_pair_is_refused_by_the_name_of_the_other_half(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    other = name.replace("SECRET", "ID") if name.endswith("SECRET") else name.replace("_ID", "_SECRET")
    with pytest.raises(ImproperlyConfigured, match=f"{other} is not set"):
        envproviders()


@pytest.mark.parametrize("key", ["google", "github", "password", "Acme", "a b", "a/b", "", "x", "a" * 41, "-a", "é2"])
def test_a_name_that_cannot_stand_in_an_address_or_is_taken_is_refused(monkeypatch, key):
    monkeypatch.setenv("LOGIN_OIDC", json.dumps({key: ACME}))
    with pytest.raises(
        ImproperlyConfigured, match=r"LOGIN_OIDC cannot be read .*(no name for a provider|each name in it has)"
    ):
        envproviders()


@pytest.mark.parametrize(
    "changed",
    [
        {"issuer": "http://sso.acme.example"},
        {"issuer": "http://127.example.com"},
        {"issuer": "sso.acme.example"},
        {"issuer": "https://user@sso.acme.example"},
        {"issuer": "https://sso.acme.example/?x=1"},
        {"issuer": 1},
        {"issuer": "https://[x"},
        {"name": ""},
        {"name": "a\nb"},
        {"client_id": ""},
        {"client_secret": "hush hush"},
        {"client_secret": 7},
        {"scopes": "openid"},
        {"scopes": ["email"]},
        {"scopes": ["openid", "a b"]},
        {"issuerr": "x"},
    ],
    ids=str,
)
def test_an_entry_that_is_none_is_refused_and_no_secret_is_quoted(monkeypatch, changed):
    monkeypatch.setenv("LOGIN_OIDC", json.dumps({"acme-sso": {**ACME, **changed}}))
    with pytest.raises(ImproperlyConfigured, match="LOGIN_OIDC cannot be read") as refusal:
        envproviders()
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize("raw", ["{", "[]", "7", '{"a1": {}, "a1": {}}', '{"acme-sso": []}', "[" * 100_000])
def test_what_is_no_table_is_refused(monkeypatch, raw):
    monkeypatch.setenv("LOGIN_OIDC", raw)
    with pytest.raises(ImproperlyConfigured, match="LOGIN_OIDC cannot be read"):
        envproviders()


@pytest.mark.parametrize("issuer", ["http://localhost:8080", "http://127.0.0.1:8080/realms/one"])
def test_plain_http_is_for_this_machine_alone(monkeypatch, issuer):
    monkeypatch.setenv("LOGIN_OIDC", json.dumps({"acme-sso": {**ACME, "issuer": issuer}}))
    assert envproviders()["acme-sso"]["issuer"] == issuer
