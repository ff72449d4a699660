"""Tool calls that a model writes: assembly of streamed pieces in OpenAI's form, and extraction from text."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from openruntime_jupyter.local_models.characters import Trimmed
from openruntime_jupyter.schemas.values import ToolCallPiece


@dataclass
class _Call:
    position: int
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)
    index: int | None = None
    """Position among the calls of which a piece was passed on; None before the first one."""
    passed_id: str = ""
    trimmed: Trimmed = field(default_factory=Trimmed)


class ToolCalls:
    """Tool calls of a response, in order. Tolerates providers that omit the index, the id or the type, or send arguments as an object.

    `on_piece` gets the pieces of each call once its name is known.
    """

    def __init__(self, on_piece: Callable[[ToolCallPiece], None] | None = None) -> None:
        self._on_piece = on_piece
        self._passed = 0
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
            known = _Call(len(self._calls), call_id, name)
            self._calls.append(known)
            if isinstance(index, int):
                self._by_index[index] = known
        known.id, known.name = known.id or call_id, known.name or name
        known.arguments.append(text)
        self._pass_on(known, text)
        return len(name) + len(text)

    def _pass_on(self, call: _Call, text: str) -> None:
        if self._on_piece is None or not call.name:
            return
        if call.index is None:
            call.index, self._passed = self._passed, self._passed + 1
            call.passed_id, text = call.id or f"call_{call.position}", "".join(call.arguments)
            self._on_piece(ToolCallPiece(call.index, id=call.passed_id, name=call.name))
        if arguments := call.trimmed.add(text):
            self._on_piece(ToolCallPiece(call.index, arguments))

    def finished(self) -> list[dict[str, Any]]:
        """Return the calls as the fields of `ToolCall`. Calls without a name are omitted."""
        return [
            {
                "id": call.passed_id or call.id or f"call_{call.position}",
                "type": "function",
                "function": {"name": call.name, "arguments": "".join(call.arguments).strip() or "{}"},
            }
            for call in self._calls
            if call.name
        ]


HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"arguments"\s*:\s*(?=\{)')
"""Beginning of a call that is a JSON object, up to its arguments."""


class ToolCallFilter:
    """Filter for generated text that takes out tool calls between the markers `start` and `end`, with spaces between calls.

    Parameters
    ----------
    on_text : gets the text outside of calls, in pieces
    start, end : markers; an empty `end` ends a call at the end of the text
    parse : returns the calls in the text between the markers, each a dict with `name` and `arguments`; may raise anything
    on_piece : gets the pieces of each call; None without a receiver
    as_json : whether calls are JSON objects. The arguments of such a call are passed on while they are generated, others once the call is
        complete.
    """

    def __init__(
        self,
        on_text: Callable[[str], None],
        start: str,
        end: str,
        parse: Callable[[str], Any],
        on_piece: Callable[[ToolCallPiece], None] | None = None,
        as_json: bool = False,
    ) -> None:
        self._on_text = on_text
        self._start, self._end = start, end
        self._parse = parse
        self._on_piece = on_piece
        self._as_json = as_json
        self._rest = ""
        self._inside = False
        self._found: list[dict[str, Any]] = []
        self._arguments: _JsonObject | None = None
        """Arguments of the call that is being generated, once they have begun."""

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
        if self._inside:
            self._stream()
            return
        free = len(self._rest) - self._beginning()
        if not (self._found and self._rest[:free].isspace()):  # otherwise another call may follow
            self._pass(self._rest[:free])
            self._rest = self._rest[free:]

    def end(self, cut: bool) -> None:
        """Process the end of the text. A call may end with it, unless the text was `cut`: a call without arguments is dropped then."""
        rest, self._rest = self._rest, ""
        if not self._inside:
            self._pass(rest)
        elif self._arguments is not None or not (cut and self._end):
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

    def _stream(self) -> None:
        """Pass on the arguments of the present call so far."""
        if self._arguments is None and self._as_json and (head := HEAD.match(self._rest)) is not None:
            with contextlib.suppress(json.JSONDecodeError):
                self._begin(json.loads(head[1]))
                self._arguments = _JsonObject(head.end())
        if self._arguments is not None:
            self._extend(self._arguments.following(self._rest))

    def _begin(self, name: str, call_id: str | None = None) -> None:
        call_id = call_id or f"call_{secrets.token_hex(8)}"
        if self._on_piece is not None:
            self._on_piece(ToolCallPiece(len(self._found), id=call_id, name=name))
        self._found.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}})

    def _extend(self, arguments: str) -> None:
        self._found[-1]["function"]["arguments"] += arguments
        if arguments and self._on_piece is not None:
            self._on_piece(ToolCallPiece(len(self._found) - 1, arguments))

    def _take(self, text: str, marker: str) -> None:
        """Process a complete call. One whose arguments were passed on stays a call, even if they are not valid JSON."""
        arguments, self._arguments = self._arguments, None
        if arguments is not None:
            self._extend(arguments.following(text))
            return
        try:
            parsed = self._parse(text)
            for call in parsed if isinstance(parsed, list) else [parsed]:
                given = call.get("arguments") or {}
                written = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
                self._begin(call["name"], call.get("id"))
                self._extend(written)
        except Exception:  # a parser of mlx-lm may raise anything for a call that the model wrote wrong
            self._on_text(f"{self._start}{text}{marker}")


class _JsonObject:
    """JSON object that begins at a position of a growing text."""

    def __init__(self, start: int) -> None:
        self._at = start
        self._depth = 0
        self._quoted = self._escaped = self._ended = False

    def following(self, text: str) -> str:
        """Return the characters of the object in `text` that have not been returned."""
        start = self._at
        while self._at < len(text) and not self._ended:
            character = text[self._at]
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = character == "\\", character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "]}":
                self._depth -= 1
                self._ended = not self._depth
            self._at += 1
        return text[start : self._at]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
