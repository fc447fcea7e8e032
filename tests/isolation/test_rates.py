"""One key's rates, two planes that are asked at once: as many calls pass as it may make, and never one more."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest

from billing.settlement import sweep
from tenants.users.models import ApiKey
from tests.support.crash import kill
from tests.support.jobs import rows, until
from tests.support.plane import PlaneProcess

pytestmark = pytest.mark.slow

MODEL = {"LLM_MODEL": "test-model", "LLM_PRICES": '{"test-model": {"input": 10, "output": 40}}'}


@pytest.fixture
def planes(database_url, authority, app, upstream_server):
    options = {"database_url": database_url, "authority": authority, "LLM_BASE_URL": upstream_server.base_url, **MODEL}
    with PlaneProcess(**options) as one, PlaneProcess(**options) as other:
        yield one, other


def test_two_planes_let_through_what_the_key_may_and_a_dead_one_s_calls_count_until_they_are_swept(
    workspace, planes, upstream
):
    def rated(**rates):
        secret = workspace.key()
        with workspace.scope():
            ApiKey.objects.filter(pk=ApiKey.objects.latest("pk").pk).update(rates=rates)
        return secret

    def statuses(secret, many):
        def call(number):
            with planes[number % 2].client(workspace, secret) as client:
                return client.post("/api/chat/", json={"prompt": "hello", "max_tokens": 20})

        with ThreadPoolExecutor(many) as pool:
            found = []
            for asked in as_completed([pool.submit(call, number) for number in range(many)]):
                found.append(asked.result().status_code)
                if found.count(429) == many - 3:
                    upstream.last_word_after.set()
        return found.count(200), found.count(429)

    upstream.last_word_after = threading.Event()
    upstream.last_word_after.set()
    began, secret = time.monotonic(), rated(requests=9)
    passed, refused = statuses(secret, 40)
    # And what the bucket has drained meanwhile, on a machine that takes long for forty.
    assert 9 <= passed <= 9 + (time.monotonic() - began) * 9 / 60
    assert passed + refused == 40
    upstream.last_word_after = threading.Event()  # the first three are under way until all others were refused
    assert statuses(rated(concurrent=3), 24) == (3, 21)
    # The plane that has a call under way is killed, and the other one asked.
    secret, upstream.delay_first = rated(concurrent=1), 30.0
    with ThreadPoolExecutor(1) as pool, planes[0].client(workspace, secret) as client:
        lost = pool.submit(client.post, "/api/chat/", json={"prompt": "hello", "max_tokens": 20})
        until(workspace.holds)
        kill(planes[0].process)
        assert lost.exception() is not None
    upstream.delay_first = 0
    with planes[1].client(workspace, secret) as client:
        ask = {"prompt": "hello", "max_tokens": 20}
        assert client.post("/api/chat/", json=ask).json()["limit"] == "concurrent"
        rows("UPDATE public.billing_process SET seen_at = now() - interval '1 minute' WHERE kind = 'plane'")
        sweep(at_once=True)
        assert workspace.holds() == 0
        # A moment later the plane asks the rows again.
        until(lambda: client.post("/api/chat/", json=ask).status_code == 200, seconds=10)
    assert workspace.settled(lines=14)
