"""MODELS: several upstreams, each model under a name of ours, and groups of them.

Owns how the variable becomes a value, in the style of config.env. What a model is spoken to by, and how a price is
read, is said there once, for LLM_DIALECT and LLM_PRICES too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from decimal import Decimal
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from config.env import _DIALECT, _dialect, _price, envtable


def envmodels(name: str, *, beside: Collection[str], has_common_address: bool) -> dict[str, dict[str, Any]]:
    """Models at several addresses, and groups of them: `{"fast": {"base_url": "https://…/v1", "price": {"input": 0.15,
    "output": "0.60"}}, "smart": {"fallback": ["fast", "big"]}}`.

    A model is returned as `price`, `context`, `kinds` and `dialect`, a group as `fallback`. `beside`: models that have
    a price elsewhere, and so can be members. No refusal quotes a value: it may hold a key.
    """
    models = envtable(name, _model, number=Decimal, example='{"fast": {"base_url": …, "price": {…}}}')
    for model, entry in models.items():
        if "fallback" not in entry:
            if not has_common_address and "base_url" not in entry["dialect"]:
                raise ImproperlyConfigured(f"{name}: {model} needs a base_url, for LLM_BASE_URL is not set.")
            continue
        for member in entry["fallback"]:
            if member not in beside and "price" not in models.get(member, {}):
                raise ImproperlyConfigured(
                    f"{name}: {member} in {model} is no model with a price, or is a group itself."
                )
    return models


def can_chat(models: dict[str, dict[str, Any]], name: str) -> bool:
    """Whether the chat can ask it. Of what only another variable names, its server says what it cannot do."""
    members = models.get(name, {}).get("fallback", [name])
    return any("chat" in models.get(member, {}).get("kinds", ["chat"]) for member in members)


def _model(model: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"{model} must have an object")
    given = {key: _as_json(value) if key != "price" else value for key, value in given.items()}
    if "fallback" in given:
        if given.keys() != {"fallback"} or not _is_names(given["fallback"]):
            raise ValueError(f"{model}: a group has a fallback, a list of different models, and nothing else")
        return {"fallback": list(given["fallback"])}
    for key, value in given.items():
        if key not in _MODEL and key not in _DIALECT:
            raise ValueError(f"{model}: {key[:40]} is none of fallback, {', '.join([*_MODEL, *_DIALECT])}")
        if key in _MODEL and not _MODEL[key][0](value):
            raise ValueError(f"{model}: {key} must be {_MODEL[key][1]}")
    if "price" not in given:
        raise ValueError(f"{model} has no price: without one it is never called")
    dialect = _dialect(model, {key: value for key, value in given.items() if key in _DIALECT})
    return {
        "price": _price(model, given["price"]),
        "context": given.get("context"),
        "kinds": list(given.get("kinds", ["chat"])),
        "dialect": {**dialect, "model": given.get("model", model)},
    }


def _as_json(value: Any) -> Any:
    """As json reads it by itself: only prices need their numbers exact."""
    if isinstance(value, Decimal):
        if value.adjusted() > 20:  # A whole number written as 1e99999999 would take hours, and no setting is as high.
            raise ValueError("a number is too high")
        return int(value) if value == value.to_integral_value() and "." not in str(value) else float(value)
    if isinstance(value, list):
        return [_as_json(part) for part in value]
    if isinstance(value, dict):
        return {key: _as_json(part) for key, part in value.items()}
    return value


def _is_price(value: Any) -> bool:
    try:
        return bool(_price("", value))
    except ValueError:
        return False


def _is_names(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        return False
    return len(set(value)) == len(value)


_KINDS = ("chat", "completions", "embeddings")
_MODEL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (
        lambda value: isinstance(value, str) and 1 <= len(value) <= 200 and value.isprintable(),
        "the name that its server knows it by",
    ),
    "price": (
        _is_price,
        "USD per million tokens with at most 8 decimals: input and output, and beside them cached_input and reasoning",
    ),
    "context": (lambda value: type(value) is int and 1 <= value < 2**31, "a number of tokens"),
    "kinds": (lambda value: _is_names(value) and set(value) <= set(_KINDS), f"a list of {', '.join(_KINDS)}"),
}
