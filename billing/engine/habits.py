"""What models usually need, learned from exact reports by all processes together.

Owns the samples of this process and their exchange with the others by way of the table. Must not decide what is held.
"""

from __future__ import annotations

import json
from typing import Any

from billing.engine.rules import KEPT_SAMPLES, Habit, Sample, Samples
from billing.engine.statements import HABITS, LEARN
from billing.engine.store import Store

_UNKNOWN = Habit()
Route = tuple[str, str]  # model, app


class Habits:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._samples: dict[Route, Samples] = {}
        self._known: dict[Route, Habit] = {}
        self._new: dict[Route, list[Sample]] = {}

    def of(self, model: str, app: str) -> Habit:
        return self._known.get((model, app), _UNKNOWN)

    def learn(self, model: str, app: str, sample: Sample) -> None:
        route = (model, app)
        if (samples := self._samples.get(route)) is None:
            samples = self._samples[route] = Samples()
        samples.add(sample)
        self._known[route] = samples.habit()
        self._new.setdefault(route, []).insert(0, sample)

    async def exchange(self) -> None:
        """Tell the others what is new here, and read what all have learned."""
        while self._new:
            route, samples = self._new.popitem()
            rows = json.dumps([sample.as_row() for sample in samples[:KEPT_SAMPLES]])
            try:
                params = {"model": route[0], "app": route[1], "samples": rows, "kept": KEPT_SAMPLES}
                await self._store.fetch(LEARN, params)
            except BaseException:
                self._new[route] = [*self._new.get(route, []), *samples]
                raise
        for model, app, samples in await self._store.fetch(HABITS):
            route = (model, app)
            if route not in self._new:
                known = self._samples[route] = Samples([Sample(*row) for row in samples if _is_sample(row)])
                self._known[route] = known.habit()


def _is_sample(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 5 and all(type(figure) is int for figure in row)
