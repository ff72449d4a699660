"""Errors that end a cell readably: one card that says what happened, where, and what to do.

The whole traceback is behind a click. What Jupyter itself is told is one line: enough to stop Run All, and for the logs of
programs that run notebooks, which find the traceback in the exception's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from IPython.core.getipython import get_ipython
from IPython.display import publish_display_data

from openruntime_jupyter.client.handles import task_error
from openruntime_jupyter.errors import OpenRuntimeError, TaskError
from openruntime_jupyter.notebook.display.html import Html, View, block, joined, tag
from openruntime_jupyter.notebook.display.states import WORDS, title
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, Task, TaskState

Error = TypeVar("Error", bound=BaseException)

BOLD, PLAIN = "\x1b[1m", "\x1b[0m"

FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+)(?:, in (?P<name>.+))?\n(?P<source>    .*)?', re.MULTILINE)
OTHERS = re.compile(r"[/\\](?:site-packages|dist-packages|python3\.\d+)[/\\]|^<frozen ")
"""Files that are not the user's own."""
MOST_FRAMES = 4
PACKAGE = str(Path(__file__).resolve().parents[2])


def short(error: Error, line: str | None = None, above: str | None = None, card: View | None = None) -> Error:
    """`error`, which IPython then shows as `line` (default: its message), below the text `above`, instead of a traceback.

    With a `card` that is shown instead of `above`; a program that runs the notebook gets both, as it is the error that it logs.
    """
    left = [card] if card is not None else []

    def shown() -> list[str]:
        shell: Any = get_ipython()
        plain = str(getattr(shell, "colors", "")).lower() == "nocolor"
        name = type(error).__name__ if plain else f"{BOLD}{type(error).__name__}{PLAIN}"
        told = [f"{name}: {line or error}"]
        kernel = getattr(shell, "kernel", None)
        if card is not None and kernel is None:  # a terminal shows text, and in one piece
            return [card.text()]
        if left:  # IPython asks more than once: to show it, and to keep it
            publish_display_data(left.pop().bundle())
        # Who can't answer `input()` is no person.
        watched = card is not None and getattr(kernel, "_allow_stdin", True)
        return [above.rstrip(), *told] if above and not watched else told

    # IPython asks the exception itself for its traceback, if it has this.
    setattr(error, "_render_traceback_", shown)  # noqa: B010  no exception declares it
    return error


@contextmanager
def shortened() -> Iterator[None]:
    """Errors of ours that come out of this block are shown without the way they took through our files."""
    try:
        yield
    except OpenRuntimeError as problem:
        if "_render_traceback_" not in vars(problem):
            short(problem)
        raise


def way_to(error: OpenRuntimeError) -> list[str]:
    """What IPython shows of an error that came out of the client: its traceback as far as the first of our files.

    The rest of the way, and the errors of other libraries that were translated, tell nobody anything who did not write them.
    """
    trodden: list[TracebackType] = []
    step = error.__traceback__
    while step is not None and not step.tb_frame.f_code.co_filename.startswith(PACKAGE):
        trodden.append(step)
        step = step.tb_next
    kept: TracebackType | None = None
    for step in reversed(trodden):
        kept = TracebackType(kept, step.tb_frame, step.tb_lasti, step.tb_lineno)
    shell: Any = get_ipython()
    hidden = error.__suppress_context__
    cause, error.__cause__ = error.__cause__, None
    error.__suppress_context__ = hidden
    try:
        return list(shell.InteractiveTB.structured_traceback(type(error), error, kept))
    finally:
        error.__cause__, error.__suppress_context__ = cause, hidden


def bad_end(task: Task, variables: Mapping[str, Any], verbose: bool, watched: bool) -> TaskError:
    """The error of a task that did not complete. `variables` are the notebook's, which some advice is about.

    `verbose` shows its traceback as the worker saw it instead of the card. What the worker wrote last is added unless it was
    `watched`, for then it stands above already.
    """
    error, failure = task_error(task), task.failure
    line = f"{(task.error or str(task.status)).rstrip('.').splitlines()[0]} ({task.task_id})"
    whole = (failure.traceback or failure.last_output) if failure is not None else None
    return short(error, line, whole, None if verbose else ErrorCard(task, variables, watched))


@dataclass(frozen=True)
class Frame:
    """One line of code on the way to an error."""

    where: str
    source: str
    own: bool


def frames(traceback: str) -> list[Frame]:
    """The last few lines of the user's own code, and where it ended if that was elsewhere."""
    every = [
        Frame(
            f"{found['file']}, line {found['line']}" + (f", in {found['name']}" if found["name"] and found["name"] != "<module>" else ""),
            (found["source"] or "").strip(),
            not OTHERS.search(found["file"]),
        )
        for found in FRAME.finditer(traceback)
    ]
    own = [frame for frame in every if frame.own][-MOST_FRAMES:]
    return own if not every or every[-1].own else [*own, every[-1]]


