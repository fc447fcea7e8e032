"""Holds real answers to a plane's own document: which operation was called, and whether it may answer so."""

from __future__ import annotations

import re
from typing import Any

import httpx
import schemathesis
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


def fetch(base_url: str, admin_key: str) -> dict[str, Any]:
    """A plane's document, as an operator gets it."""
    answer = httpx.get(f"{base_url}/api-docs", headers={"X-Admin-API-Key": admin_key}, timeout=20)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


class Contract:
    """One document, asked about answers."""

    def __init__(self, document: dict[str, Any]) -> None:
        schema = schemathesis.openapi.from_dict(document)
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
        try:
            case.validate_response(answer, checks=CONFORMANCE)
        except FailureGroup as group:
            return [str(failure).replace("\n", " ")[:600] for failure in group.exceptions]
        return []
