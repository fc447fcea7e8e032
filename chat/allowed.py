"""Which of the callable models a workspace, and a key of it, may call. Pure.

Owns the refusal. A group is allowed by its own name, whatever its members. Must not know prices: what is allowed may
still have none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tenants.http import Forbidden

SHOWN = 20


def is_allowed(model: str, *by: Collection[str] | None) -> bool:
    """Whether each of them allows it; None allows all."""
    return all(models is None or model in models for models in by)


def allowed_of(models: Iterable[str], *by: Collection[str] | None) -> list[str]:
    return [model for model in models if is_allowed(model, *by)]


def not_allowed(model: str, others: Collection[str]) -> Forbidden:
    """`others`: what may be called instead."""
    names = list(others)[:SHOWN]
    instead = f"Use {' or '.join(names)}, or ask" if names else "Ask"
    return Forbidden(
        f"The model {model[:80]} may not be called here. {instead} somebody who may change the workspace’s settings.",
        model=model[:200],
        models=names,
    )
