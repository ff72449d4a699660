"""Live display of an answer: Markdown with a status line at the top."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from html import escape
from typing import Any

from openruntime_jupyter.client.ai_response import Reply
from openruntime_jupyter.client.handles import PromptHandle, TaskHandle
from openruntime_jupyter.notebook.ai.sanitize import sanitize
from openruntime_jupyter.notebook.display.format import duration, number
from openruntime_jupyter.notebook.display.states import details, state_words
from openruntime_jupyter.notebook.run.follow import FollowEnd, Interrupts, follow_with
from openruntime_jupyter.notebook.run.live_status import StatusLine
from openruntime_jupyter.notebook.run.output import Replay
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.schemas.ai import LOCAL
from openruntime_jupyter.schemas.tasks import OutputItem, Task, TaskState

UPDATE_SECONDS = 0.1
"""Interval between updates of a short answer."""
CHARACTERS_A_SECOND = 200_000
"""Maximum rate at which text is sent to the page: long answers are updated less often."""


class AnswerLine(StatusLine):
    """Live display of a prompt. In a terminal, the text is printed as it arrives, with the status line on stderr."""

    def __init__(self, handle: PromptHandle, devices: Mapping[str, str]) -> None:
        self.text = ""
        self._left_out = handle.left_out
        self._first_at: float | None = None
        self._first_tokens = 0.0
        self._printed = 0
        super().__init__(handle.last_seen, devices)

    def add(self, piece: str) -> None:
        """Append a piece of text and update the display."""
        if not piece:
            return
        if self._first_at is None:
            self._first_at, self._first_tokens = time.monotonic(), self._tokens or 0.0
        self.text += piece
        self.show()

    def show(self, task: Task | None = None, note: str | None = None, final: bool = False) -> None:
        """Update the display, about ten times a second. The arguments are those of `StatusLine.show`."""
        if task is not None and task.attempt > max(1, self.task.attempt):
            self.text = ""  # the worker died and the answer starts over
        self.task, self._note = task or self.task, note or self._note
        if (final_text := _final_text(self.task)) is not None:
            self.text = final_text
        interval = max(UPDATE_SECONDS, len(self.text) / CHARACTERS_A_SECOND)
        urgent = final or note is not None or self.task.status.terminal
        if not urgent and time.monotonic() - self._shown_at < interval:
            return
        if self._terminal:
            self._print(final)
        elif (bundle := self.bundle()) != self._shown:
            self._send(bundle)
        self._shown_at = time.monotonic()

    def bundle(self) -> dict[str, Any]:
        """Return the display as Markdown and as plain text."""
        sign, words, colour = state_words(self.task)
        parts = self._parts()
        head = f'<small><span style="color:var(--jp-{COLOURS[colour]}, inherit)">{sign} {escape(words)}</span>'
        rest = [*(escape(part) for part in parts), f"<code>{escape(self.task.task_id)}</code>"]
        head += f' · <span style="color:var(--jp-{COLOURS["m"]}, inherit)">{" · ".join(rest)}</span></small>'
        return {"text/markdown": f"{head}\n\n{sanitize(self.text)}", "text/plain": f"{self._plain()}\n\n{self.text}".rstrip()}

    def _plain(self) -> str:
        sign, words, _ = state_words(self.task)
        return " · ".join([f"{sign} {words}", *self._parts(), self.task.task_id])

    @property
    def _tokens(self) -> float | None:
        """Number of tokens so far, if the model reports them."""
        progress = self.task.progress
        return progress.n if progress is not None and progress.message == WRITING else None

    def _parts(self) -> list[str]:
        task = self.task
        note = [self._note] if self._note and not task.status.terminal else []
        if task.status is TaskState.COMPLETED and task.result is not None:
            return [*note, *statistics(task.result.output), *self._about_turns()]
        if task.status is TaskState.RUNNING and self.text:
            written = self._tokens
            # Remote providers report the number of tokens only at the end.
            progress = [f"{number(written)} tokens" if written else f"{len(self.text):,} characters", self._speed(written)]
            return [*note, *(part for part in progress if part), duration(task.execution_time), *self._about_turns()]
        return [*note, *details(task, self._devices), *self._about_turns()]

    def _speed(self, written: float | None) -> str | None:
        if self._first_at is None or not written or (seconds := time.monotonic() - self._first_at) < 1:
            return None
        return f"{(written - self._first_tokens) / seconds:.1f} tokens/s"

    def _about_turns(self) -> list[str]:
        return [f"{self._left_out} oldest turns omitted: they exceed the context window"] if self._left_out else []

    def _print(self, final: bool) -> None:
        if len(self.text) > self._printed:
            sys.stdout.write(self.text[self._printed :])
            sys.stdout.flush()
            self._printed = len(self.text)
        if final:
            sys.stdout.write("\n" if self._printed else "")
            sys.stdout.flush()
            self._write(self._plain(), final)


COLOURS = {"ok": "success-color1", "no": "error-color1", "go": "brand-color1", "wa": "warn-color1", "m": "ui-font-color2"}
"""JupyterLab colour variable for each state class."""
WRITING = "writing"
"""Progress message of a local model that counts tokens."""


def statistics(output: Mapping[str, Any]) -> list[str]:
    """Return the available statistics of an answer: tokens, speed, model, finish reason."""
    tokens, speed, model, provider = (output.get(name) for name in ("completion_tokens", "tokens_per_second", "model_used", "provider"))
    parts = [
        f"{tokens:,} tokens" if tokens is not None else None,
        f"{speed:,.{1 if speed < 1000 else 0}f} tokens/s" if speed is not None else None,
        f"{model or 'a model'}{'' if provider in (LOCAL, None) else f' of {provider}'}",
        "truncated at max_tokens" if output.get("finish_reason") == "length" else None,
    ]
    return [part for part in parts if part]


def _final_text(task: Task) -> str | None:
    """Return the answer of a completed task, else None."""
    if task.status is not TaskState.COMPLETED or task.result is None:
        return None
    text = task.result.output.get("text")
    return text if isinstance(text, str) else None


def watch_answer(handle: TaskHandle, devices: Mapping[str, str], interrupts: Interrupts, cancel: bool = True) -> tuple[Task, FollowEnd]:
    """Show an answer while it is generated. Arguments and return value are those of `follow`."""
    assert isinstance(handle, PromptHandle)
    line, replay = AnswerLine(handle, devices), Replay()

    def show(items: list[OutputItem]) -> None:
        # The answer is also the task's stdout. The runtime batches it into about ten pieces a second.
        line.add("".join(item.text or "" for item in items if item.name == "stdout"))
        replay.show(item for item in items if item.name != "stdout")

    return follow_with(handle, line, show, interrupts, cancel)


class ShownReply(Reply):
    """Answer already displayed by its cell, and therefore not displayed again as the value of that cell."""

    @classmethod
    def shown(cls, reply: Reply, session: Session) -> ShownReply:
        """Return `reply`, marked as displayed by the running cell."""
        made = cls(**{field.name: getattr(reply, field.name) for field in fields(reply)})
        object.__setattr__(made, "_shown_by", (session, session.cell_number()))
        return made

    def _ipython_display_(self) -> None:
        session, cell = getattr(self, "_shown_by", (None, 0))
        if session is None or session.cell_number() != cell:
            raise NotImplementedError  # makes IPython use the other formatters
