"""Requests that no sensible caller sends. None is a failure of the server, and none leaves a row behind that breaks the
list it is in."""

from __future__ import annotations

import base64
import json
import time

import pytest

from billing.authority.errors import Refusal
from billing.authority.wire import Action, Reserve, dumped, read

JSON = {"Content-Type": "application/json"}
BEFORE_ALL, AFTER_ALL = "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"


def cursor(**place) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


@pytest.mark.parametrize(("value", "identity"), [(5, "a"), (True, "a"), ("a", 5), ("a", True), (10**30, "a")])
@pytest.mark.parametrize("sort", ["status", "reserved", "reservation_id"])
def test_a_cursor_of_the_wrong_types_is_the_callers_mistake(acme, sort, value, identity):
    made_up = cursor(sort=sort, dir="asc", filters="x", value=value, id=identity)
    assert acme.app.http.get("/v1/reservations", params={"cursor": made_up}).status_code in (200, 400)


@pytest.mark.parametrize("place", [{"scope": 5, "unit": "a"}, {"scope": "a", "unit": True}])
def test_a_cursor_of_balances_of_the_wrong_types_is_the_callers_mistake(acme, place):
    query = {"tenant": acme.tenant_id, "cursor": cursor(**place)}
    assert acme.app.http.get("/v1/balances", params=query).status_code == 400


def test_a_cursor_nested_without_end_is_the_callers_mistake(acme):
    deep = base64.urlsafe_b64encode(b"[" * 20_000).decode()
    query = {"tenant": acme.tenant_id, "cursor": deep}
    assert acme.app.http.get("/v1/balances", params=query).status_code == 400


def with_metadata(body: dict[str, object], metadata: str) -> str:
    return f'{json.dumps(body)[:-1]}, "metadata": {metadata}}}'


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def test_a_number_that_json_cannot_write_is_refused_before_it_is_kept(acme):
    body = with_metadata({"idempotency_key": "large", **acme.app.request_body(1)}, '{"a": 1e400}')
    assert acme.app.http.post("/v1/reservations", content=body, headers=JSON).status_code == 400


# Most of these once were failures: each way that a value is written has a depth of its own at which it gives up.
@pytest.mark.parametrize("depth", [190, 210, 260, 400, 957, 963, 969, 975, 5_000])
def test_a_body_nested_without_end_is_the_callers_mistake(acme, probe, depth):
    wanted = 200 if depth < 200 else 400
    body = with_metadata({"idempotency_key": "deep", **acme.app.request_body(1)}, nested(depth))
    assert acme.app.http.post("/v1/reservations", content=body, headers=JSON).status_code == wanted
    shown = acme.app.http.get("/v1/reservations", params={"include": "metadata"})
    assert (shown.status_code, len(shown.json()["reservations"])) == (200, int(depth < 200))

    body = with_metadata({"tenant_id": acme.tenant_id, "name": "deep"}, nested(depth))
    made = probe.admin.post("/v1/admin/api-keys", content=body, headers=JSON)
    assert made.status_code == (201 if depth < 200 else 400)
    assert probe.admin.get("/v1/admin/api-keys", params={"tenant_id": acme.tenant_id}).status_code == 200


def test_many_brackets_side_by_side_are_not_deep(acme):
    body = with_metadata({"idempotency_key": "wide", **acme.app.request_body(1)}, json.dumps({"a": [[]] * 500}))
    assert acme.app.http.post("/v1/reservations", content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        '{"metadata": {"a": [' + "[]," * 340_000 + "[]]}}",
        '{"metadata": {"a": [' + ("[" * 900 + "]" * 900 + ",") * 500 + "[]]}}",
        "{" + ",".join(f'"{number}":[]' for number in range(100_000, 180_000)) + "}",
        '{"action": {"kind": "k", "name": "n", "tags": [' + "1," * 500_000 + "1]}}",
    ],
    ids=["lists", "deep lists", "unknown names", "wrong values"],
)
def test_a_body_of_very_many_values_is_refused_before_it_is_read(acme, probe, body):
    """At either plane: the runtime plane's loop stood still for 0.2 s, the admin plane took 0.5 s."""
    taken = []
    for _ in range(3):
        began = time.thread_time()
        with pytest.raises(Refusal, match="more than 20000 values"):
            read(Reserve, body.encode())
        taken.append(time.thread_time() - began)
    assert min(taken) < 0.1  # of this thread's own: others of this process, and a collection of garbage, are not meant
    assert acme.app.http.post("/v1/reservations", content=body, headers=JSON).status_code == 400
    assert probe.admin.post("/v1/admin/tenants", content=body, headers=JSON).status_code == 400


