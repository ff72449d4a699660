"""Tool calls that a model writes: assembly of streamed pieces in OpenAI's form, and extraction from text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any


def tool_call(name: str, arguments: str, call_id: str | None = None) -> dict[str, Any]:
    """Return the fields of a `ToolCall`, with a new id if the model gave none."""
    function = {"name": name, "arguments": arguments}
    return {"id": call_id or f"call_{secrets.token_hex(8)}", "type": "function", "function": function}


class ToolCallPieces:
    """Tool calls whose ids, names and arguments arrive in pieces, by their index."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, str]] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, pieces: Any) -> None:
        """Add the `tool_calls` of one chunk. Anything that has another form is ignored, because providers deviate from it."""
        for number, piece in enumerate(pieces if isinstance(pieces, list) else []):
            if not isinstance(piece, dict):
                continue
            index = piece.get("index")
            call = self._calls.setdefault(index if isinstance(index, int) else number, {"id": "", "name": "", "arguments": ""})
            function = piece.get("function")
            for name, value in (("id", piece.get("id")), *(function.items() if isinstance(function, dict) else ())):
                if isinstance(value, str) and name in call:
                    # Some servers repeat id and name in each piece.
                    call[name] = call[name] + value if name == "arguments" else value or call[name]
                elif isinstance(value, dict) and name == "arguments":
                    call[name] = json.dumps(value)

    def calls(self) -> list[dict[str, Any]] | None:
        """Return the complete calls as fields of `ToolCall`, or None without any."""
        found = [tool_call(call["name"], call["arguments"] or "{}", call["id"]) for _, call in sorted(self._calls.items()) if call["name"]]
        return found or None


class ToolCallFilter:
    """Filter for generated text that takes out tool calls between the markers `start` and `end`, with spaces between calls.

    Parameters
    ----------
    on_text : gets the text outside of calls, in pieces
    start, end : markers; an empty `end` ends a call at the end of the text
    parse : returns the calls in the text between the markers, each a dict with `name` and `arguments`; may raise anything
    """

    def __init__(self, on_text: Callable[[str], None], start: str, end: str, parse: Callable[[str], Any]) -> None:
        self._on_text = on_text
        self._start, self._end = start, end
        self._parse = parse
        self._rest = ""
        self._inside = False
        self._found: list[dict[str, Any]] = []

    def add(self, piece: str) -> None:
        """Process the next piece of text. A possible beginning of a marker is held back."""
        self._rest += piece
        while marker := self._end if self._inside else self._start:
            before, found, after = self._rest.partition(marker)
            if not found:
                break
            self._rest = after
            if self._inside:
                self._take(before, marker)
            else:
                self._pass(before)
            self._inside = not self._inside
        if not self._inside:
            free = len(self._rest) - self._beginning()
            if not (self._found and self._rest[:free].isspace()):  # otherwise another call may follow
                self._pass(self._rest[:free])
                self._rest = self._rest[free:]

    def end(self, cut: bool) -> None:
        """Process the end of the text. A call may end with it, unless the text was `cut`: an incomplete call is dropped."""
        rest, self._rest = self._rest, ""
        if not self._inside:
            self._pass(rest)
        elif not (cut and self._end):
            self._take(rest, "")

    def calls(self) -> list[dict[str, Any]] | None:
        """Return the calls as fields of `ToolCall`, or None without any."""
        return self._found or None

    def _beginning(self) -> int:
        """Return the length of the longest suffix of the text that begins a call."""
        sizes = range(min(len(self._start) - 1, len(self._rest)), 0, -1)
        return next((size for size in sizes if self._rest.endswith(self._start[:size])), 0)

    def _pass(self, text: str) -> None:
        if not (self._found and text.isspace()):
            self._on_text(text)

    def _take(self, text: str, marker: str) -> None:
        try:
            parsed = self._parse(text)
            for call in parsed if isinstance(parsed, list) else [parsed]:
                arguments = call.get("arguments") or {}
                written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
                self._found.append(tool_call(call["name"], written, call.get("id")))
        except Exception:  # a parser of mlx-lm may raise anything for a call that the model wrote wrong
            self._on_text(f"{self._start}{text}{marker}")
