"""LangChain's client, an agent framework and curl against a real plane: each reads an answer in a way of its own.

The packages are loaded by the tests that use them, for every worker of a run reads this file.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess

import pytest
from pydantic import BaseModel

from tests.support.clients import Sent

pytestmark = pytest.mark.usefixtures("upstream")


class City(BaseModel):
    """A city and how many live there."""

    name: str
    people: int


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def called(name, /, **arguments):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"tool_calls": [{"id": "call-0", "type": "function", "function": function}]}


@pytest.fixture
def key(workspace):
    return workspace.key()


# --- LangChain ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sent():
    return Sent()


@pytest.fixture
def chat(door, key, sent):
    from langchain_openai import ChatOpenAI

    facts = {"base_url": door.base_url, "default_headers": door.headers(), "http_client": door.http(sent)}
    return ChatOpenAI(model="test-model", api_key=key, **facts)


def test_langchain_asks_and_counts(chat, workspace):
    answer = chat.invoke("hello")
    assert answer.content == "Hello, world."
    assert (answer.usage_metadata["input_tokens"], answer.usage_metadata["output_tokens"]) == (10, 4)
    assert [line.cost for line in workspace.settled(lines=1)] == [26_000]


def test_langchain_streams_and_counts(chat, workspace):
    chunks = list(chat.stream("hello"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.content == "Hello, world."
    assert (whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"]) == (10, 4)
    assert whole.response_metadata["finish_reason"] == "stop"
    assert [line.cost for line in workspace.settled(lines=1)] == [26_000]


def test_langchain_calls_a_tool_and_gives_its_result_back(chat, upstream):
    with_tools = chat.bind_tools([weather])
    upstream.message = lambda body: called("weather", city="Rome")
    question = {"role": "user", "content": "How is Rome?"}
    asked = with_tools.invoke([question])
    (call,) = asked.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Rome"})
    upstream.message = None
    result = {"role": "tool", "tool_call_id": call["id"], "content": weather(**call["args"])}
    assert with_tools.invoke([question, asked, result]).content == "Hello, world."
    assert [message["role"] for message in upstream.calls[-1]["messages"]] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_reads_a_shape(chat, upstream, method):
    rome = {"name": "Rome", "people": 3}
    upstream.message = lambda body: called("City", **rome) if body.get("tools") else {"content": json.dumps(rome)}
    assert chat.with_structured_output(City, method=method).invoke("Rome?") == City(**rome)


def test_langchain_raises_a_refusal_that_was_sent_once(chat, sent, workspace, upstream):
    from openai import APIStatusError

    workspace.leave(1_000)
    with pytest.raises(APIStatusError) as refused:
        chat.invoke("hello")
    assert (sent.statuses, refused.value.code, upstream.calls) == ([402], "budget_exhausted", [])


# --- an agent -------------------------------------------------------------------------------------------------------


def an_agent_with_a_tool(client, **options):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel("test-model", provider=OpenAIProvider(openai_client=client))
    agent = Agent(model, **options)
    agent.tool_plain(lambda city: f"3 people in {city}", name="people", description="How many live in a city.")
    return agent


def who_asks_its_tool_first(body):
    """The model of an agent: it calls the tool, and then gives the result by the agent's own."""
    if body["messages"][-1]["role"] != "tool":
        return called("people", city="Rome")
    final = next((t["function"]["name"] for t in body["tools"] if t["function"]["name"] != "people"), None)
    return called(final, name="Rome", people=3) if final else {"content": "Three."}


def test_an_agent_calls_its_tool_and_gives_a_shape(door, key, workspace, upstream):
    upstream.message = who_asks_its_tool_first

    async def run():
        async with door.aclient(key) as client:
            return await an_agent_with_a_tool(client, output_type=City).run("Who lives in Rome?")

    result = asyncio.run(run())
    assert result.output == City(name="Rome", people=3)
    assert upstream.calls[-1]["messages"][-1]["content"] == "3 people in Rome"
    assert len(workspace.settled(lines=2)) == 2


def test_an_agent_streams_its_shape(door, key, workspace, upstream):
    upstream.message = who_asks_its_tool_first

    async def run():
        async with door.aclient(key) as client:
            agent = an_agent_with_a_tool(client, output_type=City)
            async with agent.run_stream("Who lives in Rome?") as result:
                return await result.get_output(), result.usage

    output, usage = asyncio.run(run())
    assert output == City(name="Rome", people=3)
    assert usage.requests == 2
    assert usage.input_tokens == 20
    assert len(workspace.settled(lines=2)) == 2


def test_an_agent_whose_money_ends_stops_at_once(door, key, sent, workspace, upstream):
    from pydantic_ai import ModelHTTPError

    upstream.message = who_asks_its_tool_first
    workspace.leave(1_000)

    async def run():
        async with door.aclient(key, sent=sent) as client:
            await an_agent_with_a_tool(client).run("Who lives in Rome?")

    with pytest.raises(ModelHTTPError) as refused:
        asyncio.run(run())
    assert (refused.value.status_code, refused.value.body["code"]) == (402, "budget_exhausted")
    assert (sent.statuses, upstream.calls) == ([402], [])


# --- curl -----------------------------------------------------------------------------------------------------------


def test_curl_needs_a_key_alone(door, key):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed here.")
    command = [
        "curl",
        "-sN",
        "--noproxy",
        "*",
        f"{door.base_url}/chat/completions",
        "-H",
        f"Authorization: Bearer {key}",
    ]
    command += ["-H", f"Host: {door.headers()['Host']}", "-H", "Content-Type: application/json", "-d"]
    ask = {"model": "test-model", "messages": [{"role": "user", "content": "hello"}]}
    whole = subprocess.run([*command, json.dumps(ask)], capture_output=True, check=True, timeout=20)
    assert json.loads(whole.stdout)["choices"][0]["message"]["content"] == "Hello, world."
    stream = subprocess.run(
        [*command, json.dumps({**ask, "stream": True})], capture_output=True, check=True, timeout=20
    )
    *_, last, done, empty = stream.stdout.decode().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["budget"]["cost"] == "0.00026"
    assert (done, empty) == ("data: [DONE]", "")
