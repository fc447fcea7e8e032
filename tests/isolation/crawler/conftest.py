"""The crawler as a plugin of pytest: its rooms, one crawl of this project, and what it covered, at the end of a run."""

from __future__ import annotations

import pytest

from tests.isolation.crawler.canaries import Canaries
from tests.isolation.crawler.crawl import Covered

_covered: list[Covered] = []


@pytest.fixture(scope="package")
def media(tmp_path_factory):
    """Files of the crawl lie here, so that all that is written can be seen."""
    from django.conf import settings
    from django.test import override_settings

    folder = tmp_path_factory.mktemp("media")
    default = settings.STORAGES["default"]
    storage = {**default, "OPTIONS": {**default.get("OPTIONS", {}), "location": str(folder)}}
    with override_settings(MEDIA_ROOT=str(folder), STORAGES={**settings.STORAGES, "default": storage}):
        yield folder


@pytest.fixture(scope="package")
def rooms(app, media):
    """The workspace that is asked, and its neighbour. Both are full of canaries."""
    from tenants.context import enter
    from tests.isolation.crawler.cases import all_plants
    from tests.isolation.crawler.room import Room

    canaries, plants = Canaries(), all_plants()
    made = Room("crawled", canaries, plants), Room("crawled-neighbour", canaries, plants, is_far=True)
    yield made
    enter(None)
    for room in made:
        room.remove()


@pytest.fixture
def model(upstream, rooms):
    """The model's words are a canary of the workspace that buys: `model(room)` says which one."""

    def speaks_for(room):
        upstream.tokens = ["It is ", room.said("the model's answer"), "."]

    speaks_for(rooms[0])
    return speaks_for


@pytest.fixture(scope="package")
def _begun() -> list[object]:
    return []


@pytest.fixture
def crawl(rooms, model, _begun):
    """The crawl of this project, after the neighbour was at home; `problems` of that stand in `_begun`."""
    from tests.isolation.crawler.cases import all_cases
    from tests.isolation.crawler.crawl import Crawl
    from tests.isolation.crawler.walk import patterns, unrouted

    if not _begun:
        crawl = Crawl(*rooms, all_cases(), covered := Covered())
        _covered.append(covered)
        model(rooms[1])
        _begun.extend([crawl, crawl.control([*patterns(), *unrouted()])])
        model(rooms[0])
    return _begun[0]


@pytest.fixture
def of_the_control(crawl, _begun):
    return _begun[1]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for covered in _covered:
        terminalreporter.section("the crawler")
        for line in covered.summary():
            terminalreporter.line(line)
