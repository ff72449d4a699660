"""Report of the tasks that earlier kernels of this notebook left behind, shown when the extension is loaded."""

from __future__ import annotations

import sys

from openruntime_jupyter.errors import TaskNotFound
from openruntime_jupyter.notebook.display.tasks import phrase, title
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.schemas.tasks import Task, TaskState

MOST_LINES = 10
"""Maximum number of listed tasks of each kind. A map leaves many."""


def report_unseen(session: Session) -> None:
    """Print which remembered tasks ended, and which still run, with the commands that show them. Ended ones are then forgotten."""
    ended: list[Task] = []
    live: list[Task] = []
    for task_id in session.unseen.of_earlier_kernels():
        try:
            task = session.client.task(task_id).last_seen
        except TaskNotFound:  # deleted, or of another runtime
            session.unseen.remove(task_id)
            continue
        (ended if task.status.terminal else live).append(task)
    completed = all(task.status is TaskState.COMPLETED for task in ended)
    _print(ended, f"{'finished' if completed else 'ended'} while you were away")
    _print(live, "still running" if all(task.status is TaskState.RUNNING for task in live) else "still waiting or running")
    for task in ended:
        session.unseen.remove(task.task_id)


def _print(tasks: list[Task], what: str) -> None:
    if not tasks:
        return
    count = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
    verb = "" if tasks[0].status.terminal else "is " if len(tasks) == 1 else "are "
    lines = [f"{title(task)} ({phrase(task)}): {_command(task)}" for task in tasks[:MOST_LINES]]
    if len(tasks) > MOST_LINES:
        lines.append(f"and {len(tasks) - MOST_LINES} more: `%openruntime tasks notebook=this` lists them")
    separator = " " if len(lines) == 1 else "\n  "
    sys.stdout.write(separator.join([f"{count} of this notebook {verb}{what}:", *lines]) + "\n")


def _command(task: Task) -> str:
    """Return the command for what is left to do with a task, with its effect."""
    if not task.status.terminal:
        return f"`%openruntime wait {task.task_id}` follows it"
    if task.status is not TaskState.COMPLETED:
        return f"`%openruntime result {task.task_id}` shows its error"
    if task.operation == "python":
        has_outputs = task.result is not None and task.result.payload is not None
        shown = f"`%openruntime output {task.task_id}` shows its output"
        return f"`%openruntime result {task.task_id} --set` sets its variables here, {shown}" if has_outputs else shown
    return f"`%openruntime result {task.task_id}` shows its result"
