"""MODELS: read as written, loud on nonsense, and silent about the keys in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from django.core.exceptions import ImproperlyConfigured

from config.models import envmodels

PRICE = {"input": 0.15, "output": "0.60"}
A = {"base_url": "https://models.example.com/v1/", "price": PRICE}


def read(monkeypatch, models, *, beside=(), has_common_address=False):
    monkeypatch.setenv("X", models if isinstance(models, str) else json.dumps(models))
    return envmodels("X", beside=beside, has_common_address=has_common_address)


def test_models_and_groups_are_read_as_written(monkeypatch):
    big = {"model": "vendor/big", "api_key": "sk-1", "idle_seconds": 0.5, "context": 128_000, "kinds": ["embeddings"]}
    assert read(monkeypatch, {"a": A, "big": {**A, **big}, "smart": {"fallback": ["a", "old"]}}, beside={"old"}) == {
        "a": {
            "price": {"input": 15_000_000, "output": 60_000_000},
            "context": None,
            "kinds": ["chat"],
            "dialect": {"base_url": "https://models.example.com/v1", "model": "a"},
        },
        "big": {
            "price": {"input": 15_000_000, "output": 60_000_000},
            "context": 128_000,
            "kinds": ["embeddings"],
            "dialect": {
                "base_url": "https://models.example.com/v1",
                "model": "vendor/big",
                "api_key": "sk-1",
                "idle_seconds": 0.5,
            },
        },
        "smart": {"fallback": ["a", "old"]},
    }
    assert read(monkeypatch, "") == {}
    assert "base_url" not in read(monkeypatch, {"a": {"price": PRICE}}, has_common_address=True)["a"]["dialect"]


@pytest.mark.parametrize(
    "models",
    [
        "{", "[]", {"a": 1}, {"": A}, {"a" * 201: A}, {"a\n": A},
        {"a": {"base_url": "https://h/v1"}}, {"a": {"price": PRICE}}, {"a": {**A, "price": {"input": 1}}},
        {"a": {**A, "price": {"input": -1, "output": 1}}}, {"a": {**A, "price": 1}}, {"a": {**A, "prise": 1}},
        {"a": {**A, "context": 0}}, {"a": {**A, "context": 1.5}}, {"a": {**A, "context": "1"}},
        {"a": {**A, "kinds": []}}, {"a": {**A, "kinds": ["speech"]}}, {"a": {**A, "kinds": "chat"}},
        {"a": {**A, "model": ""}}, {"a": {**A, "model": 7}}, {"a": {**A, "base_url": "h"}},
        '{"a": {"base_url": "http://h/v1", "price": {"input": NaN, "output": 1}}}',
        '{"a": {"base_url": "http://h/v1", "price": {"input": 1e999999, "output": 1}}}',
        '{"a": {"base_url": "http://h/v1", "price": {"input": 1, "output": 1}, "context": 1e9999999}}',
        {"g": {"fallback": ["nobody"]}}, {"g": {"fallback": ["g"]}}, {"g": {"fallback": []}}, {"g": {"fallback": "a"}},
        {"a": A, "g": {"fallback": ["a", "a"]}}, {"a": A, "g": {"fallback": ["a"]}, "h": {"fallback": ["g"]}},
        {"a": A, "g": {"fallback": ["a"], "price": PRICE}}, {"a": A, "g": {"fallback": [["a"]]}},
    ],
)  # fmt: skip
def test_what_is_no_model_and_no_group_is_refused(monkeypatch, models):
    with pytest.raises(ImproperlyConfigured, match="X"):
        read(monkeypatch, models)


@pytest.mark.parametrize(
    "more",
    [
        {"idle_seconds": 0}, {"unknown": 1}, {"context": "sk-SECRET"}, {"price": {"input": "sk-SECRET", "output": 1}},
        {"api_key": "sk-SECRET\n"}, {"model": "sk-SECRET\n"}, {"fallback": ["sk-SECRET\n"]},
    ],
)  # fmt: skip
def test_a_refusal_quotes_no_key(monkeypatch, more):
    with pytest.raises(ImproperlyConfigured) as refused:
        read(monkeypatch, {"m": {**A, "api_key": "sk-SECRET", **more}})
    assert "SECRET" not in str(refused.value)


def settings_with(**environment):
    names = "; ".join(f"os.environ[{name!r}] = {value!r}" for name, value in environment.items())
    script = f"import config.settings_test, importlib, os; {names}; "
    script += "settings = importlib.reload(importlib.import_module('config.settings')); print(sorted(settings.MODELS))"
    return subprocess.run([sys.executable, "-c", script], env=dict(os.environ), capture_output=True, text=True)


def test_a_name_that_stands_in_two_variables_is_refused():
    done = settings_with(MODELS=json.dumps({"m": A}), LLM_PRICES=json.dumps({"m": PRICE}))
    assert done.returncode != 0
    assert "MODELS names ['m'], and so does LLM_PRICES or LLM_DIALECT" in done.stderr


def test_the_default_and_the_models_of_the_other_variable_can_be_members():
    models = {"a": A, "smart": {"fallback": ["a", "m", "smollm2-135m-instruct"]}}
    done = settings_with(MODELS=json.dumps(models), LLM_PRICES=json.dumps({"m": PRICE}))
    assert (done.returncode, done.stdout) == (0, "['a', 'smart']\n"), done.stderr
