"""Output of a task, kept in order, coalesced and limited in size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

from openruntime_jupyter.schemas.tasks import OutputItem, TaskOutput

TAIL_CHARACTERS = 20_000
Stream = Literal["stdout", "stderr"]

DISPLAY_FACTOR = 10
"""Rich output may be this many times as large as text, because of images."""


class OutputBuffer:
    """Output buffer filled by `print` and `display`; `read(since)` returns the items after a cursor.

    Text is kept up to `cap` characters, then only its end, with a note about the omitted part. A cursor is the number of items read;
    items do not change once they were read.
    """

    def __init__(self, cap: int) -> None:
        self.items: list[OutputItem] = []
        self.truncated = False
        self._cap = cap
        self._open: list[str] = []
        self._open_name: Stream | None = None
        self._text_kept = 0
        self._displays_kept = 0
        self._left_out = 0
        self._tail = ""
        self._tail_name: Stream = "stdout"
        self._finished = False

    @property
    def size(self) -> int:
        """Approximate number of characters."""
        return self._text_kept + self._displays_kept

    def print(self, name: Stream, text: str) -> None:
        """Append `text` that the task wrote to `stdout` or `stderr`."""
        room = self._cap - self._text_kept
        if room > 0:
            kept = text[:room]
            self._text_kept += len(kept)
            if self._open_name != name:
                self._seal()
                self._open_name = name
            self._open.append(kept)
            text = text[room:]
        if text:
            self._leave_out(name, text)

    def note(self, text: str) -> None:
        """Append a message of the runtime on separate lines."""
        last = self._tail or "".join(self._open[-1:]) or (self.items[-1].text if self.items else None) or "\n"
        self.print("stderr", text if last.endswith("\n") else f"\n{text}")

    def _leave_out(self, name: Stream, text: str) -> None:
        if not self.truncated:
            self.truncated = True
            self._seal()
            self._append_note(
                f"\n[more than {self._cap:,} characters: further output is left out until the task ends, "
                f"then the last {TAIL_CHARACTERS:,} characters are shown]\n"
            )
        self._left_out += len(text)
        self._tail = (self._tail + text)[-TAIL_CHARACTERS:]
        self._tail_name = name

    def _append_note(self, text: str) -> None:
        self.items.append(OutputItem.model_construct(output_type="stream", name="stderr", text=text))

    def display(self, item: dict[str, Any]) -> None:
        """Append a MIME bundle: `output_type`, `data`, `metadata`."""
        size = sum(len(value) if isinstance(value, str) else 1000 for value in item["data"].values())
        self._seal()
        self._displays_kept += size
        if self._displays_kept > self._cap * DISPLAY_FACTOR:
            self.truncated = True
            self._append_note(f"[a rich output of {size:,} bytes was left out: the limit per task is {self._cap * DISPLAY_FACTOR:,}]\n")
        else:
            self.items.append(OutputItem.model_construct(output_type=item["output_type"], data=item["data"], metadata=item["metadata"]))

    def _seal(self) -> None:
        if self._open:
            self.items.append(OutputItem.model_construct(output_type="stream", name=self._open_name, text="".join(self._open)))
            self._open = []
        self._open_name = None

    def finish(self) -> None:
        """Append the end of the omitted text; called when the task has finished."""
        if self._finished:
            return
        self._finished = True
        self._seal()
        if self._left_out:
            skipped = self._left_out - len(self._tail)
            self._append_note(f"[{skipped:,} characters left out]\n")
            self.items.append(OutputItem.model_construct(output_type="stream", name=self._tail_name, text=self._tail))
            self._tail, self._left_out = "", 0

    def read(self, since: int) -> tuple[list[OutputItem], int]:
        """Return the items after the cursor `since`, and the next cursor."""
        self._seal()
        return self.items[since:], len(self.items)

    def whole(self, task_id: str) -> TaskOutput:
        """Return the whole output for the history. Call it once the task has finished."""
        self.finish()
        items = list(self.items)
        return TaskOutput.model_construct(task_id=task_id, items=items, next=len(items), truncated=self.truncated, finished=True)


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """Piece of text and the number of characters before it. A later piece with index 0 starts a new attempt."""

    index: int
    text: str


class TokenLog:
    """Append-only text until it is closed; any number of readers may read from any position."""

    __slots__ = ("_attempt", "_changed", "_closed", "text")

    def __init__(self) -> None:
        self.text = ""
        self._attempt = 0
        self._closed = False
        self._changed: asyncio.Event | None = None

    def add(self, text: str) -> TokenPiece:
        """Append a piece of text and return it with its index."""
        piece = TokenPiece(len(self.text), text)
        self.text += text
        self._wake_readers()
        return piece

    def restart(self) -> None:
        """Clear the text for a new attempt after the worker died."""
        self.text = ""
        self._attempt += 1
        self._wake_readers()

    def close(self) -> None:
        """End the text."""
        self._closed = True
        self._wake_readers()

    def _wake_readers(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def read(self, since: int = 0) -> AsyncIterator[TokenPiece]:
        """Yield the text after `since` characters as it is appended."""
        attempt = self._attempt
        while True:
            if attempt != self._attempt:
                attempt, since = self._attempt, 0
            if since < len(self.text):
                piece = TokenPiece(since, self.text[since:])
                since = len(self.text)
                yield piece
            elif self._closed:
                return
            else:
                self._changed = self._changed or asyncio.Event()
                await self._changed.wait()
