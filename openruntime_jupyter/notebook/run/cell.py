"""From a cell to a task and back: submit, watch, and bring home what it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Protocol

from IPython.core.error import UsageError

from openruntime_jupyter.client.ai_response import Reply
from openruntime_jupyter.client.handles import PromptHandle, TaskHandle
from openruntime_jupyter.errors import InvalidRequest, NotConnected
from openruntime_jupyter.notebook.ai.live_answer import ShownReply, watch_answer
from openruntime_jupyter.notebook.arguments import Arguments, parse_cell
from openruntime_jupyter.notebook.display.errors import bad_end, short
from openruntime_jupyter.notebook.display.help import Help
from openruntime_jupyter.notebook.display.tasks import ResultCard
from openruntime_jupyter.notebook.run.follow import FIRST_SECONDS, FollowEnd, Interrupts, follow
from openruntime_jupyter.notebook.run.notifications import BackgroundNotice, noticed
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.schemas.tasks import Task, TaskState

CELLS: dict[str, Callable[[Session, str, str], Any]] = {}
"""Cells that hold something else than code, by the first word of their line, such as `ai`: what does them gets the rest of the line."""


def start_cell(session: Session, line: str, cell: str) -> Any:
    """Do what a cell of `%%openruntime` says; raises `UsageError` for a line that it does not understand."""
    word, _, rest = line.strip().partition(" ")
    if word in CELLS:
        return CELLS[word](session, rest, cell)
    arguments = parse_cell(line)
    return Help() if arguments.help else run_cell(session, arguments, cell)


class RunOptions(Protocol):
    """What a line asks of any task."""

    @property
    def background(self) -> bool:
        """Whether to return the handle at once instead of waiting."""

    @property
    def variable(self) -> str | None:
        """Where the handle is to be kept, beside `_openruntime`."""

    @property
    def verbose(self) -> bool:
        """Whether an error shows the whole traceback at once."""


def run_cell(session: Session, arguments: Arguments, code: str) -> TaskHandle | None:
    """Run a cell's code as a task; returns its handle if it runs in the background."""
    if not code.strip():
        raise UsageError("the cell is empty: write the code for the worker below the magic.")
    inputs = session.inputs(arguments.inputs)
    client = session.client.with_options(**{"name": session.cell_name(), **arguments.options})
    # The magic's own line stays a line, so that tracebacks count as the cell does; but a cell magic must be the first.
    source = code if code.lstrip().startswith("%%") else f"# %%openruntime\n{code}"
    filename = f"In [{session.cell_number()}]"
    follow_for = 0.0 if arguments.background else FIRST_SECONDS
    handle, task = run(
        session, arguments, lambda: client.submit_code(source, inputs, arguments.outputs, filename, follow_for), arguments.notify
    )
    if task is None:
        return handle
    if arguments.outputs:
        session.namespace.update(handle.result())
    return None


def run_operation(session: Session, arguments: Arguments, operation: str) -> Any:
    """Run an operation; returns its output as a card, the arrays that were asked for, or its handle if it runs in the background."""
    client = session.client.with_options(**arguments.options)
    try:
        handle, task = run(session, arguments, lambda: client.submit(operation, **arguments.pairs), arguments.notify)
    except InvalidRequest as problem:
        raise short(problem, _with_names(problem, operation, session, arguments.pairs)) from None
    return handle if task is None else shown(task, handle.result())


def shown(task: Task, value: Any) -> Any:
    """What a task returned: an operation's output as a card, anything else as it is."""
    return ResultCard(task, value) if task.operation not in ("python", "call") and isinstance(value, dict) else value


def _with_names(problem: InvalidRequest, operation: str, session: Session, given: Mapping[str, Any]) -> str:
    """What was wrong with an operation's parameters: by their names, with what was `given`, and the names that there are for others."""
    known = session.offers.parameters(operation)
    said = []
    for detail in problem.details:
        name, why = detail["field"].removeprefix("parameters.").removeprefix("parameters"), detail["problem"]
        if not name or name == detail["field"] or "." in name or name in known or not known:
            written = f"{name}={given[name]}" if name in given else name
            said.append(f"{written}: {why}" if written else why)
            continue
        near = get_close_matches(name, known, 1)
        guess = f"did you mean {near[0]}? It takes" if near else "it takes"
        said.append(f"{operation} has no parameter {name!r}: {guess} {', '.join(known)}")
    return "; ".join(said) or str(problem)


def run_again(session: Session, arguments: Arguments, handle: TaskHandle) -> Any:
    """Do a task's work once more; returns what `run_operation` would."""
    again, task = run(session, arguments, lambda: session.client.again(handle.id, **arguments.options), arguments.notify)
    if task is None:
        return again
    value = again.result()
    return ShownReply.shown(value, session) if isinstance(value, Reply) else shown(task, value)


def watch(session: Session, arguments: Arguments, handle: TaskHandle) -> Task:
    """Show a task that was started elsewhere until it ends; Ctrl-C leaves it alone. Raises its error."""
    with Interrupts() as interrupts, noticed(handle, arguments.notify):
        task, left = _show(handle, session.devices(), interrupts, cancel=False)
    if left is FollowEnd.DETACHED:
        raise short(KeyboardInterrupt(f"{handle.id} goes on: %openruntime cancel {handle.id} stops it"))
    return completed(session, task, arguments.verbose)


def completed(session: Session, task: Task, verbose: bool = False, watched: bool = True) -> Task:
    """`task`, if it completed; raises why not otherwise. `watched`: its output stands above."""
    if task.status is not TaskState.COMPLETED:
        raise bad_end(task, session.namespace, verbose, watched)
    return task


def _show(handle: TaskHandle, devices: Mapping[str, str], interrupts: Interrupts, cancel: bool = True) -> tuple[Task, FollowEnd]:
    return (watch_answer if isinstance(handle, PromptHandle) else follow)(handle, devices, interrupts, cancel)


def run(session: Session, arguments: RunOptions, submit: Callable[[], TaskHandle], notify: bool = False) -> tuple[TaskHandle, Task | None]:
    """Submit, and unless it runs in the background, watch; returns the record of a completed task."""
    try:
        with Interrupts() as interrupts:
            handle = submit()
            session.remember(handle, arguments.variable)
            if arguments.background and not interrupts.count:
                if notify:
                    BackgroundNotice(session.client.backend, handle)
                return handle, None
            with noticed(handle, notify):
                task, left = _show(handle, session.devices(), interrupts)
    except NotConnected:
        session.lose()
        raise
    if left is FollowEnd.DETACHED:
        raise short(
            KeyboardInterrupt(f"{handle.id} was asked to stop and is no longer watched: %openruntime wait {handle.id} watches it again")
        )
    if task.status is TaskState.INTERRUPTED:  # its runtime is being stopped
        session.lose()
    if left is FollowEnd.INTERRUPTED and task.status in (TaskState.CANCELLED, TaskState.COMPLETED):
        ended = "was cancelled" if task.status is TaskState.CANCELLED else "completed before it could be cancelled"
        raise short(KeyboardInterrupt(f"{handle.id} {ended}"))
    return handle, completed(session, task, arguments.verbose)
