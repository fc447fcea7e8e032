"""What the benchmarks stand on is still there: they are run by hand, and would be found broken when they are needed."""

import re

from tests.bench import chunks


def test_what_a_chunk_costs_can_be_measured(monkeypatch):
    monkeypatch.setattr(chunks, "TIMES", 2)
    monkeypatch.setattr(chunks, "ROUNDS", 1)
    assert re.fullmatch(r"a chunk's events: [\d.]+ µs of CPU; [\d.]+ µs with its words rendered", chunks.text())
