"""Watching an answer while it is written."""

from __future__ import annotations

from collections.abc import Mapping

from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.client.prompt_handle import PromptHandle
from openruntime_jupyter.models import OutputItem, Task
from openruntime_jupyter.notebook.ai.live_answer import AnswerLine
from openruntime_jupyter.notebook.run.follow import Interrupts, Left, attend
from openruntime_jupyter.notebook.run.output import Replay


def watch_answer(handle: TaskHandle, devices: Mapping[str, str], interrupts: Interrupts, cancel: bool = True) -> tuple[Task, Left]:
    """Show an answer while it is written; see `follow`."""
    assert isinstance(handle, PromptHandle)
    line, replay = AnswerLine(handle, devices), Replay()

    def show(items: list[OutputItem]) -> None:
        # What a model writes is its task's output too, and the runtime gathers it to ten pieces a second.
        line.add("".join(item.text or "" for item in items if item.name == "stdout"))
        replay.show(item for item in items if item.name != "stdout")

    return attend(handle, line, show, interrupts, cancel)
