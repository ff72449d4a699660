"""JSON schemas of responses, and the objects that the text of a response becomes."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError

NAME = "response"
"""Name of a schema without a usable title."""
MOST_PROBLEMS = 5


def reason_of(problem: ValidationError) -> str:
    """Return the first problems of a value with their places."""
    found = problem.errors(include_url=False, include_input=False, include_context=False)[:MOST_PROBLEMS]
    return "; ".join(": ".join(filter(None, [".".join(map(str, each["loc"])), each["msg"]])) for each in found)


class ObjectSchema:
    """Schema of a response.

    Parameters
    ----------
    schema
        A pydantic model, or another type that pydantic can validate, such as a dataclass or `list[str]`: the response becomes an object
        of it. A dict is a JSON schema: the response becomes what `json.loads` returns.

    Raises
    ------
    InvalidRequest
        If pydantic can't make a JSON schema of the type.
    """

    def __init__(self, schema: Any) -> None:
        self._type: TypeAdapter[Any] | None = None
        if isinstance(schema, dict):
            self.json_schema: dict[str, Any] = schema
        else:
            try:
                self._type = TypeAdapter(schema)
                self.json_schema = self._type.json_schema()
            except (PydanticUserError, TypeError, NameError) as problem:
                reason = str(problem).splitlines()[0]
                raise InvalidRequest.of("schema", f"no JSON schema can be made of {schema!r} ({reason}): use a pydantic model") from None
        title = str(self.json_schema.get("title") or getattr(schema, "__name__", None) or NAME)
        self._name = re.sub(r"[^A-Za-z0-9_-]+", "_", title)[:64].strip("_") or NAME

    @property
    def response_format(self) -> dict[str, Any]:
        """Return the schema as the parameter `response_format` of a prompt."""
        return {"type": "json_schema", "json_schema": {"name": self._name, "schema": self.json_schema}}

    def read(self, text: str, finish_reason: str | None = None) -> Any:
        """Return the object of a response's text. Raises `OpenRuntimeError` for an incomplete text, or one that does not fit."""
        try:
            return json.loads(text) if self._type is None else self._type.validate_json(text)
        except ValidationError as problem:
            reason = reason_of(problem)
        except ValueError as problem:
            reason = str(problem)
        if finish_reason == "length":
            raise OpenRuntimeError("The response was truncated at max_tokens before its JSON was complete: raise max_tokens")
        raise OpenRuntimeError(f"The response does not fit the schema ({reason}): its text is {text[:200]!r}")