@pytest.mark.parametrize("kind", ["application/json; a*=nope''a", "application/json; a*=idna''%ff"])
def test_a_content_type_that_cannot_be_read_is_said_in_our_words(probe, kind):
    answer = probe.admin.post("/v1/admin/tenants", content="{}", headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]) == (415, "INVALID_REQUEST")


def test_commas_within_a_text_are_no_values(acme):
    text = json.dumps({"a": '[{\\", ' * 20_000})
    body = with_metadata({"idempotency_key": "text", **acme.app.request_body(1)}, text)
    assert acme.app.http.post("/v1/reservations", content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize("instant", [BEFORE_ALL, AFTER_ALL, "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
def test_an_instant_at_the_end_of_the_calendar_breaks_no_list(acme, probe, instant):
    key = {"tenant_id": acme.tenant_id, "name": "a key", "expires_at": instant}
    assert probe.admin.post("/v1/admin/api-keys", json=key).status_code in (201, 400)
    scope = {"scope": f"{acme.scope}/app:a", "unit": "TOKENS", "allocated": {"unit": "TOKENS", "amount": 1}}
    budget = {"tenant_id": acme.tenant_id, **scope, "period_start": instant, "period_end": instant}
    assert probe.admin.post("/v1/admin/budgets", json=budget).status_code in (201, 400)
    policy = {"tenant_id": acme.tenant_id, "name": "p", "scope_pattern": acme.scope, "effective_from": instant}
    assert probe.admin.post("/v1/admin/policies", json=policy).status_code in (201, 400)
    for path in ("api-keys", "budgets", "policies"):
        answer = probe.admin.get(f"/v1/admin/{path}", params={"tenant_id": acme.tenant_id})
        assert answer.status_code == 200, answer.text
    for path in ("/v1/admin/events", "/v1/admin/audit/logs"):
        assert probe.admin.get(path, params={"from": instant, "to": instant}).status_code in (200, 400)
    assert acme.app.http.get("/v1/reservations", params={"from": instant}).status_code in (200, 400)


@pytest.mark.parametrize("name", ["mine\x7f", "mi\tne", "\x01", "é"])
def test_a_request_id_that_no_header_can_carry_is_no_failure(probe, name):
    answer = probe.admin.get("/v1/admin/tenants?limit=1", headers={"X-Request-Id": name.encode("latin-1")})
    assert answer.status_code in (200, 400)
    assert probe.admin.get("/v1/admin/audit/logs?limit=1").status_code == 200


def test_an_empty_path_value_or_an_odd_one_is_no_failure(acme, probe):
    for odd in ("%00", "%ff", "%2e%2e", "%0a", "%F0%9F%98%80", "a" * 3_000):
        assert probe.admin.get(f"/v1/admin/tenants/{odd}").status_code in (400, 404)
        assert probe.admin.get(f"/v1/admin/webhooks/{odd}/deliveries").status_code in (400, 404)
        assert acme.app.http.get(f"/v1/reservations/{odd}").status_code in (400, 404)


@pytest.mark.parametrize(
    "value",
    [
        {"a": "\x00 \x7f é 😀 \u2028", "b": None, "c": [1.5, -0.0, 1e22, 1e-7, 10**30, True], "d": {}},
        {"half": "\ud800"},  # JSON can say it, UTF-8 cannot
        json.loads(nested(190)),
    ],
    ids=["many kinds", "half a pair", "deep"],
)
def test_what_is_kept_is_ascii_and_reads_as_it_came(value):
    text = dumped(value)
    assert text is not None
    assert text.isascii()
    assert "\x00" not in text
    assert repr(json.loads(text)) == repr(value)


def test_what_was_not_said_of_an_action_is_not_kept():
    assert json.loads(dumped(Action(kind="a", name="é", tags=None)) or "") == {"kind": "a", "name": "é"}
