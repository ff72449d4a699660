"""What a task shows, kept in order, coalesced and capped."""

from __future__ import annotations

from typing import Any, Literal

from openruntime_jupyter.schemas.tasks import OutputItem, TaskOutput

TAIL_CHARACTERS = 20_000
Stream = Literal["stdout", "stderr"]

DISPLAY_FACTOR = 10
"""Rich output may be that many times as large as text: a picture is."""


class OutputBuffer:
    """Grows by `print` and `display`; `read(since)` gives what came after a cursor.

    Text is kept up to `cap` bytes, then only its end; what is left out in between is said. A cursor is the number of items
    read, and an item does not change once it was read.
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
        """About how many characters it holds."""
        return self._text_kept + self._displays_kept

    def print(self, name: Stream, text: str) -> None:
        """The task wrote `text` to `stdout` or `stderr`."""
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
        """The runtime says something of the task, on lines of its own."""
        last = self._tail or "".join(self._open[-1:]) or (self.items[-1].text if self.items else None) or "\n"
        self.print("stderr", text if last.endswith("\n") else f"\n{text}")

    def _leave_out(self, name: Stream, text: str) -> None:
        if not self.truncated:
            self.truncated = True
            self._seal()
            self._say(
                f"\n[more than {self._cap:,} characters: what follows is left out until the task ends, "
                f"then its last {TAIL_CHARACTERS:,} are shown]\n"
            )
        self._left_out += len(text)
        self._tail = (self._tail + text)[-TAIL_CHARACTERS:]
        self._tail_name = name

    def _say(self, text: str) -> None:
        self.items.append(OutputItem.model_construct(output_type="stream", name="stderr", text=text))

    def display(self, item: dict[str, Any]) -> None:
        """The task showed a MIME bundle: `output_type`, `data`, `metadata`."""
        size = sum(len(value) if isinstance(value, str) else 1000 for value in item["data"].values())
        self._seal()
        self._displays_kept += size
        if self._displays_kept > self._cap * DISPLAY_FACTOR:
            self.truncated = True
            self._say(f"[a rich output of {size:,} bytes was left out: a task may show {self._cap * DISPLAY_FACTOR:,}]\n")
        else:
            self.items.append(OutputItem.model_construct(output_type=item["output_type"], data=item["data"], metadata=item["metadata"]))

    def _seal(self) -> None:
        if self._open:
            self.items.append(OutputItem.model_construct(output_type="stream", name=self._open_name, text="".join(self._open)))
            self._open = []
        self._open_name = None

    def finish(self) -> None:
        """The task is over: tell the end of what was left out."""
        if self._finished:
            return
        self._finished = True
        self._seal()
        if self._left_out:
            skipped = self._left_out - len(self._tail)
            self._say(f"[{skipped:,} characters left out]\n")
            self.items.append(OutputItem.model_construct(output_type="stream", name=self._tail_name, text=self._tail))
            self._tail, self._left_out = "", 0

    def read(self, since: int) -> tuple[list[OutputItem], int]:
        """The items after cursor `since`, and the cursor after them."""
        self._seal()
        return self.items[since:], len(self.items)

    def whole(self, task_id: str) -> TaskOutput:
        """Everything, as the history keeps it. Call it once the task is over."""
        self.finish()
        items = list(self.items)
        return TaskOutput.model_construct(task_id=task_id, items=items, next=len(items), truncated=self.truncated, finished=True)
