"""Request bodies as JSON Schema, taken from the models that read them: nothing about a body is said twice."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from billing.authority.openapi.words import Json
from billing.authority.wire import Shape, not_blank


class _Generator(GenerateJsonSchema):
    """Pydantic's own, without titles, and with what it cannot see: a check written as a function."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        written = super().function_after_schema(schema)
        if schema["function"].get("function") is not_blank:
            return {**written, "pattern": r"\S"}
        return written


def request_schemas(models: set[type[Shape]]) -> dict[str, Json]:
    """The components of these bodies and of all that they are made of."""
    wanted: list[tuple[type[Shape], JsonSchemaMode]] = [
        (model, "validation") for model in sorted(models, key=lambda model: model.__name__)
    ]
    _, written = models_json_schema(wanted, ref_template="#/components/schemas/{model}", schema_generator=_Generator)
    return {name: _without_title(schema) for name, schema in written["$defs"].items()}


def _without_title(schema: Json) -> Json:
    """A model's docstring speaks to who reads the code, not to who calls."""
    return {key: value for key, value in schema.items() if key not in ("title", "description")}
