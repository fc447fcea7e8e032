"""Figures for the page: unknown is unknown, and little is not nothing."""

import pytest

from billing.balances import Figures, bar_of


def figures(spent, reserved, allocated=1_000):
    return Figures("tenant:x", allocated, spent, reserved, allocated - spent - reserved, 0)


@pytest.mark.parametrize(
    ("spent", "reserved", "bar"),
    [(0, 0, (0, 0)), (1, 0, (1, 0)), (500, 1, (50, 1)), (999, 1, (100, 0)), (1_000, 0, (100, 0)), (300, 700, (30, 70))],
)
def test_the_bar_shows_whole_percents_that_fit_together(spent, reserved, bar):
    shown = bar_of(figures(spent, reserved))
    assert (shown.spent_pct, shown.reserved_pct) == bar


def test_there_is_no_bar_without_figures_or_allowance():
    assert bar_of(None) is None
    assert bar_of(figures(0, 0, allocated=0)) is None
