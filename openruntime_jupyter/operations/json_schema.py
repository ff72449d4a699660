"""Check of JSON schemas in requests."""

from __future__ import annotations

import json
from typing import Any

from openruntime_jupyter.schemas.base import wrong

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
