"""Text of a response, in whole characters, and the reasoning before it."""

from __future__ import annotations

from typing import Protocol

from openruntime_jupyter.local_models.characters import Trimmed, WholeCharacters
from openruntime_jupyter.local_models.reasoning import ReasoningSplitter
from openruntime_jupyter.schemas.values import ToolCallPiece


class ResponseReceiver(Protocol):
    """Receiver of a response while it is generated, such as the context of a task."""

    def token(self, text: str) -> None:
        """Receive a piece of the text."""

    def reasoning(self, text: str) -> None:
        """Receive a piece of the reasoning before the text."""

    def tool_call(self, piece: ToolCallPiece) -> None:
        """Receive a piece of a tool call."""


class ResponseText:
    """Text that a model writes in pieces.

    Parameters
    ----------
    receiver : gets each piece of the response and its reasoning as soon as it is final; None without a receiver
    templated : whether the prompt had a chat template. The text after a plain prompt is not split.
    opened : tag of reasoning with which the prompt ended
    """

    def __init__(self, receiver: ResponseReceiver | None, templated: bool, opened: str | None = None) -> None:
        self._receiver = receiver
        self._pieces: list[str] = []
        self._reasoning: list[str] = []
        self._reasoned = False
        self._whole = WholeCharacters()
        self._whole_reasoning = WholeCharacters()
        self._trimmed = Trimmed()
        self._splitter = ReasoningSplitter(self._take, self.add_reasoning, opened) if templated else None

    def add(self, piece: str) -> None:
        """Process the next piece of generated text."""
        if self._splitter is not None:
            self._splitter.add(piece)
        else:
            self._take(piece)

    def add_reasoning(self, piece: str) -> None:
        """Add a piece of the reasoning."""
        self._reasoned = self._reasoned or bool(piece)
        self._pass_reasoning(self._whole_reasoning.add(piece))

    def end(self, cut: bool) -> None:
        """Process the end of the text. A part of a character at the end of a `cut` text is dropped."""
        if self._splitter is not None:
            self._splitter.end()
        self._pass_reasoning(self._whole_reasoning.end(cut and not self._pieces))
        self._pass(self._whole.end(cut))

    @property
    def activity(self) -> str:
        """Return what the model writes, for the progress of the task."""
        return "reasoning" if self._reasoned and not self._pieces else "writing"

    @property
    def text(self) -> str:
        """Return the text of the response so far."""
        return "".join(self._pieces)

    @property
    def reasoning(self) -> str | None:
        """Return the reasoning so far, or None without any."""
        return "".join(self._reasoning) or None

    def _take(self, piece: str) -> None:
        # Spaces between reasoning and text belong to neither.
        self._pass(self._whole.add(piece.lstrip() if self._reasoned and not self._pieces else piece))

    def _pass(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            if self._receiver is not None:
                self._receiver.token(piece)

    def _pass_reasoning(self, piece: str) -> None:
        if shown := self._trimmed.add(piece):
            self._reasoning.append(shown)
            if self._receiver is not None:
                self._receiver.reasoning(shown)
