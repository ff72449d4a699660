"""Live display of an answer: Markdown with a status line at the top."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from html import escape
from typing import Any

from openruntime_jupyter.client.ai_response import Reply
from openruntime_jupyter.client.handles import PromptHandle
from openruntime_jupyter.notebook.ai.sanitize import folded, sanitize
from openruntime_jupyter.notebook.display.format import duration, number
from openruntime_jupyter.notebook.display.html import View
from openruntime_jupyter.notebook.display.tasks import STATES, details, for_pages, read_at, state
from openruntime_jupyter.notebook.run.follow import FollowEnd, Interrupts, OutputReplay, StatusLine, follow
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.schemas.ai import LOCAL
from openruntime_jupyter.schemas.tasks import OutputItem, Task, TaskOutput, TaskState

ANSWER_SECONDS = 0.1
"""Minimum interval between updates of a short answer."""
CHARACTERS_A_SECOND = 200_000
"""Maximum rate at which text is sent to the page: long answers are updated less often."""
WRITING = "writing"
"""Progress message of a local model that counts tokens."""
COLOURS = {"ok": "success-color1", "no": "error-color1", "go": "brand-color1", "wa": "warn-color1", "m": "ui-font-color2"}
"""JupyterLab colour variable for each state class."""


class AnswerView(View):
    """Answer with a status line. Its plain text is the status line alone, because a terminal prints the answer itself.

    `reasoning` is folded above the answer. `as_json` shows the answer as code.
    """

    def __init__(
        self,
        task: Task,
        facts: list[str],
        answer: str,
        seen_at: float | None = None,
        shown: int = 0,
        reasoning: str = "",
        as_json: bool = False,
    ) -> None:
        read = read_at(task, seen_at)
        self._for_pages = for_pages(task, facts, seen_at, shown=shown, answer=True)
        self._task, self._facts, self._answer = task, [*facts, *([read] if read else [])], answer
        self._reasoning, self._as_json = reasoning, as_json

    def bundle(self) -> dict[str, Any]:
        """Return the status line and the answer as Markdown and as plain text."""
        colour = COLOURS[STATES[self._task.status][2]]
        rest = " · ".join([*map(escape, self._facts), f"<code>{escape(self._task.task_id)}</code>"])
        head = f'<small><span style="color:var(--jp-{colour}, inherit)">{escape(state(self._task))}</span>'
        head += f' · <span style="color:var(--jp-{COLOURS["m"]}, inherit)">{rest}</span></small>'
        reasoning = f"{folded('Reasoning', self._reasoning)}\n\n" if self._reasoning else ""
        answer = fenced_json(self._answer) if self._as_json and self._answer else self._answer
        forms = {"text/markdown": f"{head}\n\n{reasoning}{sanitize(answer)}", "text/plain": f"{self.text()}\n\n{self._answer}".rstrip()}
        return {**forms, **self._for_pages}

    def text(self) -> str:
        """Return the status line as plain text."""
        return " · ".join([state(self._task), *self._facts, self._task.task_id])


class AnswerLine(StatusLine):
    """Live display of a prompt. In a terminal, the text is printed as it arrives, with the status line on stderr."""

    def __init__(self, handle: PromptHandle, devices: Mapping[str, str]) -> None:
        super().__init__(handle, devices)
        self.text = ""
        self._reasoning = ""
        self._as_json = handle.schema is not None
        omitted = handle.left_out
        self._omitted = [f"{omitted} oldest turns omitted: they exceed the context window"] if omitted else []
        self._first_at: float | None = None
        self._first_tokens = 0.0
        self._printed = 0

    def add(self, piece: str) -> None:
        """Append a piece of text and update the display. The record of a completed task already has the whole text."""
        if not piece or _output(self.task) is not None:
            return
        if self._first_at is None:
            self._first_at, self._first_tokens = time.monotonic(), self._tokens or 0.0
        self.text += piece
        self.show()

    def take(self, output: TaskOutput) -> None:
        """Note the position in the output, and show new reasoning."""
        super().take(output)
        if output.reasoning is not None and output.reasoning != self._reasoning:
            self._reasoning = output.reasoning
            self.show()

    def show(self, task: Task | None = None, note: str | None = None, final: bool = False) -> None:
        """Show `task` as `StatusLine.show` does."""
        if task is not None and task.attempt > max(1, self.task.attempt):
            self.text = self._reasoning = ""  # the worker died and the answer starts over
        if task is not None and (output := _output(task)) is not None:
            self.text, self._reasoning = output["text"], output.get("reasoning") or ""
        super().show(task, note, final)

    def interval(self) -> float:
        """Return the minimum number of seconds between updates."""
        return max(ANSWER_SECONDS, (len(self.text) + len(self._reasoning)) / CHARACTERS_A_SECOND)

    def view(self) -> AnswerView:
        """Return the view of the prompt and its answer so far."""
        note = [self.note] if self.note and not self.task.status.terminal else []
        return AnswerView(
            self.task, [*note, *self._facts(), *self._omitted], self.text, self.seen_at, self.shown, self._reasoning, self._as_json
        )

    def update(self, view: View, final: bool = False) -> None:
        """Replace the display by `view`. A terminal prints the new text instead, and the status line at the end."""
        if not self.terminal:
            super().update(view, final)
            return
        new, self._printed = self.text[self._printed :], max(self._printed, len(self.text))
        sys.stdout.write(f"{new}\n" if final and self._printed else new)
        sys.stdout.flush()
        if final:
            super().update(view, final)

    @property
    def _tokens(self) -> float | None:
        """Number of tokens so far, if the model reports them."""
        progress = self.task.progress
        return progress.n if progress is not None and progress.message == WRITING else None

    def _facts(self) -> list[str]:
        task = self.task
        if task.status is TaskState.COMPLETED and task.result is not None:
            return statistics(task.result.output)
        if task.status is TaskState.RUNNING and self.text:
            written = self._tokens
            # Remote providers report the number of tokens only at the end.
            progress = [f"{number(written)} tokens" if written else f"{len(self.text):,} characters", self._speed(written)]
            return [*(part for part in progress if part), duration(task.execution_time)]
        return details(task, self.devices)

    def _speed(self, written: float | None) -> str | None:
        if self._first_at is None or not written or (seconds := time.monotonic() - self._first_at) < 1:
            return None
        return f"{(written - self._first_tokens) / seconds:.1f} tokens/s"


def statistics(output: Mapping[str, Any]) -> list[str]:
    """Return the available statistics of an answer: tokens, speed, reused tokens of the prompt, model, finish reason."""
    tokens, speed, model, provider = (output.get(name) for name in ("completion_tokens", "tokens_per_second", "model_used", "provider"))
    cached, prompt = output.get("cached_tokens"), output.get("prompt_tokens")
    parts = [
        f"{tokens:,} tokens" if tokens is not None else None,
        f"{speed:,.{1 if speed < 1000 else 0}f} tokens/s" if speed is not None else None,
        f"{cached:,} of {prompt:,} prompt tokens cached" if cached and prompt else None,
        f"{model or 'a model'}{'' if provider in (LOCAL, None) else f' of {provider}'}",
        "truncated at max_tokens" if output.get("finish_reason") == "length" else None,
    ]
    return [part for part in parts if part]


def fenced_json(text: str) -> str:
    """Return JSON, which may be incomplete, as a block of code; complete JSON with indents."""
    with suppress(ValueError):
        text = json.dumps(json.loads(text), ensure_ascii=False, indent=2)
    return f"```json\n{text.strip()}\n```"


def _output(task: Task) -> Mapping[str, Any] | None:
    """Return the output of a completed prompt, else None."""
    if task.status is not TaskState.COMPLETED or task.result is None:
        return None
    return task.result.output if isinstance(task.result.output.get("text"), str) else None


def follow_answer(handle: PromptHandle, devices: Mapping[str, str], interrupts: Interrupts, cancel: bool = True) -> tuple[Task, FollowEnd]:
    """Show an answer while it is generated. Return the task's record and the reason for stopping."""
    line, replay = AnswerLine(handle, devices), OutputReplay()

    def show(items: list[OutputItem]) -> None:
        # The answer is also the task's stdout. The runtime batches it into about ten pieces a second.
        line.add("".join(item.text or "" for item in items if item.name == "stdout"))
        replay.show(item for item in items if item.name != "stdout")

    return follow(handle, line, show, interrupts, cancel)


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
