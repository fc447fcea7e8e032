"""The stock clients pointed at a plane process: what users' programs do, by the packages that users install.

`door` is the plane and makes clients of it, `Sent` is what one really sent. The packages are loaded where they are
used: every worker of a run reads all files of tests, and LangChain alone would cost each a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tenants.users.keys import digest
from tenants.users.models import ApiKey
from tests.support.plane import PlaneProcess

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

# Dollars a million tokens. In and out, 1,000 and 4,000 microcents a token for the first.
PRICES = {
    "test-model": {"input": 10, "output": 40},
    "small-model": {"input": 1, "output": 4},
    "embed-model": {"input": 1, "output": 0},
}
HELLO = [{"role": "user", "content": "hello"}]
ASK: dict[str, Any] = {"model": "test-model", "messages": HELLO}


class Sent:
    """The requests that a client has sent, each with the status that came back."""

    def __init__(self) -> None:
        self.statuses: list[int] = []

    def note(self, response: Any) -> None:
        self.statuses.append(response.status_code)

    async def anote(self, response: Any) -> None:
        self.note(response)


class Door:
    """Makes clients of one plane. They get a base URL and a key, as the README says, and nothing else."""

    def __init__(self, plane: PlaneProcess) -> None:
        self.plane = plane
        self.base_url = f"http://127.0.0.1:{plane.port}/v1"

    def headers(self, workspace: Any = None) -> dict[str, str]:
        """The Host that a client's own address would send: the bare one, or the workspace's own."""
        # 127.0.0.1 is no host of ours, and not every resolver knows *.localhost.
        return {"Host": f"localhost:{self.plane.port}" if workspace is None else f"{workspace.host}:{self.plane.port}"}

    def http(self, sent: Sent | None = None) -> Any:
        """The stock client's own way to send, by which it is seen how often it does."""
        from openai import DefaultHttpxClient

        return DefaultHttpxClient(event_hooks={"response": [(sent or Sent()).note]}, trust_env=False)

    def client(self, key: str, *, at: Any = None, sent: Sent | None = None, **options: Any) -> OpenAI:
        from openai import OpenAI

        facts: dict[str, Any] = {
            "base_url": self.base_url,
            "default_headers": self.headers(at),
            "http_client": self.http(sent),
        }
        return OpenAI(api_key=key, **facts, **options)

    def aclient(self, key: str, *, sent: Sent | None = None, **options: Any) -> AsyncOpenAI:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        http = DefaultAsyncHttpxClient(event_hooks={"response": [(sent or Sent()).anote]}, trust_env=False)
        facts: dict[str, Any] = {"base_url": self.base_url, "default_headers": self.headers(), "http_client": http}
        return AsyncOpenAI(api_key=key, **facts, **options)


@pytest.fixture(scope="session")
def openai() -> Any:
    """The package, loaded once a test asks for it."""
    import openai

    return openai


@pytest.fixture(scope="session")
def door(database_url: str, authority: Any, app: Any, upstream_server: Any) -> Iterator[Door]:
    variables = {
        "DJANGO_SETTINGS_MODULE": "tests.support.patient_settings",
        "LLM_BASE_URL": upstream_server.base_url,
        "LLM_API_KEY": "sk-upstream-secret",
        "LLM_MODEL": "test-model",
        "LLM_PRICES": json.dumps(PRICES),
        "LLM_DIALECT": json.dumps({"test-model": {"image_tokens": 1_000}}),
        "TOP_UP_URL": "https://pay.example/top-up",
        # Held money is refused soon, so that tests see what a client does about it.
        "BUDGET_WAIT_SECONDS": "0.2",
    }
    with PlaneProcess(database_url=database_url, authority=authority, **variables) as plane:
        yield Door(plane)


def limit(workspace: Any, key: str, **rates: int) -> None:
    """Give the key these rates."""
    with workspace.scope():
        ApiKey.objects.filter(digest=digest(key)).update(rates=rates)
