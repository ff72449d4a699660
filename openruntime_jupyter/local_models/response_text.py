"""Text of a response, in whole characters, and the reasoning before it."""

from __future__ import annotations

from collections.abc import Callable

from openruntime_jupyter.local_models.characters import WholeCharacters
from openruntime_jupyter.local_models.reasoning import ReasoningSplitter


class ResponseText:
    """Text that a model writes in pieces.

    Parameters
    ----------
    on_text : gets each piece of the response as soon as it is final
    templated : whether the prompt had a chat template. The text after a plain prompt is not split.
    opened : tag of reasoning with which the prompt ended
    """

    def __init__(self, on_text: Callable[[str], None] | None, templated: bool, opened: str | None = None) -> None:
        self._on_text = on_text
        self._pieces: list[str] = []
        self._reasoning: list[str] = []
        self._whole = WholeCharacters()
        self._splitter = ReasoningSplitter(self._take, self.add_reasoning, opened) if templated else None

    def add(self, piece: str) -> None:
        """Process the next piece of generated text."""
        if self._splitter is not None:
            self._splitter.add(piece)
        else:
            self._take(piece)

    def add_reasoning(self, piece: str) -> None:
        """Add a piece of the reasoning."""
        self._reasoning.append(piece)

    def end(self, cut: bool) -> None:
        """Process the end of the text. A part of a character at the end of a `cut` text is dropped."""
        if self._splitter is not None:
            self._splitter.end()
        self._pass(self._whole.end(cut))

    @property
    def activity(self) -> str:
        """Return what the model writes, for the progress of the task."""
        return "reasoning" if self._reasoning and not self._pieces else "writing"

    @property
    def text(self) -> str:
        """Return the text of the response so far."""
        return "".join(self._pieces)

    @property
    def reasoning(self) -> str | None:
        """Return the reasoning so far, or None without any."""
        return "".join(self._reasoning).strip() or None

    def _take(self, piece: str) -> None:
        # Spaces between reasoning and text belong to neither.
        self._pass(self._whole.add(piece.lstrip() if self._reasoning and not self._pieces else piece))

    def _pass(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            if self._on_text is not None:
                self._on_text(piece)
