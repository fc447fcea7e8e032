"""What tests of killed processes share: readers, the sweep's turn, and what must be true once it has been.

Owns no process. `LIKELY` is what the engine takes the input of `PROMPT` to cost while nobody has reported anything.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from typing import Any

import httpx

from billing import admin_client
from billing.engine.rules import USUAL_INPUT_RATIO, likely_tokens
from billing.models import BudgetPeriod, Hold
from billing.plans import PLANS
from billing.settlement import sweep
from chat.history import prompt_bytes
from tenants.context import tenant_scope
from tenants.users.models import User
from tests.support.jobs import rows

PROMPT = "Tell me a story that has no end."
INPUT, OUTPUT = 1_000, 4_000  # microcents a token
LIKELY = likely_tokens(prompt_bytes([{"role": "user", "content": PROMPT}]), USUAL_INPUT_RATIO) * INPUT


def model_variables(upstream, model="test-model"):
    prices = {model: {"input": 10, "output": 40}}
    return {"LLM_BASE_URL": upstream.base_url, "LLM_MODEL": model, "LLM_PRICES": json.dumps(prices)}


def kill(process):
    process.kill()
    process.wait()


def assert_made_once(account) -> None:
    """A sign-up that was interrupted and gone on with: here and at the authority there is one of each."""
    assert (account.status, account.tenant.status) == ("active", "active")
    assert account.owner_password == ""
    with tenant_scope(account.tenant):
        assert list(User.objects.values_list("email", "role")) == [(account.owner_email, "owner")]
    assert BudgetPeriod.objects.filter(account=account).count() == 1
    keys = admin_client.active_key_ids(account.subject_tenant, name=f"account-{account.pk}")
    assert keys == [account.authority_key_id]
    (budget,) = admin_client.budgets(account.subject_tenant)
    assert (budget["scope"], budget["allocated"]["amount"]) == (account.scope, PLANS[account.plan].allowance)
    assert admin_client.tenant_status(account.subject_tenant) == "ACTIVE"


class Reader(threading.Thread):
    """Reads a stream to its end, or to the end of whoever writes it. `at`: by way of another address."""

    def __init__(self, server, workspace, key, *, path="/api/chat/", at=None, headers=None, **body) -> None:
        super().__init__()
        self.body = {"prompt": PROMPT, "stream": True, **body} if path == "/api/chat/" else body
        self.path, self.client = path, server.client(workspace, key)
        self.client.headers.update(headers or {})
        if at:
            self.client.base_url = at
        self.lines: list[str] = []
        self.status = 0
        self.start()

    def run(self) -> None:
        # Whoever writes may be killed under it.
        with self.client, suppress(httpx.HTTPError), self.client.stream("POST", self.path, json=self.body) as response:
            self.status = response.status_code
            for line in response.iter_lines():
                self.lines.append(line)

    @property
    def last(self) -> tuple[str, Any]:
        """The last event: its name and its data."""
        *_, name, data = [line for line in self.lines if line.startswith(("event: ", "data: "))]
        return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def swept(workspace):
    """As if the dead process had been silent for long, and it were time for the sweep. What the row said before."""
    row = Hold.objects.filter(account=workspace.account).values().first()
    seen = "UPDATE public.billing_process SET seen_at = now() - interval '1 minute' WHERE id = %s RETURNING id"
    if row:
        assert rows(seen, row["process"])
    sweep(at_once=True)
    return row


def only_line(workspace):
    """The one line of the one call, once nothing else is left of it."""
    (line,) = workspace.lines()
    ledger = workspace.ledger()
    assert (ledger["spent"], ledger["reserved"], workspace.holds()) == (line.cost, 0, 0)
    sweep(at_once=True)
    assert len(workspace.lines()) == 1
    return line
