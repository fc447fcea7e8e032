"""Short ways for tests that count money: the engine's loop, what models usually need, and calls side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import count
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from django.conf import settings

from billing.engine.loop import here, run
from billing.engine.rules import TRUSTED_AFTER, Sample
from billing.money import UNIT
from billing.prices import PER
from chat.history import prompt_bound
from tests.support.cast import Api, Workspace
from tests.support.jobs import rows
from tests.support.lossy import LossyProxy
from tests.support.plane import PlaneResponse

INPUT, OUTPUT = 1_000, 4_000  # microcents a token, of every model of these tests


def on_loop(act: Callable[[], Any]) -> Any:
    """The result of a plain function, called on the engine's loop."""

    async def there() -> Any:
        return act()

    return run(there())


def trust(model: str, *, app: str = "chat", tokens_output: int = 4) -> None:
    """Teach this process's engine twenty exact reports of the model: 10 tokens for 36 bytes, 4 bytes a token."""
    sample = Sample(10, 36, tokens_output, tokens_output * 4, 100)

    def learn() -> None:
        for _ in range(TRUSTED_AFTER):
            here().habits.learn(model, app, sample)

    on_loop(learn)


def side_by_side(
    api: Api, many: int, *, under_way: int = 0, end: Callable[[], object] | None = None, **fields: Any
) -> list[PlaneResponse]:
    """`many` calls at once, and their answers once each is there. With `end`, which lets the model end its answers:
    once all but `under_way` are answered.
    """
    body = json.dumps({"prompt": "hello", **fields})
    begun = [api.plane.begin("POST", "/api/chat/", body) for _ in range(many)]
    if end is not None:
        assert eventually(lambda: sum(not exchange.is_over for exchange in begun) == under_way)
        end()
    return [PlaneResponse(exchange) for exchange in begun]


def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> bool:
    """Whether it came true in time: the usual one is only there for what never comes, however busy the machine is."""
    until = time.monotonic() + seconds
    while not (true := bool(condition())) and time.monotonic() < until:
        time.sleep(0.02)
    return true


def is_settled(workspace: Workspace) -> bool:
    """Nothing of the workspace is under way: no hold here, and nothing held there."""
    return workspace.holds() == 0 and workspace.ledger()["reserved"] == 0


def true_cost(spent: list[tuple[int, int]]) -> int:
    """Microcents of what the fake upstream really used."""
    return sum(tokens_input * INPUT + tokens_output * OUTPUT for tokens_input, tokens_output in spent)


def assert_books_agree(workspace: Workspace, *, before: int = 0) -> None:
    """The lines are what the ledger says was spent beyond `before`, and nothing is left over."""
    assert eventually(lambda: is_settled(workspace)), (workspace.holds(), workspace.ledger())
    assert workspace.ledger()["spent"] - before == sum(line.cost for line in workspace.lines())


def first_hold(prompt: str = "hello", *, output: int = 64) -> int:
    """Microcents that a new conversation's call holds at first."""
    return prompt_bound([{"role": "user", "content": prompt}]) * INPUT + output * OUTPUT


# What "hello" holds at first of a model that is trusted: what its template was seen to add, and 64 tokens of output.
AT_FIRST = 40 * INPUT + 64 * OUTPUT


def reports(tokens_output, **more):
    return {"prompt_tokens": 10, "completion_tokens": tokens_output, "total_tokens": 10 + tokens_output, **more}


def reservations_of(workspace: Workspace) -> list[dict[str, Any]]:
    """All that the authority knows of, oldest first."""
    params = {"tenant": workspace.account.subject_tenant, "limit": "200", "sort_by": "created_at_ms"}
    answer = httpx.get(
        f"{settings.CYCLES_BASE_URL}/v1/reservations",
        params={**params, "sort_dir": "asc"},
        headers={"X-Admin-API-Key": settings.CYCLES_ADMIN_API_KEY},
    )
    return list(answer.json()["reservations"])


# --- fixtures, for the conftest.py of the folders that count money ---

_numbers = count(1)


@pytest.fixture
def model(upstream, settings):
    """A model that no other test has taught anything, at $10 in and $40 out per million tokens."""
    name = f"model-{next(_numbers)}"
    settings.LLM_MODEL = name
    settings.LLM_PRICES = {name: {"input": INPUT * PER, "output": OUTPUT * PER}}
    return name


@pytest.fixture
def trusted(model):
    """The same model past its twenty reports: it gets slices, at first of 64 tokens."""
    trust(model)
    return model


@pytest.fixture
def lossy(request, app, authority, settings):
    """A proxy before the authority's runtime plane that can lose, refuse or delay what the test says: of `workspace`
    alone where it has one, for calls of earlier tests may still be given back or settled.
    """
    before = settings.CYCLES_BASE_URL
    only = [request.getfixturevalue("workspace")] if "workspace" in request.fixturenames else None
    with LossyProxy(authority.runtime_url, only=only) as proxy:
        settings.CYCLES_BASE_URL = proxy.url
        yield proxy
        settings.CYCLES_BASE_URL = before


@pytest.fixture
def lossy_admin(app, authority, settings):
    """The same before its admin plane. The end of a path is that of its query: `fund_path` has it."""
    before = settings.CYCLES_ADMIN_URL
    with LossyProxy(authority.admin_url) as proxy:
        settings.CYCLES_ADMIN_URL = proxy.url
        yield proxy
        settings.CYCLES_ADMIN_URL = before


def fund_path(workspace: Workspace, scope: str = "") -> str:
    tenant = workspace.account.subject_tenant
    query = urlencode({"tenant_id": tenant, "scope": scope or f"tenant:{tenant}", "unit": UNIT})
    return f"/budgets/fund?{query}"


def authority_at_hand() -> bool:
    """Whether the authority's tables are in this database, so that a test can let time go by in them."""
    return rows("SELECT to_regclass('authority.reservation')") != [(None,)]


def forget_keys(workspace: Workspace) -> None:
    """As if more than a day had passed at the authority: it takes a repeated call for a new one."""
    if not authority_at_hand():
        pytest.skip("No day goes by at these servers: their tables are not at hand.")
    rows(
        "UPDATE authority.replay p SET expires_at_ms = 1 FROM authority.tenant t WHERE t.id = p.tenant_id"
        " AND t.tenant_id = %s",
        workspace.account.subject_tenant,
    )
