"""This project, crawled: nothing of a workspace reaches its neighbour or a stranger, at no door and in no way."""

import pytest

from tests.isolation.crawler.walk import patterns, unrouted

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("pattern", [*patterns(), *unrouted()], ids=str)
def test_nothing_crosses(crawl, pattern):
    found = crawl.findings(pattern)
    assert not found, "\n" + "\n".join(map(str, found))


def test_the_neighbours_own_requests_work_and_every_address_has_a_case(of_the_control):
    assert not of_the_control, "\n" + "\n".join(map(str, of_the_control))


def test_the_crawler_is_not_blind(crawl):
    """Its people do see what nobody else may."""
    shown = {
        "chat.Conversation.title",
        "chat.Message.text",
        "the model's answer",
        "users.ApiKey.name",
        "users.ApiKey's secret",
        "tenants.Tenant.name",
        "usage.UsageLine.model",
    }
    assert shown <= crawl.covered.seen
