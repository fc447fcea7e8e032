"""Webhooks on the wire: a real receiver, what it is sent, what happens when it refuses, and who may see what."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid

import pytest

from billing.authority.destinations import Security
from billing.authority.outbound import Message, send
from billing.authority.sealing import seal
from tests.support.authority import AuthorityProcess
from tests.support.receiver import QUICK, eventually, signature, subscribe

pytestmark = pytest.mark.usefixtures("loopback_allowed")


def state(probe, made):
    return probe.admin.get(f"/v1/admin/webhooks/{made['subscription']['subscription_id']}").json()


def under_way(probe, made):
    """Deliveries that were begun, and of which nothing is written down yet."""
    path = f"/v1/admin/webhooks/{made['subscription']['subscription_id']}/deliveries"
    found = probe.admin.get(path).json()["deliveries"]
    return [one for one in found if one["status"] == "PENDING" and one["attempts"] > 0]


def test_a_delivery_is_signed_over_its_raw_body_with_the_whole_secret(acme, probe, receiver):
    made = subscribe(probe, acme.tenant_id, receiver.url, headers={"X-Team": "ops", "X-Cycles-Event-Id": "forged"})
    probe.fund(acme.tenant_id, "CREDIT", 5)
    headers, body = receiver.wait_for(1)[0]
    assert made["signing_secret"].startswith("whsec_")
    assert headers["x-cycles-signature"] == signature(made["signing_secret"], body)
    event = json.loads(body)
    assert (event["event_type"], event["tenant_id"]) == ("budget.funded", acme.tenant_id)
    assert headers["x-cycles-event-id"] == event["event_id"]
    assert headers["x-cycles-trace-id"] == event["trace_id"]
    assert headers["traceparent"].split("-")[1] == event["trace_id"]
    assert headers["x-team"] == "ops"
    assert probe.admin.get(f"/v1/admin/events/{event['event_id']}").json() == event


def test_a_refused_delivery_is_tried_again_with_the_same_event(acme, probe, receiver):
    receiver.statuses = [500, 302]
    made = subscribe(probe, acme.tenant_id, receiver.url)
    probe.fund(acme.tenant_id, "CREDIT", 5)
    got = receiver.wait_for(3)
    assert len({headers["x-cycles-event-id"] for headers, _ in got}) == 1
    path = f"/v1/admin/webhooks/{made['subscription']['subscription_id']}/deliveries"
    assert eventually(lambda: probe.admin.get(path).json()["deliveries"][0]["status"] == "SUCCESS")
    delivery = probe.admin.get(path).json()["deliveries"][0]
    assert (delivery["attempts"], delivery["response_status"]) == (3, 200)
    assert state(probe, made)["consecutive_failures"] == 0


def test_a_subscription_that_keeps_failing_is_disabled_and_told_of(acme, probe, receiver):
    receiver.statuses = [503] * 20
    policy = {**QUICK, "max_retries": 0}
    made = subscribe(probe, acme.tenant_id, receiver.url, retry_policy=policy, disable_after_failures=2)
    for _ in range(3):
        probe.fund(acme.tenant_id, "CREDIT", 1)
        time.sleep(0.1)
    assert eventually(lambda: state(probe, made)["status"] == "DISABLED")
    assert eventually(lambda: not under_way(probe, made))  # the third may have been sent beside the second
    query = {"tenant_id": acme.tenant_id, "event_type": "webhook.disabled"}
    assert len(probe.admin.get("/v1/admin/events", params=query).json()["events"]) == 1
    seen = len(receiver.got)
    probe.fund(acme.tenant_id, "CREDIT", 1)
    time.sleep(1.2)
    assert len(receiver.got) == seen
    identity = made["subscription"]["subscription_id"]
    resumed = probe.admin.patch(f"/v1/admin/webhooks/{identity}", json={"status": "ACTIVE"}).json()
    assert (resumed["status"], resumed["consecutive_failures"]) == ("ACTIVE", 0)


@pytest.mark.slow
def test_two_workers_deliver_once(authority, acme, probe, receiver):
    another = AuthorityProcess(authority.database_url, authority.admin_key)
    another.start()
    try:
        subscribe(probe, acme.tenant_id, receiver.url)
        for _ in range(25):
            probe.fund(acme.tenant_id, "CREDIT", 1)
        assert len(receiver.wait_for(25)) == 25
        time.sleep(1.5)
    finally:
        another.stop()
    ids = [headers["x-cycles-event-id"] for headers, _ in receiver.got]
    assert len(ids) == len(set(ids)) == 25


def test_a_refused_operation_tells_nobody(acme, probe, receiver):
    subscribe(probe, acme.tenant_id, receiver.url, event_types=["budget.debited", "budget.exhausted"])
    query = {"tenant_id": acme.tenant_id, "scope": acme.scope, "unit": "USD_MICROCENTS"}
    body = {"operation": "DEBIT", "amount": {"unit": "USD_MICROCENTS", "amount": 1_001}}
    assert probe.admin.post("/v1/admin/budgets/fund", params=query, json=body).status_code == 409
    assert acme.app.reserve(1_001).status_code == 409
    probe.fund(acme.tenant_id, "DEBIT", 400)
    acme.app.hold(600)
    kinds = [json.loads(body)["event_type"] for _, body in receiver.wait_for(2)]
    assert sorted(kinds) == ["budget.debited", "budget.exhausted"]


def test_a_paused_subscription_gets_nothing_and_a_replay_brings_it_later(acme, probe, receiver):
    made = subscribe(probe, acme.tenant_id, receiver.url)
    path = f"/v1/admin/webhooks/{made['subscription']['subscription_id']}"
    probe.admin.patch(path, json={"status": "PAUSED"})
    probe.fund(acme.tenant_id, "CREDIT", 5)
    time.sleep(1)
    assert receiver.got == []
    probe.admin.patch(path, json={"status": "ACTIVE"})
    assert probe.admin.post(f"{path}/replay", json={}).json()["events_queued"] == 1
    assert len(receiver.wait_for(1)) == 1


def test_a_close_disables_the_tenants_webhooks(acme, globex, probe, receiver):
    mine = subscribe(probe, acme.tenant_id, receiver.url)
    theirs = subscribe(probe, globex.tenant_id, receiver.url)
    probe.change_tenant(acme.tenant_id, status="CLOSED")
    assert state(probe, mine)["status"] == "DISABLED"
    assert state(probe, theirs)["status"] == "ACTIVE"
    refused = probe.admin.delete(f"/v1/admin/webhooks/{mine['subscription']['subscription_id']}")
    assert (refused.status_code, refused.json()["error"]) == (409, "TENANT_CLOSED")
    probe.admin.delete(f"/v1/admin/webhooks/{theirs['subscription']['subscription_id']}")


def test_a_test_call_is_signed_and_sent_at_once(acme, probe, receiver):
    made = subscribe(probe, acme.tenant_id, receiver.url)
    path = f"/v1/admin/webhooks/{made['subscription']['subscription_id']}/test"
    answer = probe.admin.post(path).json()
    assert (answer["success"], answer["response_status"]) == (True, 200)
    headers, body = receiver.got[0]
    assert headers["x-cycles-signature"] == signature(made["signing_secret"], body)
    receiver.statuses = [418]
    assert probe.admin.post(path).json()["success"] is False


def test_the_neighbour_sees_neither_webhooks_nor_events_nor_policies(authority, acme, globex, probe, receiver):
    made = subscribe(probe, acme.tenant_id, receiver.url)
    body = {"tenant_id": acme.tenant_id, "name": "p", "scope_pattern": f"{acme.scope}/*"}
    policy = probe.admin.post("/v1/admin/policies", json=body).json()
    key = probe.create_key(globex.tenant_id, permissions=["admin:read", "admin:write"])["key_secret"]

    def as_globex(method: str, path: str, **more):
        request = probe.admin.build_request(method, path, **more)
        del request.headers["X-Admin-API-Key"]
        request.headers["X-Cycles-API-Key"] = key
        return probe.admin.send(request)

    hook = f"/v1/webhooks/{made['subscription']['subscription_id']}"
    for method, path in (("GET", hook), ("DELETE", hook), ("POST", f"{hook}/test"), ("GET", f"{hook}/deliveries")):
        assert as_globex(method, path).json()["error"] == "WEBHOOK_NOT_FOUND"
    assert as_globex("PATCH", hook, json={"name": "mine now"}).json()["error"] == "WEBHOOK_NOT_FOUND"
    assert as_globex("PATCH", f"/v1/admin/policies/{policy['policy_id']}", json={"name": "x"}).status_code == 403
    assert acme.tenant_id not in as_globex("GET", "/v1/webhooks").text
    assert acme.tenant_id not in as_globex("GET", "/v1/admin/policies", params={"tenant_id": acme.tenant_id}).text
    assert acme.tenant_id not in as_globex("GET", "/v1/balances", params={"tenant_id": acme.tenant_id}).text
    events = as_globex("GET", "/v1/events", params={"tenant_id": acme.tenant_id, "limit": "100"})
    assert events.json()["events"]
    assert acme.tenant_id not in events.text
    assert as_globex("GET", "/v1/admin/events").status_code == 401
    assert receiver.got == []


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1/x", "https://[::1]/x", "https://[::ffff:10.0.0.1]/x", "https://0.0.0.0/x", "https://localhost/x",
     "https://a.localhost/x", "https://user@203.0.113.10/x", "http://203.0.113.10/x", "https://169.254.169.254/x",
     "https://203.0.113.10:99999/x", "https://bücher.example/x"],
)  # fmt: skip
def test_a_url_that_leads_inside_is_refused(url):
    assert Security().why_not(url) is not None


INSIDE = [
    "10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.0.1", "0.0.0.0", "0.1.2.3",  # noqa: S104
    "192.0.0.9", "192.88.99.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::8.8.8.8", "::ffff:8.8.8.8", "::ffff:10.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b::10.0.0.1",
    "64:ff9b:1::1", "100::1", "2001::1", "2001:20::1", "2002:0a00:0001::1", "2002:808:808::1", "5f00::1", "fc00::1",
    "fd12::1", "fe80::1", "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip
DOCUMENTATION = ["192.0.2.1", "198.51.100.1", "203.0.113.10", "2001:db8::1", "3fff::1"]
PUBLIC = ["8.8.8.8", "1.1.1.1", "203.0.112.1", "2606:4700:4700::1111", "2a00:1450::1"]


def url_of(address):
    return f"https://[{address}]/x" if ":" in address else f"https://{address}/x"


@pytest.mark.parametrize("more", [(), ("9.0.0.0/8",)])
def test_only_addresses_of_the_public_internet_are_gone_to(more):
    """The list that it starts with, or one with more in it. What is only documented may be stored, and not gone to."""
    strict = Security(blocked_cidr_ranges=(*Security().blocked_cidr_ranges, *more))
    assert [address for address in INSIDE if strict.why_not(url_of(address)) is None] == []
    assert [address for address in DOCUMENTATION if strict.why_not(url_of(address)) is not None] == []
    assert [address for address in INSIDE + DOCUMENTATION if not strict.blocked(address)] == []
    assert [address for address in PUBLIC if strict.blocked(address)] == []
    assert strict.blocked("fe80::1%eth0")


def test_an_operator_who_takes_a_range_off_the_list_decides_alone():
    opened = Security(blocked_cidr_ranges=("10.0.0.0/8", "fc00::/7"))
    inside = ["10.0.0.1", "::ffff:10.0.0.1", "::10.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::1"]
    assert [address for address in inside if not opened.blocked(address)] == []
    assert not any(map(opened.blocked, ["100.64.0.1", "127.0.0.1", "fe80::1", "64:ff9b::808:808", "203.0.113.10"]))
    assert not any(map(Security(blocked_cidr_ranges=()).blocked, INSIDE))


def test_an_address_is_judged_again_when_the_name_is_resolved(receiver):
    """A name that is public when it is stored and local when it is used must not reach the local server."""
    strict = Security(allow_http=True)
    message = Message(
        receiver.url.replace("127.0.0.1", "127.1"), seal("s" * 16), b"{}", "evt_1", "budget.funded", "0" * 32
    )
    outcome = send(message, strict)
    assert not outcome.delivered
    assert receiver.got == []


def test_a_receiver_who_never_finishes_is_cut_off(monkeypatch):
    monkeypatch.setattr("billing.authority.outbound.SECONDS_IN_ALL", 0.6)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=_drip, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        message = Message(url, seal("s" * 16), b"{}", "evt_1", "budget.funded", "0" * 32)
        outcome = send(message, Security(allow_http=True, blocked_cidr_ranges=()))
    assert outcome.error is not None
    assert "0.6 seconds" in outcome.error


def _drip(listener: socket.socket) -> None:
    peer, _ = listener.accept()
    try:
        while True:
            peer.sendall(b"H")
            time.sleep(0.1)
    except OSError:
        pass


def test_a_webhook_for_a_tenant_hears_of_no_keys(acme, probe):
    body = {"url": "https://203.0.113.10/x", "event_types": ["api_key.created"]}
    answer = probe.admin.post("/v1/admin/webhooks", params={"tenant_id": acme.tenant_id}, json=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "INVALID_REQUEST")
    name = f"acme-{uuid.uuid4().hex[:8]}"
    assert probe.admin.post("/v1/admin/webhooks", params={"tenant_id": name}, json=body).status_code == 400
