"""Checks that a response honours the request. Providers may ignore a JSON schema, tools or a required call without an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openruntime_jupyter.ai.providers.responses import IncompleteResponse
from openruntime_jupyter.operations.json_schema import mismatch

ADVICE = "use a model or server that supports {option}"


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
