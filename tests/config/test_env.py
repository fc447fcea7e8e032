"""Variables: typed, loud on nonsense, exact with money."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from config import env

SEALING = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("raw", "value"), [("on", True), ("TRUE", True), ("1", True), ("off", False), ("", False)])
def test_a_switch_is_read(monkeypatch, raw, value):
    monkeypatch.setenv("X", raw)
    assert env.envbool("X", False) is value


@pytest.mark.parametrize("raw", ["maybe", "2", "-"])
def test_a_switch_that_is_none_is_refused_by_name(monkeypatch, raw):
    monkeypatch.setenv("X", raw)
    with pytest.raises(ImproperlyConfigured, match="X is"):
        env.envbool("X", False)


@pytest.mark.parametrize("raw", ["-1", "1.5", "70000", "port", "８０８０", "9" * 5_000])
def test_a_port_that_is_none_is_refused(monkeypatch, raw):
    monkeypatch.setenv("X", raw)
    with pytest.raises(ImproperlyConfigured, match="X is"):
        env.envport("X", 1)


@pytest.mark.parametrize("raw", ["localhost", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused(monkeypatch, raw):
    monkeypatch.setenv("X", raw)
    with pytest.raises(ImproperlyConfigured, match="X is"):
        env.envurl("X")


def test_a_rate_and_an_amount_are_read(monkeypatch):
    assert (env.envrate("X", "20/60"), env.envusd("X", "1000")) == ((20, 60.0), 100_000_000_000)
    monkeypatch.setenv("X", "1/0.5")
    assert env.envrate("X", "20/60") == (1, 0.5)
    monkeypatch.setenv("X", "0")
    assert env.envusd("X", "1000") == 0


@pytest.mark.parametrize("raw", ["20", "0/60", "20/0", "-1/60", "20/60/1", "20 / 60", "x/60", "off"])
def test_a_rate_that_is_none_is_refused(monkeypatch, raw):
    monkeypatch.setenv("X", raw)
    with pytest.raises(ImproperlyConfigured, match=r"X is .* such as 20/60"):
        env.envrate("X", "20/60")


@pytest.mark.parametrize("raw", ["-1", "off", "1e400", "1e999999", "NaN", "0.000000001", "$5"])
def test_an_amount_that_is_none_is_refused(monkeypatch, raw):
    monkeypatch.setenv("X", raw)
    with pytest.raises(ImproperlyConfigured, match=r"X is .* for example 1000"):
        env.envusd("X", "1000")


def test_prices_are_read_exactly(monkeypatch):
    given = '{"m": {"input": 0.15, "output": "0.60"}, "n": {"input": 0, "output": 10}, "o": %s}'
    monkeypatch.setenv("X", given % '{"input": 1, "output": 2, "cached_input": 0.1, "reasoning": "2.5"}')
    assert env.envprices("X") == {
        "m": {"input": 15_000_000, "output": 60_000_000},
        "o": {"input": 10**8, "output": 2 * 10**8, "cached_input": 10**7, "reasoning": 25 * 10**7},
        "n": {"input": 0, "output": 1_000_000_000},
    }


@pytest.mark.parametrize(
    "raw",
    [
        "{", "[]", '{"m": 1}', '{"m": {"input": 1}}', '{"m": {"input": -1, "output": 1}}',
        '{"m": {"input": "x", "output": 1}}', '{"m": {"input": NaN, "output": 1}}',
        '{"m": {"input": 0.000000001, "output": 1}}', '{"m": {"input": true, "output": 1}}',
        '{"m": {"input": null, "output": 1}}', '{"m": {"input": 1, "output": 1, "cached": 1}}',
        '{"m": {"input": 1, "output": 1, "cached_input": null}}', '{"m": {"input": 1, "output": 1, "reasoning": -1}}',
        *(json.dumps({name: {"input": 1, "output": 1}}) for name in ("", " ", "m ", "m\n", "\0", "\ud800", "m" * 201)),
    ],
)  # fmt: skip
def test_a_price_that_is_none_is_refused(monkeypatch, raw):
    monkeypatch.setenv("X", raw)
    with pytest.raises(ImproperlyConfigured, match="X cannot be read"):
        env.envprices("X")


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"a": {"input": 1, "output": 2}, "b": {"input": 1}}, "(b needs input and output"),
        ({"a": {"input": 1, "output": 2}, "b": [1]}, "(b needs input and output"),
        ({"a": {"input": 1, "output": 2, "cached_input": "x"}}, "(a, cached_input: 'x' is no number"),
        ({"a": {"input": 1, "output": 2, "reasoning": None}}, "(a, reasoning: None is no number"),
        ({"a": {"input": 1, "output": -2}}, "(a, output: -2 is no price"),
        ([1], "(it is no object"),
    ],
)
def test_a_price_that_is_none_is_named_by_its_model_and_side(monkeypatch, table, named):
    monkeypatch.setenv("X", json.dumps(table))
    with pytest.raises(ImproperlyConfigured) as refused:
        env.envprices("X")
    assert str(refused.value).startswith(f"X cannot be read {named}")


def settings_with(script="import config.settings", **variables):
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("CYCLES_", "LLM_", "SECRET_", "KEY_"))
    }
    given = {
        "DATABASE_URL": "postgresql://u:p@h/n", "SECRET_KEY": "s", "KEY_SEALING_KEY": SEALING,
        "CYCLES_ADMIN_API_KEY": "a",
        **variables,
    }  # fmt: skip
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, cwd=ROOT, env={**clean, **given}, capture_output=True, text=True)
    return done.returncode, done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""


def test_production_starts_with_every_secret_given():
    assert settings_with() == (0, "")


SHOWS_WHO_CONNECTS = (
    "import sys, django.core.management as m; m.execute_from_command_line = lambda argv: None; import manage;"
    "{how}; from config import settings as s; sys.stderr.write(s.DATABASES['default']['USER'] + ' ' + s.SERVING_ROLE)"
)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("pass", "web web"),
        ("sys.argv[1:] = ['jobs']; manage.main()", "owner web"),
        ("sys.argv[1:] = ['runserver', '0:8000']; manage.main()", "web web"),
    ],
)
def test_commands_connect_as_the_owner_and_who_serves_does_not(how, said):
    given = {"DATABASE_URL": "postgresql://web:p@h/n", "DATABASE_OWNER_URL": "postgresql://owner:p@h/n"}
    assert settings_with(SHOWS_WHO_CONNECTS.format(how=how), **given) == (0, said)


def test_the_authority_is_the_owner_whoever_starts_it():
    script = "import sys, config.settings_authority as s; sys.stderr.write(s.DATABASES['default']['USER'])"
    given = {"DATABASE_URL": "postgresql://web:p@h/n", "DATABASE_OWNER_URL": "postgresql://owner:p@h/n"}
    assert settings_with(script, **given) == (0, "owner")


def test_with_one_role_it_does_everything():
    script = SHOWS_WHO_CONNECTS.format(how="sys.argv[1:] = ['jobs']; manage.main()")
    assert settings_with(script) == (0, "u")


def test_two_roles_of_two_databases_are_refused():
    """Migrations would go to one, and web would serve the other."""
    given = {"DATABASE_URL": "postgresql://web:p@h/one", "DATABASE_OWNER_URL": "postgresql://owner:p@h/other"}
    code, said = settings_with(SHOWS_WHO_CONNECTS.format(how="pass"), **given)
    assert code != 0
    assert "DATABASE_URL names the database 'one' and DATABASE_OWNER_URL 'other'" in said


def test_an_owner_without_a_role_that_serves_is_refused(tmp_path):
    given = {"DATABASE_URL": "", "DATABASE_OWNER_URL": "postgresql://owner:p@h/n", "STATE_DIR": str(tmp_path)}
    for script in ("import config.settings", "import sys, manage; sys.argv[1:] = ['jobs']; manage.main()"):
        code, said = settings_with(script, **given)
        assert code != 0
        assert "DATABASE_URL is not set" in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["SECRET_KEY", "KEY_SEALING_KEY", "CYCLES_ADMIN_API_KEY"])
def test_production_refuses_to_start_without_a_secret(name, tmp_path):
    code, said = settings_with(**{name: "", "STATE_DIR": str(tmp_path)})
    assert code != 0
    assert f"{name} is not set" in said


@pytest.mark.parametrize("name", ["KEY_SEALING_KEY", "CYCLES_ADMIN_API_KEY"])
def test_the_embedded_authority_refuses_to_start_without_a_secret_of_its_own(name, tmp_path):
    assert settings_with("import config.settings_authority", SECRET_KEY="") == (0, "")
    code, said = settings_with("import config.settings_authority", **{name: "", "STATE_DIR": str(tmp_path)})
    assert code != 0
    assert f"{name} is not set" in said


ODD_KEYS = ["sk-one\nX-Other: two", "sk-schlüssel", "sk-\x1bone"]
KEYS = ["LLM_API_KEY", "CYCLES_ADMIN_API_KEY", "CYCLES_API_KEY"]


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        *product(KEYS, ODD_KEYS),
        # They stand behind a word; a secret that is all of its header may have spaces.
        ("LLM_API_KEY", "Bearer sk-one"),
        ("CYCLES_API_KEY", "Bearer sk-one"),
    ],
)
def test_a_key_that_no_header_can_carry_is_refused_at_the_start_without_a_word_of_it(name, odd):
    # Else each call fails, or each sign-up, and the log says that nobody could be reached.
    code, said = settings_with(**{"CYCLES_TENANT": "the-house" if name == "CYCLES_API_KEY" else "", name: odd})
    assert (code, said.partition(": ")[2].partition(":")[0]) == (1, f"{name} is no key")
    assert "sk-" not in said


def test_the_embedded_authority_refuses_an_admin_key_that_no_header_can_carry():
    code, said = settings_with("import config.settings_authority", CYCLES_ADMIN_API_KEY="sk-schlüssel")
    assert (code, "CYCLES_ADMIN_API_KEY is no key" in said) == (1, True)


@pytest.mark.parametrize(
    ("given", "missing"), [("CYCLES_BASE_URL", "CYCLES_ADMIN_URL"), ("CYCLES_ADMIN_URL", "CYCLES_BASE_URL")]
)
def test_one_address_of_an_authority_alone_is_refused_naming_the_other(given, missing):
    code, said = settings_with(**{given: "http://authority:1"})
    assert code != 0
    assert f"{missing} is not set" in said


def test_an_external_authority_needs_its_admin_key(tmp_path):
    urls = {"CYCLES_BASE_URL": "http://a:1", "CYCLES_ADMIN_URL": "http://a:2"}
    code, said = settings_with(**urls, CYCLES_ADMIN_API_KEY="", STATE_DIR=str(tmp_path))
    assert code != 0
    assert "CYCLES_ADMIN_API_KEY is not set" in said


@pytest.mark.parametrize(
    ("given", "missing"), [("CYCLES_TENANT", "CYCLES_API_KEY"), ("CYCLES_API_KEY", "CYCLES_TENANT")]
)
def test_one_half_of_the_houses_account_is_refused_naming_the_other(given, missing):
    code, said = settings_with(**{given: "cyc_secret"})
    assert code != 0
    assert f"{missing} is not set" in said
    assert "cyc_secret" not in said


def test_a_level_that_each_call_names_for_itself_is_refused_by_its_name():
    code, said = settings_with(CYCLES_WORKSPACE="all", CYCLES_TOOLSET="t")
    assert code != 0
    assert "CYCLES_WORKSPACE, CYCLES_TOOLSET cannot be set here" in said


CLIENT = {
    "CYCLES_APP": "reports", "CYCLES_CONNECT_TIMEOUT": "1.5", "CYCLES_READ_TIMEOUT": "2.5",
    "CYCLES_RETRY_ENABLED": "false", "CYCLES_RETRY_MAX_ATTEMPTS": "7", "CYCLES_RETRY_INITIAL_DELAY": "0.25",
    "CYCLES_RETRY_MULTIPLIER": "3", "CYCLES_RETRY_MAX_DELAY": "9", "CYCLES_RETRY_FLUSH_TIMEOUT": "0",
    "CYCLES_JOURNAL_ENABLED": "false", "CYCLES_JOURNAL_DIR": "/somewhere",
}  # fmt: skip
SHOWS_THE_CLIENT = """
import django, json, sys
django.setup()
from dataclasses import asdict
from billing.client import default_client
from runcycles import CyclesConfig
ours, theirs = asdict(default_client()._config), asdict(CyclesConfig.from_env())
sys.stderr.write(json.dumps({name: ours[name] for name in ours if ours[name] != theirs[name]}))
"""


@pytest.mark.parametrize(
    ("given", "differs"),
    [
        (CLIENT, {}),
        # What is stricter here while nobody says otherwise.
        (
            {"CYCLES_JOURNAL_DIR": "/somewhere"},
            {"connect_timeout": 1.0, "read_timeout": 2.0, "retry_max_attempts": 200, "retry_flush_timeout": 2.0},
        ),
    ],
    ids=["all set", "unset"],
)
def test_the_clients_variables_are_read_as_the_client_reads_them(given, differs):
    addresses = {"CYCLES_BASE_URL": "http://a:1", "CYCLES_ADMIN_URL": "http://a:2"}
    house = {"CYCLES_TENANT": "the-house", "CYCLES_API_KEY": "key"}
    module = {"DJANGO_SETTINGS_MODULE": "config.settings"}
    code, said = settings_with(SHOWS_THE_CLIENT, **addresses, **house, **module, **given)
    assert code == 0, said
    # Its own tenant is nobody's: a `tenant=` that returns None would book to it.
    assert json.loads(said) == {"api_key": "routed", "tenant": None, **differs}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CYCLES_APP", "a/b"), ("CYCLES_TENANT", "-house"), ("CYCLES_RETRY_MULTIPLIER", "0.5"),
        ("CYCLES_RETRY_FLUSH_TIMEOUT", "-1"), ("CYCLES_RETRY_MAX_ATTEMPTS", "0"),
        ("SITE_URL", "http://localhost:abc"), ("SITE_URL", "http://localhost:8000/path"),
        ("SITE_URL", "http://u:p@localhost"), ("SITE_URL", "http://elsewhere:8000"), ("BASE_DOMAIN", "foo bar"),
        ("BASE_DOMAIN", "*"), ("BASE_DOMAIN", "localhost:8000"), ("LLM_BASE_URL", "http://[::1"),
        ("LLM_BASE_URL", "http://a:b"), ("DATABASE_URL", "postgresql://h:abc/db"), ("DATABASE_URL", "mysql://h/db"),
        ("DATABASE_OWNER_URL", "mysql://h/db"),
        ("BRAND_NAME", "x" * 41), ("BRAND_NAME", "A <b>"), ("BRAND_ACCENT", "green"), ("BRAND_ACCENT", "#ffcc00"),
        ("BRAND_LOGO", "README.md"), ("BRAND_LOGO", "nowhere.svg"),
        ("KEY_BRAND", "TK"), ("KEY_BRAND", "a_b"), ("KEY_BRAND", "1a"), ("KEY_BRAND", "a" * 13),
        ("KEY_SEALING_KEY", "x"), ("LLM_PRICES", '{"m":{"input":1,"output":1},"m":{"input":0,"output":0}}'),
        ("DEBUG", "perhaps"), ("CYCLES_READ_TIMEOUT", "-1"), ("DB_POOL_MAX", "many"),
        ("CYCLES_COLD_READ_TIMEOUT", "1"),
        ("SMTP_SECURITY", "ssl"), ("SMTP_HOST", "smtp://mail"), ("MAIL_FROM", "Us <a@example.com>"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_the_variables_name(name, value):
    code, said = settings_with(**{name: value})
    assert code != 0
    assert "ImproperlyConfigured" in said
    assert name in said


def test_hosts_may_be_written_with_spaces():
    script = "import config.settings as s; import sys; sys.stderr.write(','.join(s.ALLOWED_HOSTS))"
    assert settings_with(script, ALLOWED_HOSTS="a.example, b.example") == (0, "a.example,b.example")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://example.com:443", "https://example.com"),
        ("http://example.com:80", "http://example.com"),
        ("https://example.com:8443/", "https://example.com:8443"),
        ("http://example.com:443", "http://example.com:443"),
    ],
)
def test_the_sites_address_is_written_as_browsers_write_an_origin(monkeypatch, given, kept):
    monkeypatch.setenv("X", given)
    assert env.envorigin("X", "") == kept


def test_an_external_model_needs_its_name():
    code, said = settings_with(LLM_BASE_URL="http://models:1/v1")
    assert code != 0
    assert "LLM_MODEL is not set" in said


def test_no_embedded_model_is_waited_for_where_each_that_can_be_called_has_an_address_of_its_own():
    script = "import config.settings as s; import sys; sys.stderr.write(str(s.MODEL_IS_EMBEDDED))"
    fast = {"MODELS": '{"fast": {"base_url": "http://models:1/v1", "price": {"input": 1, "output": 1}}}'}
    assert settings_with(script, LLM_MODEL="fast", **fast) == (0, "False")
    prices = {"LLM_PRICES": '{"of-the-embedded-server": {"input": 1, "output": 1}}'}
    assert settings_with(script, LLM_MODEL="fast", **fast, **prices) == (0, "True")


def test_a_default_model_that_cannot_chat_is_refused():
    entry = {"base_url": "http://models:1/v1", "price": {"input": 1, "output": 1}, "kinds": ["embeddings"]}
    code, said = settings_with(LLM_MODEL="smart", MODELS=json.dumps({"e": entry, "smart": {"fallback": ["e"]}}))
    assert code != 0
    assert "LLM_MODEL is 'smart'" in said


def test_rates_are_read_as_written(monkeypatch):
    assert env.envrates("X") == {}
    monkeypatch.setenv("X", '{"requests": 60, "concurrent": 1}')
    assert env.envrates("X") == {"requests": 60, "concurrent": 1}


@pytest.mark.parametrize(
    "raw",
    ["60", "[]", "{", '{"request": 1}', '{"requests": 0}', '{"tokens": 1.5}', '{"tokens": "9"}', '{"tokens": true}'],
)
def test_nonsense_for_rates_is_loud(monkeypatch, raw):
    monkeypatch.setenv("X", raw)
    with pytest.raises(ImproperlyConfigured, match="X cannot be read"):
        env.envrates("X")


def test_a_number_that_decimal_cannot_hold_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("X", '{"m": {"input": 1e9999999999999999999, "output": 1}}')
    with pytest.raises(ImproperlyConfigured, match="X has a number that is too large"):
        env.envprices("X")
