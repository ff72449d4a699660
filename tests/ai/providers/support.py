"""Helpers of the remote provider's tests: one prompt and the pieces of its response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openruntime_jupyter.ai.profiles import profiles_from
from openruntime_jupyter.ai.providers.remote import RemoteProvider
from openruntime_jupyter.schemas.values import ToolCallPiece

KEY = "sk-test-0123456789abcdef-very-secret"
ENVIRON = {"THE_KEY": KEY}


@dataclass
class Listener:
    """Recorder of the pieces and the progress of a response."""

    pieces: list[str] = field(default_factory=list)
    reasoned: list[str] = field(default_factory=list)
    calls: list[ToolCallPiece] = field(default_factory=list)
    progresses: list[tuple[float, str | None]] = field(default_factory=list)

    def token(self, text: str) -> None:
        self.pieces.append(text)

    def reasoning(self, text: str) -> None:
        self.reasoned.append(text)

    def tool_call(self, piece: ToolCallPiece) -> None:
        self.calls.append(piece)

    def progress(self, n: float, total: float | None = None, message: str | None = None) -> None:
        self.progresses.append((n, message))


class Question:
    """Options of a provider with one profile, `p`."""

    def __init__(self, url: str, environ: Mapping[str, str] = ENVIRON, **fields: Any) -> None:
        fields = {"base_url": url, "model": "tiny", "api_key": "env:THE_KEY", "max_retries": 0, **fields}
        self.provider = RemoteProvider(profiles_from({"p": fields}, {}), environ)
        self.listener = Listener()

    async def run(self, prompt: str = "Hello", **more: Any) -> dict[str, Any]:
        return await self.provider.run({"messages": [{"role": "user", "content": prompt}], **more}, self.listener)


async def ask(url: str, *, fields: Mapping[str, Any] | None = None, environ: Mapping[str, str] = ENVIRON, **request: Any) -> dict[str, Any]:
    """Return the response to one prompt."""
    asked = Question(url, environ, **(fields or {}))
    try:
        answer = await asked.run(**request)
    finally:
        await asked.provider.close()
    assert "".join(asked.listener.pieces) == answer["text"]
    assert "".join(asked.listener.reasoned) in (answer["reasoning"] or "", "")
    return answer
