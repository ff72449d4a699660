"""Checks that a response honours the request. Providers may ignore a JSON schema, tools or a required call without an error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.ai.providers.responses import IncompleteResponse

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

ADVICE = "use a model or server that supports {option}"
LONGEST_PLACE = 200


def check(body: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Raise `IncompleteResponse` if a response does not honour the options in the body of its request.

    The JSON of a response that was truncated at `max_tokens` is not checked: its `finish_reason` tells that it is incomplete.
    """
    called, offered = answer["tool_calls"], body.get("tools")
    if called and not offered:
        raise IncompleteResponse(f"called the tool {called[0]['function']['name']!r}, but the request has no tools: use another model")
    choice = body.get("tool_choice")
    if not called and offered and choice not in (None, "auto", "none"):
        raise IncompleteResponse(f"called no tool, although tool_choice requires it: {ADVICE.format(option='tool_choice')}")
    wanted = body.get("response_format") or {}
    if called or wanted.get("type") not in ("json_object", "json_schema") or answer["finish_reason"] == "length":
        return
    schema = wanted["json_schema"]["schema"] if wanted["type"] == "json_schema" else {"type": "object"}
    problem = mismatch(answer["text"], schema)
    if problem is not None:
        raise IncompleteResponse(f"ignored response_format: the text {problem}; {ADVICE.format(option='response_format')}")


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
