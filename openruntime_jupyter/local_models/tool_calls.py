"""Tool calls that a model writes: assembly of streamed pieces in OpenAI's form, and extraction from text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Call:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class ToolCalls:
    """Tool calls of a response, in order. Tolerates providers that omit the index, the id or the type, or send arguments as an object."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}

    def add(self, pieces: Any) -> int:
        """Add the `tool_calls` of a chunk or message and return the number of characters. Malformed pieces are ignored."""
        return sum(self._add(piece) for piece in pieces if isinstance(piece, dict)) if isinstance(pieces, (list, tuple)) else 0

    def _add(self, piece: dict[str, Any]) -> int:
        function = piece.get("function")
        function = function if isinstance(function, dict) else {}
        name, call_id, index = _text(function.get("name")), _text(piece.get("id")), piece.get("index")
        arguments = function.get("arguments")
        text = json.dumps(arguments) if isinstance(arguments, dict) else _text(arguments)
        known = self._by_index.get(index) if isinstance(index, int) else self._calls[-1] if self._calls else None
        # Some providers send each call whole, all without an index or with the same one.
        if known is None or (call_id and known.id and call_id != known.id) or (not isinstance(index, int) and name):
            known = _Call(call_id, name)
            self._calls.append(known)
            if isinstance(index, int):
                self._by_index[index] = known
        known.id, known.name = known.id or call_id, known.name or name
        known.arguments.append(text)
        return len(name) + len(text)

    def finished(self) -> list[dict[str, Any]]:
        """Return the calls as the fields of `ToolCall`. Calls without a name are omitted."""
        return [
            {
                "id": call.id or f"call_{number}",
                "type": "function",
                "function": {"name": call.name, "arguments": "".join(call.arguments).strip() or "{}"},
            }
            for number, call in enumerate(self._calls)
            if call.name
        ]


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

    def finished(self) -> list[dict[str, Any]]:
        """Return the calls as the fields of `ToolCall`."""
        return self._found

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
                fields = {"name": call["name"], "arguments": written}
                self._found.append({"id": call.get("id") or f"call_{secrets.token_hex(8)}", "type": "function", "function": fields})
        except Exception:  # a parser of mlx-lm may raise anything for a call that the model wrote wrong
            self._on_text(f"{self._start}{text}{marker}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
