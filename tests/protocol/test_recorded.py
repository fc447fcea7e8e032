"""The recorded conversations, played at the embedded authority over HTTP. Every pair must fit, but what is listed.

Each answer is also held to what the plane's own document says of its operation.

Waits are most of the time, so scenarios run side by side; one that changes a setting of the whole server runs alone.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.protocol.deviations import AT_ONCE, BY_NETWORK, ELSEWHERE, deviation, listed
from tests.protocol.player import RECORDED, Play, Report, load
from tests.support.openapi import Contract, fetch

SIDE_BY_SIDE = 6
SCENARIOS = [load(path) for path in sorted(RECORDED.glob("*.json"))]
PLAYED = [scenario for scenario in SCENARIOS if scenario["name"] not in ELSEWHERE]
for _scenario in PLAYED:
    if _scenario["name"] in AT_ONCE:
        # In place: a step keeps its number.
        _scenario["steps"] = [{"wait_s": 0} if "wait_s" in step else step for step in _scenario["steps"]]
COLUMNS = {"caps": "caps = %s::jsonb", "status": "status = %s", "debt": "debt = %s"}


def seconds(scenario: dict[str, Any]) -> float:
    return sum(float(step.get("wait_s", 0.05)) for step in scenario["steps"])


@pytest.fixture(scope="module")
def reports(authority):
    """A future report for each scenario; the longest start first."""
    planes = {"runtime": authority.runtime_url, "admin": authority.admin_url}

    contracts = {plane: Contract(fetch(url, authority.admin_key)) for plane, url in planes.items()}

    def store(means: Any) -> None:
        value = Jsonb(means["value"]) if means["set"] == "caps" else means["value"]
        with psycopg.connect(authority.database_url, options="-c search_path=authority") as connection:
            connection.execute(
                f"UPDATE ledger SET {COLUMNS[means['set']]} WHERE scope = %s AND unit = %s",  # noqa: S608 - a column of ours
                (value, means["scope"], means["unit"]),
            )

    def play(scenario: dict[str, Any], first: list[Future[Report]]) -> Report:
        for future in first:
            future.result()
        return Play(
            scenario, planes, authority.admin_key, store, lambda plane, answer: contracts[plane].faults(answer)
        ).run()

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        futures: dict[str, Future[Report]] = {}
        for scenario in sorted(PLAYED, key=lambda each: (each.get("alone", False), -seconds(each))):
            before = list(futures.values()) if scenario.get("alone") else []
            futures[scenario["name"]] = pool.submit(play, scenario, before)
        yield futures


@pytest.mark.parametrize("scenario", PLAYED, ids=lambda scenario: scenario["name"])
def test_answers_as_recorded(reports, scenario):
    report = reports[scenario["name"]].result()
    wrong = {step: fault for step, fault in report.differing.items() if deviation(report.name, step) is None}
    assert not wrong, "\n".join(
        f"{step} {scenario['steps'][step]['request']['method']} {scenario['steps'][step]['request']['path']}: {fault}"
        for step, fault in wrong.items()
    )


def test_no_answer_is_outside_the_planes_own_documents(reports):
    strange = {
        f"{report.name} #{step}": fault
        for report in (future.result() for future in reports.values())
        for step, fault in report.unannounced.items()
    }
    assert not strange, "\n".join(f"{step}: {fault}" for step, fault in strange.items())


def test_every_deviation_is_named_and_the_rest_passes(reports, say):
    """The summary: how many pairs passed, and why each of the others is meant to differ."""
    lines, passed, total = [], 0, 0
    for report in (future.result() for future in reports.values()):
        held = [step for step in (*report.fitted, *report.differing) if deviation(report.name, step) is None]
        total += len(held)
        passed += len([step for step in held if step in report.fitted])
        for step in sorted(report.differing):
            lines.append(f"  {report.name} #{step}: {deviation(report.name, step) or 'NOT MEANT'}")
    lines += [f"  {name}, all: {reason}" for name, reason in sorted(ELSEWHERE.items())]
    say("\n".join([f"protocol: {passed} of {total} pairs passed; deviations:", *sorted(lines)]))
    assert passed == total


def test_no_deviation_is_listed_in_vain(reports):
    for report in (future.result() for future in reports.values()):
        fitting = {step for step in report.fitted if deviation(report.name, step) not in (None, BY_NETWORK)}
        assert not fitting, f"{report.name}: {sorted(fitting)} fit as recorded"
        assert not set(listed(report.name)) - {*report.fitted, *report.differing}
