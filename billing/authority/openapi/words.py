"""How schemas, parameters and operations are written here. Words only: no operation, no route, no answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from billing.authority.wire import INT64, UNITS, Shape

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
FLAG: Json = {"type": "boolean"}
COUNT: Json = {"type": "integer", "minimum": 0, "maximum": INT64}
WHOLE: Json = {"type": "integer", "minimum": -INT64 - 1, "maximum": INT64}
INSTANT: Json = {"type": "string", "format": "date-time"}
UUID: Json = {"type": "string", "format": "uuid"}
TRACE: Json = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
ANYTHING: Json = {"type": "object"}
UNIT: Json = {"type": "string", "enum": list(UNITS)}
MEDIA = "application/json"


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def one_of(*values: str) -> Json:
    return {"type": "string", "enum": list(values)}


def only(value: str | bool) -> Json:
    return {"const": value}


def nullable(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def many(schema: Json) -> Json:
    return {"type": "array", "items": schema}


def texts() -> Json:
    return many(TEXT)


def record(required: Mapping[str, Json], optional: Mapping[str, Json] | None = None) -> Json:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def page(name: str, row: Json) -> Json:
    """A page of the admin plane: the cursor is there when there is more."""
    return record({name: many(row), "has_more": FLAG}, {"next_cursor": TEXT})


class Opens(Enum):
    """Which keys open an operation: each one of them alone does."""

    NOTHING = ()
    TENANT = ("TenantKey",)
    ADMIN = ("AdminKey",)
    EITHER = ("TenantKey", "AdminKey")


@dataclass(frozen=True)
class Parameter:
    """One value of the query, or one header that may come along."""

    name: str
    schema: Json
    means: str
    required: bool = False
    where: str = "query"

    def written(self) -> Json:
        written = {"name": self.name, "in": self.where, "required": self.required, "schema": self.schema}
        return {**written, "description": self.means}


@dataclass(frozen=True)
class Operation:
    """One method of one path: who may call it, with what, and everything that it can answer.

    `refusals` are the codes of each status. What every operation of its kind can answer besides – a bad key, another
    content type, a failure of the server – is added by `document`.
    """

    summary: str
    opens: Opens
    answers: Mapping[int, Json | None]
    refusals: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    query: tuple[Parameter, ...] = ()
    body: type[Shape] | None = None
    body_required: bool = True
    media: str = MEDIA
    embedded: bool = False  # beyond the protocol


def limit(largest: int) -> Parameter:
    return Parameter("limit", {"type": "integer", "minimum": 1, "maximum": largest, "default": 50}, "Rows on a page.")


CURSOR = Parameter("cursor", TEXT, "Where the page before ended: its next_cursor, as it stands.")
SEARCH = Parameter("search", {"type": "string", "maxLength": 128}, "A part of a name or an id, in any case.")
SINCE = Parameter("from", INSTANT, "Not before this instant.")
UNTIL = Parameter("to", INSTANT, "Not after this instant.")


def choice(name: str, values: tuple[str, ...], means: str) -> Parameter:
    return Parameter(name, one_of(*values), means)


def text(name: str, means: str, *, required: bool = False) -> Parameter:
    return Parameter(name, TEXT, means, required)


def paged(*sorts: str, largest: int = 100) -> tuple[Parameter, ...]:
    return (
        choice("sort_by", sorts, "What the rows are sorted by."),
        choice("sort_dir", ("asc", "desc"), "Upwards or downwards."),
        limit(largest),
        CURSOR,
    )
