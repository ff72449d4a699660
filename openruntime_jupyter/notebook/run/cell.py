"""Run cells and operations as tasks: submit, follow, and store the results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from IPython.core.error import UsageError

from openruntime_jupyter.client.ai_response import Reply
from openruntime_jupyter.client.discovery import EMBEDDED
from openruntime_jupyter.client.handles import PromptHandle, TaskHandle
from openruntime_jupyter.errors import InvalidRequest, NotConnected
from openruntime_jupyter.notebook.ai.live_answer import ShownReply, follow_answer
from openruntime_jupyter.notebook.arguments import Arguments, TaskArguments
from openruntime_jupyter.notebook.display.errors import completion_error, one_line
from openruntime_jupyter.notebook.display.tasks import ResultCard
from openruntime_jupyter.notebook.run.follow import FIRST_SECONDS, FollowEnd, Interrupts, OutputReplay, StatusLine, follow
from openruntime_jupyter.notebook.run.notifications import Notification, notify_at_exit
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.schemas.tasks import Task, TaskState


def run_cell(session: Session, arguments: Arguments, code: str) -> TaskHandle | None:
    """Run a cell's code as a task. Return the handle of a background task."""
    if not code.strip():
        raise UsageError("the cell is empty: write the code for the worker below the magic")
    inputs = session.inputs(arguments.inputs)
    client = session.client.with_options(**{"name": session.cell_name(), **arguments.options})
    # The magic's line is kept as a comment so that line numbers in tracebacks match the cell. A nested cell magic must come first.
    source = code if code.lstrip().startswith("%%") else f"# %%openruntime\n{code}"
    filename = f"In [{session.cell_number()}]"
    follow_for = 0.0 if arguments.background else FIRST_SECONDS

    def submit() -> TaskHandle:
        return client.submit_code(source, inputs, arguments.outputs, filename, follow_for)

    handle, task = run(session, arguments, submit, fixable=True)
    if task is None:
        return handle
    if arguments.outputs:
        session.namespace.update(handle.result())
    return None


def run_operation(session: Session, arguments: Arguments, operation: str) -> Any:
    """Run an operation. Return its output as a card, the requested arrays, or the handle of a background task."""
    client = session.client.with_options(**arguments.options)
    try:
        handle, task = run(session, arguments, lambda: client.submit(operation, **arguments.pairs))
    except InvalidRequest as problem:
        raise one_line(problem, _explain(problem, operation, session, arguments.pairs)) from None
    return handle if task is None else shown(task, handle.result())


def shown(task: Task, value: Any) -> Any:
    """Return an operation's output as a card, and any other value unchanged."""
    return ResultCard(task, value) if is_output(task, value) else value


def is_output(task: Task, value: Any) -> bool:
    """Return whether the result of a task is the output of an operation, not a value of the user's code."""
    return task.operation not in ("python", "call") and isinstance(value, dict)


def _explain(problem: InvalidRequest, operation: str, session: Session, given: Mapping[str, Any]) -> str:
    """Return a message about invalid parameters: their names, the `given` values, and suggestions for unknown names."""
    schemas = {entry.name: entry.parameters_schema for entry in session.client.operations()}
    known = schemas.get(operation, {}).get("properties", {})
    problems = []
    for detail in problem.details:
        name, why = detail["field"].removeprefix("parameters.").removeprefix("parameters"), detail["problem"]
        if not name or name == detail["field"] or "." in name or name in known or not known:
            written = f"{name}={given[name]}" if name in given else name
            problems.append(f"{written}: {why}" if written else why)
            continue
        near = get_close_matches(name, known, 1)
        guess = f"did you mean {near[0]}? It takes" if near else "it takes"
        problems.append(f"{operation} has no parameter {name!r}: {guess} {', '.join(known)}")
    return "; ".join(problems) or str(problem)


def run_again(session: Session, arguments: Arguments, handle: TaskHandle) -> Any:
    """Run a task again. Return the same kind of value as `run_operation`."""
    again, task = run(session, arguments, lambda: session.client.again(handle.id, **arguments.options))
    if task is None:
        return again
    value = again.result()
    return ShownReply.shown(value, session) if isinstance(value, Reply) else shown(task, value)


