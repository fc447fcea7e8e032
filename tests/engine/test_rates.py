"""How much a key may ask for: requests and tokens a minute, calls at once, counted as they are dispatched."""

from __future__ import annotations

import math
import threading
import time

import pytest

from billing.engine.loop import here
from billing.engine.statements import FORGET_RATES
from billing.rates import Left, Rates, as_duration, rates_of
from billing.subjects import Key
from tenants.users.models import ApiKey
from tests.support.jobs import rows
from tests.support.money import eventually, is_settled, on_loop, reservations_of, side_by_side

pytestmark = pytest.mark.usefixtures("upstream", "model")


def rated(workspace, user=None, **rates):
    """The secret of a new key with these rates, and its number."""
    secret = workspace.key(user)
    with workspace.scope():
        key = ApiKey.objects.latest("pk")
        ApiKey.objects.filter(pk=key.pk).update(rates=rates or None)
    return secret, key.pk


def statuses(responses):
    found = sorted(response.status_code for response in responses)
    return found.count(200), found.count(429)


def later(workspace, seconds):
    """As if so much time had gone by: for the database, and for what this process remembers."""
    rows(
        "UPDATE public.billing_keyrate SET requests_at = requests_at - make_interval(secs => %s),"
        " tokens_at = tokens_at - make_interval(secs => %s) WHERE account_id = %s",
        seconds, seconds, workspace.account.pk,
    )  # fmt: skip
    on_loop(lambda: here().full_keys._full.clear())


def test_as_many_requests_pass_as_a_key_may_send_and_one_more_each_time_that_one_has_drained(workspace):
    api, began = workspace.api(rated(workspace, requests=4)[0]), time.monotonic()
    answers = side_by_side(api, 12)
    took = time.monotonic() - began
    assert statuses(answers) == (4, 8)
    assert eventually(lambda: is_settled(workspace))
    assert len(workspace.settled(lines=4)) == 4
    refused = next(answer for answer in answers if answer.status_code == 429)
    body = refused.json()
    assert (body["error"], body["limit"], body["allowed"]) == ("rate_limited", "requests", 4)
    assert 14_990 - 1_000 * took < body["retry_after_ms"] <= 15_000
    assert int(refused["Retry-After"]) == math.ceil(body["retry_after_ms"] / 1_000)
    assert refused["x-ratelimit-limit-requests"] == "4"
    assert refused["x-ratelimit-remaining-requests"] == "0"
    assert not refused.has_header("x-ratelimit-limit-tokens")
    later(workspace, 15)
    assert statuses(side_by_side(api, 3)) == (1, 2)


def test_what_is_refused_is_not_held_at_the_authority_and_the_next_ones_do_not_reach_it(workspace):
    api = workspace.api(rated(workspace, requests=1)[0])
    assert (api.chat().status_code, api.chat().status_code) == (200, 429)
    assert eventually(lambda: is_settled(workspace))
    asked = len(reservations_of(workspace))
    assert statuses([api.chat() for _ in range(5)]) == (0, 5)
    assert len(reservations_of(workspace)) == asked == 2


def test_a_raised_limit_counts_at_once(workspace):
    secret, pk = rated(workspace, requests=1)
    api = workspace.api(secret)
    assert (api.chat().status_code, api.chat().status_code) == (200, 429)
    with workspace.scope():
        ApiKey.objects.filter(pk=pk).update(rates={"requests": 2})
    assert (api.chat().status_code, api.chat().status_code) == (200, 429)


def test_no_other_key_is_affected_neither_the_same_member_s_nor_the_neighbour_s(workspace, globex):
    secret, pk = rated(workspace, requests=1)
    full = workspace.api(secret)
    assert (full.chat().status_code, full.chat().status_code) == (200, 429)
    assert workspace.api(rated(workspace, requests=1)[0]).chat().status_code == 200
    assert workspace.api().chat().status_code == 200
    # Of the same number: a count by that alone would find the neighbour's.
    secret, other = rated(globex, requests=1)
    with globex.scope():
        ApiKey.objects.exclude(pk=other).delete()
        ApiKey.objects.filter(pk=other).update(id=pk)
    assert globex.api(secret).chat().status_code == 200
    assert full.chat().status_code == 429


def nothing_is_under_way(workspace):
    """For this process, which hears of it after the database."""
    return on_loop(lambda: workspace.account.subject_tenant not in here().under_way)


def test_calls_under_way_are_those_whose_holds_there_are(workspace, upstream):
    secret, pk = rated(workspace, concurrent=2)
    api = workspace.api(secret)
    upstream.last_word_after = threading.Event()
    answers = side_by_side(api, 6, end=upstream.last_word_after.set, under_way=2)
    assert statuses(answers) == (2, 4)
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert (refused.json()["limit"], refused["Retry-After"]) == ("concurrent", "1")
    # The next one need not wait for what this process remembers.
    assert eventually(lambda: nothing_is_under_way(workspace))
    assert api.chat().status_code == 200
    assert eventually(lambda: nothing_is_under_way(workspace))
    # Left by a process that died: it counts until the sweep has settled it, and no longer.
    for _ in range(2):
        rows(
            "INSERT INTO public.billing_hold (id, account_id, rated_key, reservation_id, subject, action_kind,"
            " action_name, model, estimate, slices, created_at, used, overrun, outcome, is_final) VALUES"
            " (gen_random_uuid(), %s, %s, '', '{}', 'k', 'n', '', 0, '[]', now(), 0, 0, 'swept', false)",
            workspace.account.pk, pk,
        )  # fmt: skip
    assert api.chat().json()["limit"] == "concurrent"
    rows("DELETE FROM public.billing_hold WHERE account_id = %s AND reservation_id = ''", workspace.account.pk)
    on_loop(lambda: here().full_keys._full.clear())
    assert api.chat().status_code == 200


