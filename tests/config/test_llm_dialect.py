"""LLM_DIALECT: read as written, loud on nonsense, and silent about the keys in it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from django.core.exceptions import ImproperlyConfigured

from config import env


def test_settings_of_models_are_read_as_written(monkeypatch):
    monkeypatch.setenv(
        "X",
        '{"m": {"max_tokens_name": "max_completion_tokens", "stream_options": false, "idle_seconds": 0.5,'
        ' "temperature": false, "first_byte_seconds": 600, "bills_after_cut": true, "base_url": "http://h:1/v1/",'
        ' "api_key": "sk-1"},'
        ' "n": {}}',
    )
    assert env.envdialects("X") == {
        "m": {
            "max_tokens_name": "max_completion_tokens",
            "stream_options": False,
            "temperature": False,
            "idle_seconds": 0.5,
            "first_byte_seconds": 600,
            "bills_after_cut": True,
            "base_url": "http://h:1/v1",
            "api_key": "sk-1",
        },
        "n": {},
    }
    monkeypatch.setenv("X", "")
    assert env.envdialects("X") == {}


@pytest.mark.parametrize(
    "raw",
    [
        "{", "[]", "7", '{"m": 1}', '{"m": null}', '{"m": {"max_token_name": "max_tokens"}}',
        '{"m": {"max_tokens_name": "tokens"}}', '{"m": {"max_tokens_name": ["max_tokens"]}}',
        '{"m": {"stream_options": "no"}}', '{"m": {"stream_options": 1}}', '{"m": {"bills_after_cut": null}}',
        '{"m": {"idle_seconds": 0}}', '{"m": {"idle_seconds": true}}', '{"m": {"idle_seconds": NaN}}',
        '{"m": {"first_byte_seconds": 3601}}', '{"m": {"first_byte_seconds": "60"}}',
        '{"m": {"base_url": "h:1"}}', '{"m": {"base_url": "http://u:p@h/v1"}}', '{"m": {"base_url": ""}}',
        '{"m": {"api_key": "a\\nb"}}', '{"m": {"api_key": "ключ"}}', '{"m": {"api_key": 7}}',
        '{"m": {"api_key": " "}}', '{"m": {"api_key": "a b"}}',
        '{"m": {}, "m": {}}', '{"m": {"api_key": "a", "api_key": "b"}}', "[" * 100_000,
    ],
)  # fmt: skip
def test_settings_that_are_none_are_refused(monkeypatch, raw):
    monkeypatch.setenv("X", raw)
    with pytest.raises(ImproperlyConfigured, match="X cannot be read") as refused:
        env.envdialects("X")
    assert "attribute" not in str(refused.value)


@pytest.mark.parametrize("rest", ["", ', "idle_seconds": 0', ', "unknown": 1'])
def test_a_refusal_quotes_no_key(monkeypatch, rest):
    monkeypatch.setenv("X", f'{{"m": {{"api_key": "sk-SECRET\\u0000"{rest}}}')
    with pytest.raises(ImproperlyConfigured) as refused:
        env.envdialects("X")
    assert "SECRET" not in str(refused.value)


def test_settings_of_a_model_that_nobody_can_call_are_refused():
    script = "import config.settings_test, os; os.environ['LLM_DIALECT'] = '{\"typo\": {}}'; import importlib"
    script += "; importlib.reload(importlib.import_module('config.settings'))"
    done = subprocess.run([sys.executable, "-c", script], env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode != 0
    assert "LLM_DIALECT names ['typo']" in done.stderr
