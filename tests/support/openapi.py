"""Holds real answers to a document: which operation was called, whether it may answer so; and makes calls from it."""

from __future__ import annotations

import re
from random import Random
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CONFORMANCE = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

SEED = 1


def fetch(base_url: str, admin_key: str) -> dict[str, Any]:
    """A plane's document, as an operator gets it."""
    answer = httpx.get(f"{base_url}/api-docs", headers={"X-Admin-API-Key": admin_key}, timeout=20)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def loaded(document: dict[str, Any]) -> Any:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.seed = SEED
    schema.config.generation.with_security_parameters = False  # whoever calls has the keys
    return schema


def calls_of(operation: Any, rng: Random, *, at_limits: int, at_random: int) -> list[Any]:
    """Values at the limits of each field and past them, and some more at random of each mode, right and wrong ones."""
    modes, config = list(GenerationMode), operation.schema.config.generation
    cases = list(operation.schema.iter_coverage_cases(operation, generation_modes=modes, generation_config=config))
    cases = [case for case in cases if case.method == operation.method.upper()]
    cases = rng.sample(cases, min(at_limits, len(cases)))
    for mode in modes:
        try:
            cases += _examples(operation.as_strategy(generation_mode=mode), at_random)
        except Unsatisfiable:  # nothing in this operation can be wrong
            continue
    return cases


def _examples(strategy: Any, count: int) -> list[Any]:
    """The same ones each time."""
    found: list[Any] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case: Any) -> None:
        found.append(case)

    collect()
    return found


class Contract:
    """One document, asked about answers."""

    def __init__(self, document: dict[str, Any]) -> None:
        schema = loaded(document)
        # Literal segments before named ones: /budgets/fund is no /budgets/{id}.
        self._paths = [
            (re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)), schema[path])
            for path in sorted(document["paths"], key=lambda path: path.count("{"))
        ]

    def case(self, method: str, path: str) -> Any:
        """The operation of this call with its path filled in, or None where the document has none."""
        for pattern, operations in self._paths:
            if found := pattern.fullmatch(path):
                named = {name.upper(): operation for name, operation in operations.items()}
                return named[method].Case(path_parameters=found.groupdict()) if method in named else None
        return None

    def faults(self, answer: httpx.Response) -> list[str]:
        """Where this answer is not one of those that the document gives its operation."""
        case = self.case(answer.request.method, answer.request.url.path)
        if case is None:
            return []
        return [str(failure).replace("\n", " ")[:600] for failure in failures(case, answer)]


def failures(case: Any, answer: Any) -> list[Any]:
    """What the checks say of this answer to this call."""
    try:
        case.validate_response(answer, checks=[not_a_server_error, *CONFORMANCE])
    except FailureGroup as group:
        return list(group.exceptions)
    return []
