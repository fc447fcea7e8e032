"""What surrounds an answer: ids that a caller can follow, the tenant, the media type."""

from __future__ import annotations

import pytest

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def test_a_runtime_answer_names_its_tenant_and_its_own_request_id(acme):
    answer = acme.app.http.get("/v1/reservations", headers={"X-Request-Id": "mine", "traceparent": PARENT})
    assert answer.headers["x-cycles-tenant"] == acme.tenant_id
    assert answer.headers["x-ratelimit-remaining"] == "-1"
    assert answer.headers["x-cycles-trace-id"] == TRACE
    assert answer.headers["x-request-id"] != "mine"


def test_an_admin_answer_echoes_the_request_id(probe):
    answer = probe.admin.get("/v1/admin/tenants/none", headers={"X-Request-Id": "mine", "traceparent": PARENT})
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "mine"
    assert answer.json()["trace_id"] == TRACE


@pytest.mark.parametrize(
    "parent",
    [f"ff-{TRACE}-b7ad6b7169203331-01", f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-{TRACE}-{'0' * 16}-01", "nonsense"],
)
def test_a_trace_that_is_none_is_replaced(acme, parent):
    answer = acme.app.http.get("/v1/reservations", headers={"traceparent": parent})
    assert answer.headers["x-cycles-trace-id"] not in (TRACE, "0" * 32)
    assert len(answer.headers["x-cycles-trace-id"]) == 32


def test_a_401_gives_nothing_away(acme):
    answer = acme.app.http.get("/v1/reservations", headers={"X-Cycles-API-Key": "cyc_live_nobody"})
    assert answer.status_code == 401
    assert not {"x-cycles-tenant", "x-ratelimit-remaining"} & set(answer.headers)


def test_a_query_that_no_text_column_takes_is_a_callers_mistake(acme, probe):
    assert acme.app.http.get("/v1/reservations?idempotency_key=%00").status_code == 400
    assert acme.app.http.get("/v1/balances?app=%00").status_code == 400
    assert probe.admin.get("/v1/admin/tenants?search=%00").status_code == 400
    assert probe.admin.get("/v1/admin/budgets/lookup?unit=TOKENS&scope=%00").status_code == 400
    assert probe.admin.get("/v1/admin/budgets?cursor=%00").status_code == 400


def test_head_and_options_answer_without_a_body(acme, probe):
    head = acme.app.http.head("/v1/balances", params={"tenant": acme.tenant_id})
    assert (head.status_code, head.content) == (200, b"")
    assert acme.app.http.options("/v1/decide").headers["allow"] == "OPTIONS, POST"
    assert probe.admin.put("/v1/admin/tenants").headers["allow"] == "GET, POST"


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "PATH_INFO", "X-Script-Name", "X-Forwarded-Prefix"])
@pytest.mark.parametrize("value", ["/v1", "/evil"])
def test_a_client_on_this_machine_does_not_say_where_a_plane_is_mounted(acme, probe, name, value):
    for plane, path in ((probe.admin, f"/v1/admin/tenants/{acme.tenant_id}"), (acme.app.http, "/v1/reservations")):
        assert plane.get(path, headers={name: value}).status_code == 200
