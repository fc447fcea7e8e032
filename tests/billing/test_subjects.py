"""One subject for every call, and which ledgers it meets."""

import itertools

import pytest

from billing.authority import scopes
from billing.subjects import can_be_met, name_of, scopes_of, subject_for

SEAT = "tenant:ws-x/workspace:user-7"


def subject(**levels):
    return subject_for(**{"tenant": "ws-x", "user_id": 7, "app": "chat", **levels})


def test_a_call_names_its_seat_and_feature_and_what_else_there_is():
    assert subject() == {"tenant": "ws-x", "workspace": "user-7", "app": "chat"}
    assert subject(workflow="conversation-3", key_id=2, dimensions={"plan": "trial"}) == {
        "tenant": "ws-x",
        "workspace": "user-7",
        "app": "chat",
        "workflow": "conversation-3",
        "agent": "key-2",
        "dimensions": {"plan": "trial"},
    }


@pytest.mark.parametrize(
    "wrong",
    [
        *({"user_id": odd} for odd in ("7", "abc", -1, True, 2**63, 1.0)),
        *({"key_id": odd} for odd in ("abc", -1, 2**63)),
        *({"app": odd} for odd in (None, "", "my app", "häiku", "x" * 129, 5)),
        *({"workflow": odd} for odd in ("", "a b", "w" * 129)),
        *(
            {"dimensions": odd}
            for odd in ({"a": 5}, {"a": "x" * 257}, {"a": "\x00"}, ["a"], dict.fromkeys("0123456789abcdefg", "v"))
        ),
    ],
    ids=str,
)
def test_what_a_subject_cannot_carry_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=r"^(user_id|key_id|app|workflow|dimensions) .*: write "):
        subject(**wrong)


def test_work_that_no_member_asked_for_has_a_seat_too():
    assert subject(user_id=None)["workspace"] == "system"


def test_a_members_key_stays_below_the_members_seat():
    assert scopes_of(subject(key_id=2)) == [
        "tenant:ws-x",
        SEAT,
        f"{SEAT}/app:chat",
        f"{SEAT}/app:chat/agent:key-2",
    ]


def test_scopes_are_written_as_the_authority_writes_them():
    for named in (subject(app="Report.v2"), subject(workflow="Big-One", key_id=9, dimensions={"a": "b"})):
        levels = {level: value for level, value in named.items() if level != "dimensions"}
        assert scopes_of(named) == scopes.scopes_of(levels)


def test_every_scope_of_every_subject_can_be_met():
    for user_id, workflow, key_id in itertools.product((7, None), ("conversation-3", None), (2, None)):
        for scope in scopes_of(subject(user_id=user_id, workflow=workflow, key_id=key_id)):
            assert can_be_met(scope)


@pytest.mark.parametrize(
    "scope",
    [
        "tenant:ws-x/app:summarize",
        "tenant:ws-x/agent:key-2",
        "tenant:ws-x/workflow:conversation-3",
        "tenant:ws-x/workspace:sales",
        "tenant:ws-x/workspace:user-",
        f"{SEAT}/workflow:conversation-3",
        f"{SEAT}/agent:key-2",
        f"{SEAT}/app:chat/agent:robot",
        f"{SEAT}/app:chat/agent:key-2/workflow:conversation-3",
        f"{SEAT}/app:chat/toolset:web",
        f"{SEAT}/",
        "workspace:user-7",
        "",
    ],
)
def test_a_scope_that_no_call_names_cannot_be_met(scope):
    assert not can_be_met(scope)


@pytest.mark.parametrize("app", ["", "my app", "-chat", "chat/", "chät", "a" * 129])
def test_a_name_that_no_ledger_could_have_is_refused_at_once(app):
    with pytest.raises(ValueError, match="app"):
        subject(app=app)


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        ("tenant:ws-x", "this workspace's budget"),
        (SEAT, "your budget in this workspace"),
        (f"{SEAT}/app:chat", "your budget for chat"),
        (f"{SEAT}/app:chat/workflow:conversation-3", "this conversation's budget"),
        (f"{SEAT}/app:chat/workflow:report", "the budget for report"),
        (f"{SEAT}/app:chat/agent:key-2", "this API key's budget"),
        ("tenant:ws-x/workspace:system", "the budget for this workspace's own work"),
        ("tenant:ws-x/workspace:system/app:digest", "the budget for digest"),
        (None, "this workspace's budget"),
    ],
)
def test_a_budget_has_a_name_for_people(scope, name):
    assert name_of(scope) == name