class ErrorCard(View):
    """How a task came to a bad end, and what can be done about it."""

    def __init__(self, task: Task, variables: Mapping[str, Any], watched: bool = True) -> None:
        self.task = task
        failure = task.failure
        self._message = (task.error or str(task.status)).strip()
        self._traceback = (failure.traceback or "").rstrip() if failure else ""
        self._last = (failure.last_output or "").rstrip() if failure and not watched and not failure.traceback else ""
        self._frames = frames(self._traceback)
        self._advice = advice(task, variables)

    @property
    def _next(self) -> list[str]:
        died = self.task.failure is not None and self.task.failure.kind is FailureKind.WORKER_DIED
        if died and self.task.session_name:
            found = [f"%openruntime restart {self.task.session_name}"]
        else:
            found = [f"%openruntime retry {self.task.task_id}"]
        return [*found, f"%openruntime output {self.task.task_id}"] if self._last else found

    def html(self) -> str:
        """Return the view as HTML."""
        sign, _, colour = WORDS[self.task.status]
        kind, colon, message = self._message.partition(": ")
        said = tag("span", tag("strong", kind), colon, message) if colon and kind.isidentifier() else tag("strong", self._message)
        head = tag("div", tag("span", sign, class_=colour, aria_hidden="true"), " ", said, class_="ort-e")
        places = [
            tag("div", tag("span", frame.where, class_="m"), " ", tag("code", frame.source), class_="ort-h") for frame in self._frames
        ]
        todo = [tag("div", line) for line in self._advice]
        commands = tag("div", joined([tag("code", command) for command in self._next]), class_="m")
        return block(f"Error of {title(self.task)}", head, *places, *todo, *self._whole(), commands, kind="ort-c ort-x")

    def _whole(self) -> list[Html]:
        found = []
        for name, text in (("Traceback in the worker", self._traceback), ("The last it wrote", self._last)):
            if text:
                lines = f"{name} ({len(text.splitlines())} lines)"
                found.append(tag("details", tag("summary", lines), tag("pre", text, tabindex="0")))
        return found

    def text(self) -> str:
        """Return the view as plain text."""
        lines = [f"{WORDS[self.task.status][0]} {self._message} ({self.task.task_id})"]
        for frame in self._frames:
            lines += [f"    {frame.where}", *([f"        {frame.source}"] if frame.source else [])]
        lines += self._advice
        if self._traceback:
            lines.append(f"The whole traceback: %openruntime result {self.task.task_id} --verbose")
        lines += ["The last it wrote:", *(f"    {line}" for line in self._last.splitlines())] if self._last else []
        return "\n".join([*lines, " · ".join(self._next)])


def advice(task: Task, variables: Mapping[str, Any]) -> list[str]:
    """What can be done about a bad end, in sentences; what its message says already is not said again."""
    failure = task.failure
    if failure is None:
        return []
    if task.status is TaskState.TIMED_OUT:
        return ["Give it longer by --timeout, or do less in one task."]
    if failure.kind is FailureKind.WORKER_DIED and task.session_name:
        return [f"The variables of the session {task.session_name} are lost. Restart it to use it again, empty."]
    if failure.kind is FailureKind.WORKER_DIED:
        return ["The notebook and all other tasks are well: only this task's worker is gone. --retries 2 runs such a task again by itself."]
    return _of_exception(failure, variables) if failure.kind is FailureKind.RAISED else []


def _of_exception(failure: Failure, variables: Mapping[str, Any]) -> list[str]:
    message = failure.message
    if failure.type == "NameError" and (found := re.search(r"name '([^\W\d]\w*)' is not defined", message)):
        if found[1] in variables:
            return [f"{found[1]} is a variable of this notebook, and a worker has none of those: hand it in with --in {found[1]}"]
        return [f"A worker has none of the notebook's variables and imports: import or define {found[1]} in this cell."]
    if failure.type == "ModuleNotFoundError" and (found := re.search(r"No module named '([\w.]+)'", message)):
        return [f"Install what has it in the environment in which the worker runs: %pip install {found[1].partition('.')[0]}"]
    if failure.type == "EOFError" and "EOF when reading a line" in message:
        return ["A worker has nobody to ask: call input() in a cell of the notebook's own, and hand the answer in with --in."]
    if failure.type == "OutputNotSet":
        return ["Set it in the cell, or take it out of --out."]
    if failure.type in ("MemoryError", "MemoryRefused"):
        return ["Make the work smaller, or do it in several tasks."]
    return []
