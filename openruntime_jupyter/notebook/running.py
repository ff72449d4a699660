"""From a cell to a task and back: submit, watch, and bring home what it made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from IPython.core.error import UsageError

from openruntime_jupyter.client.handle import TaskHandle
from openruntime_jupyter.errors import NotConnected
from openruntime_jupyter.models import Task, TaskState
from openruntime_jupyter.notebook.arguments import Arguments
from openruntime_jupyter.notebook.failures import bad_end, short
from openruntime_jupyter.notebook.follow import Interrupts, Left, follow
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.notebook.views import ResultCard


def run_cell(session: Session, arguments: Arguments, code: str) -> TaskHandle | None:
    """Run a cell's code as a task; returns its handle if it runs in the background."""
    if not code.strip():
        raise UsageError("the cell is empty: write the code for the worker below the magic.")
    inputs = session.inputs(arguments.inputs)
    client = session.client.with_options(**{"name": session.cell_name(), **arguments.options})
    # The magic's own line stays a line, so that tracebacks count as the cell does; but a cell magic must be the first.
    source = code if code.lstrip().startswith("%%") else f"# %%openruntime\n{code}"
    filename = f"In [{session.cell_number()}]"
    handle, task = _run(session, arguments, lambda: client.submit_code(source, inputs, arguments.outputs, filename))
    if task is None:
        return handle
    if arguments.outputs:
        session.namespace.update(handle.result())
    return None


def run_operation(session: Session, arguments: Arguments, operation: str) -> Any:
    """Run an operation; returns its output as a card, the arrays that were asked for, or its handle if it runs in the background."""
    client = session.client.with_options(**arguments.options)
    handle, task = _run(session, arguments, lambda: client.submit(operation, **arguments.pairs))
    return handle if task is None else shown(task, handle.result())


def shown(task: Task, value: Any) -> Any:
    """What a task returned: an operation's output as a card, anything else as it is."""
    return ResultCard(task, value) if task.operation not in ("python", "call") and isinstance(value, dict) else value


def watch(session: Session, handle: TaskHandle) -> Task:
    """Show a task that was started elsewhere until it ends; Ctrl-C leaves it alone. Raises its error."""
    with Interrupts() as interrupts:
        task, left = follow(handle, session.devices(), interrupts, cancel=False)
    if left is Left.DETACHED:
        raise short(KeyboardInterrupt(f"{handle.id} goes on: %openruntime cancel {handle.id} stops it"))
    return completed(task)


def completed(task: Task, watched: bool = True) -> Task:
    """`task`, if it completed; raises why not otherwise. `watched`: its output stands above."""
    if task.status is not TaskState.COMPLETED:
        raise bad_end(task, watched)
    return task


def _run(session: Session, arguments: Arguments, submit: Callable[[], TaskHandle]) -> tuple[TaskHandle, Task | None]:
    """Submit, and unless it runs in the background, watch; returns the record of a completed task."""
    try:
        with Interrupts() as interrupts:
            handle = submit()
            session.remember(handle, arguments.variable)
            if arguments.background and not interrupts.count:
                return handle, None
            task, left = follow(handle, session.devices(), interrupts)
    except NotConnected:
        session.forget()
        raise
    if left is Left.DETACHED:
        raise short(
            KeyboardInterrupt(f"{handle.id} was asked to stop and is no longer watched: %openruntime wait {handle.id} watches it again")
        )
    if left is Left.INTERRUPTED and task.status in (TaskState.CANCELLED, TaskState.COMPLETED):
        ended = "was cancelled" if task.status is TaskState.CANCELLED else "completed before it could be cancelled"
        raise short(KeyboardInterrupt(f"{handle.id} {ended}"))
    return handle, completed(task)
