"""Subjects to scopes, pure."""

from __future__ import annotations

import pytest

from billing.authority.scopes import ScopeError, parse_scope, permits, scopes_of


def test_levels_add_up_in_order_lowered_and_without_gaps():
    assert scopes_of({"app": "Web", "tenant": "Acme", "workflow": "C.1"}) == [
        "tenant:acme",
        "tenant:acme/app:web",
        "tenant:acme/app:web/workflow:c.1",
    ]
    assert scopes_of({"app": "web"}) == ["app:web"]


def test_a_budgets_scope_lowers_its_ids():
    assert parse_scope("tenant:acme/app:MiXed", "acme") == "tenant:acme/app:mixed"


@pytest.mark.parametrize(
    "text",
    ["", "acme", "tenant:globex", "tenant:acme/", "tenant:acme/APP:x", "tenant:acme/app:*", "tenant:acme/app:a b",
     "tenant:acme/app:x/workspace:y", "tenant:acme/app:x/app:y", "tenant:acme/colour:red", "tenant:acme\n"],
)  # fmt: skip
def test_a_scope_of_another_shape_is_no_budgets(text):
    with pytest.raises(ScopeError):
        parse_scope(text, "acme")


def test_a_filter_is_met_by_a_whole_segment_or_a_kind():
    scope = "tenant:acme/workspace:eng/app:web"
    assert permits(["workspace:eng"], scope)
    assert permits(["workspace:*"], scope)
    assert permits([], scope)
    assert permits(None, scope)
    assert not permits(["workspace:en"], scope)
    assert not permits(["workspace:eng/*"], scope)
