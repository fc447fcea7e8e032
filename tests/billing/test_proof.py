"""The budget page's own book: unknown is unknown, little is not nothing, and the operator's loss is nobody's cost."""

import pytest
from django.template import Context, Template
from django.utils import timezone
from django.utils.html import strip_tags

from billing.ledgers import Ledger
from billing.proof import bar_of, local_total
from tests.support.factories import UsageLineFactory


def figures(spent, reserved, allocated=1_000):
    remaining = allocated - spent - reserved
    return Ledger("tenant:x", "USD_MICROCENTS", "ACTIVE", allocated, spent, reserved, remaining, 0, False)


@pytest.mark.parametrize(
    ("spent", "reserved", "bar"),
    [(0, 0, (0, 0)), (1, 0, (1, 0)), (500, 1, (50, 1)), (999, 1, (100, 0)), (1_000, 0, (100, 0)), (300, 700, (30, 70))],
)
def test_the_bar_shows_whole_percents_that_fit_together(spent, reserved, bar):
    shown = bar_of(figures(spent, reserved))
    assert (shown.spent_pct, shown.reserved_pct) == bar


def test_there_is_no_bar_without_figures():
    assert bar_of(None) is None


def test_a_budget_of_nothing_is_a_full_bar_and_not_one_that_looks_as_if_all_were_left():
    shown = bar_of(figures(0, 0, allocated=0))
    assert (shown.spent_pct, shown.reserved_pct) == (100, 0)


def test_an_operators_loss_is_in_no_sum_and_each_class_is_said_in_its_own_words(workspace):
    with workspace.scope():
        for outcome in ("exact", "overrun", "none", "unknown", "swept", "estimated"):
            UsageLineFactory(
                outcome=outcome,
                cost=0 if outcome == "none" else 300_000,
                overrun=7_777_777_700 if outcome == "overrun" else 0,
                created_at=timezone.now(),
            )
        assert local_total() == 5 * 300_000
    page = strip_tags(workspace.client(workspace.owner).get("/budget/").content.decode())
    for words in (
        "reported by the model",
        "reported above the hold, charged the hold",
        "nothing charged",
        "no answer came, input estimated",
        "interrupted, charged up to there",
        "not reported, estimated",
    ):
        assert words in page
    assert "$0.015" in page  # charged for these calls
    assert "−$0.015" in page  # the authority knows of none of them, and the page says so
    assert "77.7" not in page


def test_the_points_of_a_column_stand_under_each_other_whatever_stands_behind_them():
    written = Template(
        "{% load money %}{% places a b c d as decimals %}{% for one in all %}{{ one|usd_lined:decimals }} {% endfor %}"
    )
    amounts = {"a": 150, "b": 100_000_000, "c": None, "d": -2_500_000}
    shown = written.render(Context({**amounts, "all": amounts.values()}))
    assert strip_tags(shown).split() == ["$0.0000015", "$1.00", "—", "−$0.025"]
    assert shown.count('class="places places--7"') == 4
