"""Options of a response whose JSON schemas are checked."""

from __future__ import annotations

from pydantic import field_validator

from openruntime_jupyter.operations.json_schema import require_json_schema
from openruntime_jupyter.schemas.ai import ResponseFormat, ResponseOptions, Tool


class CheckedResponseOptions(ResponseOptions):
    """Options of a response. A fault in a JSON schema is named."""

    @field_validator("response_format")
    @classmethod
    def _valid_schema(cls, response_format: ResponseFormat | None) -> ResponseFormat | None:
        if response_format is not None and response_format.json_schema is not None:
            require_json_schema(response_format.json_schema.schema_)
        return response_format

    @field_validator("tools")
    @classmethod
    def _valid_arguments(cls, tools: list[Tool] | None) -> list[Tool] | None:
        for tool in tools or ():
            require_json_schema(tool.function.parameters or {})
        return tools
