"""Assembly of tool calls that arrive in pieces."""

from __future__ import annotations

import json
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


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