def watch(session: Session, arguments: Arguments, handle: TaskHandle) -> Task:
    """Follow a task that was started elsewhere until it ends. Ctrl-C does not cancel it. Raises the task's error."""
    with Interrupts() as interrupts, notify_at_exit(handle, arguments.notify) as notification:
        task, left = _show(handle, session.devices(), interrupts, notification, cancel=False)
    if task.status.terminal:
        session.unseen.remove(handle.id)
    if left in (FollowEnd.DETACHED, FollowEnd.LEFT):
        raise one_line(KeyboardInterrupt(f"{handle.id} continues to run: use %openruntime cancel {handle.id} to stop it"))
    return completed(session, task, arguments.verbose)


def completed(session: Session, task: Task, verbose: bool = False, watched: bool = True, fixable: bool = False) -> Task:
    """Return `task` if it completed, else raise its error.

    `watched` means that its output is already displayed, `fixable` that the running cell is its code.
    """
    if task.status is not TaskState.COMPLETED:
        raise completion_error(task, session.namespace, verbose, watched, fixable)
    return task


def _show(
    handle: TaskHandle, devices: Mapping[str, str], interrupts: Interrupts, notification: Notification | None, cancel: bool = True
) -> tuple[Task, FollowEnd]:
    if isinstance(handle, PromptHandle):
        return follow_answer(handle, devices, interrupts, cancel)
    line = StatusLine(handle, devices)

    def restore() -> None:
        if notification is not None:
            notification.restore()
        line.restore()

    replay = OutputReplay(restore)
    try:
        return follow(handle, line, replay.show, interrupts, cancel)
    finally:
        replay.end()


def run(
    session: Session, arguments: TaskArguments, submit: Callable[[], TaskHandle], fixable: bool = False
) -> tuple[TaskHandle, Task | None]:
    """Submit a task and, unless it runs in the background, follow it. Return the handle and the completed task, if followed.

    `fixable` means that the running cell is the code of the task.
    """
    try:
        with Interrupts() as interrupts:
            handle = submit()
            session.remember(handle, arguments.variable)
            if not handle.last_seen.status.terminal:
                session.unseen.add(handle.id)
            if arguments.background and not interrupts.count:
                session.background.follow(handle, Notification(handle.id, "the task") if arguments.notify else None)
                return handle, None
            with notify_at_exit(handle, arguments.notify) as notification:
                task, left = _show(handle, session.devices(), interrupts, notification)
            if arguments.options.get("device") == "gpu" and session.lacks_gpu():
                sys.stderr.write("This machine has no GPU: the task ran on the CPU\n")
    except NotConnected:
        session.lose()
        raise
    _raise_if_stopped(session, handle, task, left)
    return handle, completed(session, task, arguments.verbose, fixable=fixable)


def _raise_if_stopped(session: Session, handle: TaskHandle, task: Task, left: FollowEnd) -> None:
    """Raise KeyboardInterrupt with the state of the task if following it was stopped."""
    if task.status.terminal:
        session.unseen.remove(handle.id)
    if left is FollowEnd.LEFT:
        here = "ends with this kernel, which hosts it" if session.client.where == EMBEDDED else "continues to run without this kernel"
        raise one_line(KeyboardInterrupt(f"{handle.id} {here}"))
    if left is FollowEnd.DETACHED:
        session.background.follow(handle)
        raise one_line(
            KeyboardInterrupt(f"{handle.id} is being cancelled and no longer watched: use %openruntime wait {handle.id} to watch it again")
        )
    if task.status is TaskState.INTERRUPTED:  # its runtime is stopping
        session.lose()
    if left is FollowEnd.INTERRUPTED and task.status in (TaskState.CANCELLED, TaskState.COMPLETED):
        ended = "was cancelled" if task.status is TaskState.CANCELLED else "completed before it could be cancelled"
        raise one_line(KeyboardInterrupt(f"{handle.id} {ended}"))