def drained(began):
    """Tokens at most, since then, of 600 a minute."""
    return 10 * (time.monotonic() - began)


def test_tokens_are_counted_by_what_may_be_used_and_corrected_to_what_was(workspace, upstream):
    upstream.usage = {"prompt_tokens": 30, "completion_tokens": 20, "total_tokens": 50}
    api, began = workspace.api(rated(workspace, tokens=600)[0]), time.monotonic()
    first = api.chat(max_tokens=500)
    assert first.status_code == 200, first.content
    assert first["x-ratelimit-limit-tokens"] == "600"
    assert int(first["x-ratelimit-remaining-tokens"]) < 100 + drained(began)
    assert eventually(lambda: is_settled(workspace))
    second = api.chat(max_tokens=500)
    assert second.status_code == 200, second.content
    assert eventually(lambda: is_settled(workspace))
    left = rows("SELECT tokens FROM public.billing_keyrate WHERE account_id = %s", workspace.account.pk)[0][0]
    assert 100 - drained(began) <= left <= 100
    # Two at once do not both fit, whatever they would use.
    upstream.last_word_after = threading.Event()
    answers = side_by_side(api, 2, max_tokens=300, end=upstream.last_word_after.set, under_way=1)
    assert statuses(answers) == (1, 1)
    refused = next(answer for answer in answers if answer.status_code == 429).json()
    assert (refused["limit"], refused["allowed"]) == ("tokens", 600)
    too_large = api.chat(max_tokens=900)
    assert (too_large.status_code, too_large.json()["retry_after_ms"]) == (429, None)
    assert "waiting would not help" in too_large.json()["message"]


def test_the_operator_s_figure_holds_for_every_key_and_a_key_s_own_only_below_it(workspace, settings):
    settings.KEY_RATES = {"requests": 2}
    assert statuses([workspace.api(workspace.key()).chat() for _ in range(1)]) == (1, 0)
    plain, above = workspace.api(workspace.key()), workspace.api(rated(workspace, requests=50)[0])
    assert statuses([plain.chat() for _ in range(3)]) == (2, 1)
    assert statuses([above.chat() for _ in range(3)]) == (2, 1)


def test_rotated_keys_count_together(workspace):
    secret, pk = rated(workspace, requests=2)
    other, other_pk = rated(workspace, requests=2)
    with workspace.scope():
        ApiKey.objects.filter(pk=other_pk).update(spends_as=pk)
    old, new = workspace.api(secret), workspace.api(other)
    assert statuses([old.chat(), new.chat(), old.chat(), new.chat()]) == (2, 2)


def test_a_summary_counts_too_and_a_repeat_under_one_idempotency_key_counts_once(workspace):
    api = workspace.api(rated(workspace, requests=3)[0])
    for _ in range(3):
        assert api.post("/api/chat/", {"prompt": "hello"}, headers={"idempotency-key": "k-1"}).status_code == 200
    assert statuses([api.summarize(), api.summarize(), api.summarize()]) == (2, 1)
    refused = api.post("/api/chat/", {"prompt": "hello"}, headers={"idempotency-key": "k-2"})
    assert refused.status_code == 429
    later(workspace, 60)
    # Its claim was given back: the same request is made now, and not taken for one that is lost.
    again = api.post("/api/chat/", {"prompt": "hello"}, headers={"idempotency-key": "k-2"})
    assert again.status_code == 200, again.content


def test_a_call_in_the_place_of_one_that_came_to_nothing_is_no_request_more(workspace):
    def count(*, is_let_in):
        asked = """SELECT found.full, requests_left, tokens_left
            FROM public.billing_count_call(%s, 1, 1, 100, NULL, 60, %s) AS found"""
        return rows(asked, workspace.account.pk, is_let_in)[0]

    assert count(is_let_in=False) == (None, 0, 40)
    assert count(is_let_in=False)[0] == "requests"
    assert count(is_let_in=True) == (None, 0, 0)


def test_a_row_that_says_nothing_any_more_is_deleted(workspace):
    api = workspace.api(rated(workspace, requests=1)[0])
    assert api.chat().status_code == 200
    rows(FORGET_RATES + " RETURNING id")
    assert api.chat().status_code == 429
    later(workspace, 3_601)
    assert len(rows(FORGET_RATES + " RETURNING id")) == 1
    assert api.chat().status_code == 200


# --- without a database ---


def test_of_a_key_s_figure_and_the_operator_s_the_lower_one_holds():
    most = {"requests": 10, "tokens": 100}
    assert rates_of(None, most) is None
    assert rates_of(Key(1), {}) is None
    assert rates_of(Key(1, rates={"requests": None}), {}) is None
    assert rates_of(Key(1), most) == Rates(1, 10, 100, None)
    assert rates_of(Key(1, rates={"requests": 50, "concurrent": 2}), most) == Rates(1, 10, 100, 2)
    assert rates_of(Key(1, rates={"requests": 5}), most) == Rates(1, 5, 100, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0001, "1ms"), (0.12, "120ms"), (1, "1s"), (1.2, "1.2s"), (59.9996, "1m0s"), (90.5, "1m30.5s")],
)
def test_a_reset_is_written_as_usual(seconds, text):
    assert as_duration(seconds) == text


def test_headers_name_only_what_is_limited():
    left = Left(Rates(1, requests=60), None, None, 59, 1.0)
    assert left.headers() == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
    }
