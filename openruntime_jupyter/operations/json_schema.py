"""Check of JSON schemas in requests, and of the responses to them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.schemas.base import wrong

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

LONGEST_PLACE = 200
LARGEST = 5_000
"""Characters of a schema as text. The check takes up to 15 µs each, so larger schemas are only checked by the engine or the provider."""


def require_json_schema(schema: dict[str, Any]) -> None:
    """Raise a pydantic error that names the first fault of a JSON schema."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        if len(json.dumps(schema)) <= LARGEST:
            validator_for(schema).check_schema(schema)
    except SchemaError as problem:
        place = f"{problem.json_path.removeprefix('$.')}: " if problem.absolute_path else ""
        cause = problem.context[0] if problem.context else problem  # of alternatives, the first is the usual one
        raise wrong(f"the JSON schema is invalid: {place}{cause.message}") from None
    except RecursionError:
        raise wrong("the JSON schema is nested too deeply") from None


def mismatch(text: str, schema: dict[str, Any]) -> str | None:
    """Return why a text is not JSON that fits the schema, or None.

    Regular expressions of the schema are ignored, because an unfavourable one would block the runtime. References to other documents
    are not loaded.
    """
    from jsonschema.exceptions import best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        return f"is not JSON ({problem})"
    try:
        found = best_match(_validator(schema)(schema, registry=Registry()).iter_errors(value))
    except (Unresolvable, RecursionError) as problem:
        return f"could not be compared with the schema ({type(problem).__name__}: {str(problem)[:LONGEST_PLACE]})"
    if found is None:
        return None
    return f"does not fit the schema ({found.json_path[:LONGEST_PLACE]}: {found.message[:LONGEST_PLACE]})"


def _validator(schema: dict[str, Any]) -> type[Validator]:
    from jsonschema.validators import extend, validator_for

    standard = validator_for(schema)

    def properties(validator: Any, allowed: Any, instance: Any, part: dict[str, Any]) -> Iterator[Any]:
        if "patternProperties" not in part:
            yield from standard.VALIDATORS["additionalProperties"](validator, allowed, instance, part)

    unchecked = dict.fromkeys(("pattern", "patternProperties", "unevaluatedProperties"), _nothing)
    validator: type[Validator] = extend(standard, {**unchecked, "additionalProperties": properties})
    return validator


def _nothing(*_: Any) -> tuple[Any, ...]:
    return ()
