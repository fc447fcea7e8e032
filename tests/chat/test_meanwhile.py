"""A request may wait for long before its call: what may be called is what is allowed by then, not when it came."""

from __future__ import annotations

import json
import threading
import time

import pytest
from django.db import connection
from django.utils import timezone

from tenants.models import Tenant
from tenants.users.keys import digest
from tenants.users.models import ApiKey, User
from tests.support.plane import PlaneResponse
from tests.support.raw_model import RawModel

PRICE = 1_000 * 10**6
OVERLOADED = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
V1 = ("/v1/chat/completions", {"model": "smart", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5})
CHAT = ("/api/chat/", {"model": "smart", "prompt": "hello", "max_tokens": 5})


@pytest.fixture
def goes_on():
    """Set: the model that everybody waits for says that it has no time."""
    return threading.Event()


@pytest.fixture(autouse=True)
def slow_model(upstream, goes_on, settings):
    def late(line):
        while not goes_on.is_set():
            line.wait(0.02)
        line.send(OVERLOADED)

    upstream.tokens = ["second"]
    settings.BUDGET_WAIT_SECONDS = 30  # whoever waits for money waits for as long as a test takes to go on
    with RawModel(late) as slow:
        settings.MODELS = {
            "slow": _model(slow.base_url),
            "big": _model(upstream.base_url),
            "smart": {"fallback": ["slow", "big"]},
        }
        yield slow
        goes_on.set()


def _model(base_url):
    dialect = {"base_url": base_url}
    return {"price": {"input": PRICE, "output": PRICE}, "context": None, "kinds": ["chat"], "dialect": dialect}


def of_key(workspace, key, **changed):
    with workspace.scope():
        ApiKey.objects.filter(digest=digest(key)).update(**changed)


def revoked(workspace, key):
    of_key(workspace, key, revoked_at=timezone.now())


def of_other_models(workspace, key):
    of_key(workspace, key, allowed_models=["big"])


def of_a_lower_rate(workspace, key):
    of_key(workspace, key, rates={"tokens": 1})


def of_a_viewer(workspace, key):
    with workspace.scope():
        User.objects.update(role="viewer")


def suspended(workspace, key):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(status=Tenant.Status.SUSPENDED)


def of_a_workspace_with_other_models(workspace, key):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(allowed_models=["big"])


CHANGES = [
    (revoked, 401),
    (of_other_models, 403),
    (of_a_viewer, 403),
    (suspended, 403),
    (of_a_workspace_with_other_models, 403),
]


def in_a_thread(change, workspace, key):
    change(workspace, key)
    connection.close()


def spent(workspace):
    workspace.settled()
    return workspace.ledger()["spent"]


def later():
    """What was known when the request came holds for a moment."""
    time.sleep(1.0 + 0.1)


@pytest.mark.parametrize("door", [V1, CHAT], ids=["v1", "chat"])
@pytest.mark.parametrize(("change", "status"), CHANGES)
def test_a_groups_next_model_is_not_called_for_who_may_no_more(
    workspace, upstream, slow_model, goes_on, door, change, status
):
    key = workspace.key()
    path, body = door
    under_way = workspace.api(key).plane.begin("POST", path, body)
    assert slow_model.wait_until(lambda model: model.requests)
    change(workspace, key)
    later()
    goes_on.set()
    assert PlaneResponse(under_way).status_code == status
    assert (upstream.calls, spent(workspace)) == ([], 0)


@pytest.mark.parametrize(("change", "status"), CHANGES[:2])
def test_nor_is_a_model_called_for_an_equal_request_that_waited(
    workspace, upstream, slow_model, goes_on, change, status
):
    """Its first one came to nothing, so that it would be made again."""
    key = workspace.key()
    path, body = V1
    first, again = ([workspace.api(key).plane, {"idempotency-key": "once"}] for _ in range(2))
    body = {**body, "model": "slow"}
    under_way = first[0].begin("POST", path, body, headers=first[1])
    assert slow_model.wait_until(lambda model: model.requests)
    waiting = again[0].begin("POST", path, body, headers=again[1])
    time.sleep(0.3)
    change(workspace, key)
    later()
    goes_on.set()
    assert [PlaneResponse(one).status_code for one in (under_way, waiting)] == [503, status]
    assert (len(slow_model.requests), spent(workspace)) == (1, 0)


@pytest.mark.parametrize(("change", "status"), [CHANGES[0], (of_a_lower_rate, 429)])
def test_nor_for_who_waited_for_money_that_others_held(workspace, upstream, slow_model, goes_on, change, status):
    key, others = workspace.key(), workspace.key()
    path, body = V1
    workspace.leave(400_000)
    holds = workspace.api(others).plane.begin("POST", path, {**body, "model": "slow"})
    assert slow_model.wait_until(lambda model: model.requests)
    waiting = workspace.api(key).plane.begin("POST", path, {**body, "model": "big"})
    time.sleep(0.3)
    assert workspace.ledger()["reserved"] > 200_000
    before = workspace.ledger()["spent"]
    change(workspace, key)
    later()
    goes_on.set()
    assert [PlaneResponse(one).status_code for one in (holds, waiting)] == [503, status]
    assert (upstream.calls, spent(workspace)) == ([], before)


def test_nor_for_a_body_that_took_its_time(workspace, upstream):
    key = workspace.key()
    text = json.dumps({**V1[1], "model": "big"}).encode()

    class Slow(list):
        """Its second half comes after the key was revoked."""

        def pop(self, place):
            if len(self) == 1:
                beside = threading.Thread(target=in_a_thread, args=(revoked, workspace, key))
                beside.start()
                beside.join()
                later()
            return super().pop(place)

    answer = workspace.api(key).plane.post(V1[0], Slow([text[:20], text[20:]]))
    assert (answer.status_code, upstream.calls) == (401, [])


def test_whoever_signs_out_meanwhile_has_asked_before(workspace, upstream, slow_model, goes_on):
    browser = workspace.client(workspace.owner)
    plane = workspace.plane(browser)
    token = browser.get("/").context["csrf_token"]
    path, body = CHAT
    plane.cookies = browser.cookies
    under_way = plane.begin("POST", path, body, headers={"x-csrftoken": str(token)})
    assert slow_model.wait_until(lambda model: model.requests)
    browser.post("/logout/")
    later()
    goes_on.set()
    assert PlaneResponse(under_way).json()["response"] == "second"


def test_who_may_still_ask_is_answered_after_any_wait(workspace, upstream, slow_model, goes_on):
    for path, body in (V1, CHAT):
        goes_on.clear()
        before = len(slow_model.requests)
        under_way = workspace.api().plane.begin("POST", path, body)
        assert slow_model.wait_until(lambda model, before=before: len(model.requests) > before)
        later()
        goes_on.set()
        assert PlaneResponse(under_way).status_code == 200
    assert len(upstream.calls) == 2
