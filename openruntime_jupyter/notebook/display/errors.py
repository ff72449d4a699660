"""Readable errors in cells: a card with the error, its location and advice.

The full traceback is collapsed. Jupyter itself gets one line, which is enough to stop Run All. Programs that run notebooks log the text of
an error without its card. There the message and the frames are in the text, and not in the card.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import indent
from types import TracebackType
from typing import Any, TypeVar

from IPython.core.getipython import get_ipython
from IPython.display import publish_display_data

from openruntime_jupyter.client.handles import task_error
from openruntime_jupyter.errors import OpenRuntimeError, TaskError
from openruntime_jupyter.notebook.display.html import Styled, View, code, collapsed, joined, line, sign, tag
from openruntime_jupyter.notebook.display.tasks import STATES, title
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, Task, TaskState

Error = TypeVar("Error", bound=BaseException)

BOLD, PLAIN = "\x1b[1m", "\x1b[0m"

FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+)(?:, in (?P<name>.+))?\n(?P<source>    .*)?', re.MULTILINE)
LIBRARY = re.compile(r"[/\\](?:site-packages|dist-packages|python3\.\d+|openruntime_jupyter)[/\\]|^<frozen ")
"""Files of libraries and of this package, as opposed to the user's files."""
CODE_FILE = re.compile(r'(?<=  )File "([^"]+)"')
MOST_FRAMES = 4
PACKAGE = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class Logged:
    """Form of an error for programs that run notebooks: they log the text, and save the card too."""

    message: str
    above: str = ""
    card: View | None = None


def one_line(error: Error, message: str | None = None, above: str = "", card: View | None = None, logged: Logged | None = None) -> Error:
    """Make IPython show `error` as one line with `message` (default: its own) instead of a traceback, and return it.

    The text `above` is shown before the line, and the `card` before both. Programs that run notebooks show the form `logged`, if there is
    one.
    """
    interactive = Logged(message or str(error), above, card)
    published = False

    def shown() -> list[str]:
        nonlocal published
        shell: Any = get_ipython()
        kernel = getattr(shell, "kernel", None)
        if card is not None and kernel is None:  # a terminal shows the card as text
            return [card.text()]
        # Programs that run notebooks do not support `input()`.
        form = interactive if logged is None or getattr(kernel, "_allow_stdin", True) else logged
        if form.card is not None and not published:  # IPython renders an error twice: to show it and to store it
            publish_display_data(form.card.bundle())
            published = True
        plain = str(getattr(shell, "colors", "")).lower() == "nocolor"
        name = type(error).__name__ if plain else f"{BOLD}{type(error).__name__}{PLAIN}"
        return [*filter(None, [form.above.rstrip()]), f"{name}: {form.message}"]

    # IPython uses this method of an exception to render it.
    setattr(error, "_render_traceback_", shown)  # noqa: B010  not declared by any exception
    return error


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Show OpenRuntime errors raised in the block without a traceback."""
    try:
        yield
    except OpenRuntimeError as problem:
        if "_render_traceback_" not in vars(problem):
            one_line(problem)
        raise


def client_traceback(error: OpenRuntimeError) -> list[str]:
    """Return the rendered traceback of a client error, up to the first frame of this package.

    The internal frames and the translated errors of other libraries do not help users.
    """
    user_frames: list[TracebackType] = []
    step = error.__traceback__
    while step is not None and not step.tb_frame.f_code.co_filename.startswith(PACKAGE):
        user_frames.append(step)
        step = step.tb_next
    kept: TracebackType | None = None
    for step in reversed(user_frames):
        kept = TracebackType(kept, step.tb_frame, step.tb_lasti, step.tb_lineno)
    shell: Any = get_ipython()
    hidden = error.__suppress_context__
    cause, error.__cause__ = error.__cause__, None
    error.__suppress_context__ = hidden
    try:
        lines = shell.InteractiveTB.structured_traceback(type(error), error, kept)
    finally:
        error.__cause__, error.__suppress_context__ = cause, hidden
    return [CODE_FILE.sub(partial(_code_name, shell), each) for each in lines]


def _code_name(shell: Any, found: re.Match[str]) -> str:
    """Return the name of a cell, as IPython shows it, for the file of its code in the traceback of a worker."""
    return " ".join(shell.compile.format_code_name(found[1]) or [found[0]])


def completion_error(task: Task, variables: Mapping[str, Any], verbose: bool, watched: bool, fixable: bool = False) -> TaskError:
    """Return the error of a task that did not complete. `variables` are the notebook's variables, used for advice.

    `verbose` shows the worker's traceback instead of the card. The worker's last output is included unless the output was already
    displayed (`watched`). `fixable` means that the running cell is the task's code. The line below card or traceback does not repeat
    their message.
    """
    error, failure = task_error(task), task.failure
    whole = (failure.traceback or failure.last_output) if failure is not None else None
    message, see_above = f"{(task.error or str(task.status)).rstrip('.')} ({task.task_id})", f"see above ({task.task_id})"
    if verbose:
        return one_line(error, see_above, whole) if whole else one_line(error, message.splitlines()[0])
    card = ErrorCard(task, variables, watched, fixable, logged=True)
    logged = Logged(message, "\n".join(str(frame.styled()) for frame in card.frames), card if card.text() else None)
    return one_line(error, see_above, card=ErrorCard(task, variables, watched, fixable), logged=logged)


@dataclass(frozen=True)
class Frame:
    """One frame of a traceback."""

    where: str
    source: str

    def styled(self) -> Styled:
        """Return the place and the source line, which is a separate line of the text."""
        html = tag("div", tag("span", self.where, class_="m"), " ", tag("code", self.source), class_="ort-h")
        return Styled(self.where + (f"\n    {self.source}" if self.source else ""), html)


def frames(traceback: str) -> list[Frame]:
    """Return the last frames of the user's code."""
    every = [
        Frame(
            f"{found['file']}, line {found['line']}" + (f", in {found['name']}" if found["name"] and found["name"] != "<module>" else ""),
            (found["source"] or "").strip(),
        )
        for found in FRAME.finditer(traceback)
        if not LIBRARY.search(found["file"])
    ]
    return every[-MOST_FRAMES:]


class ErrorCard(View):
    """Error of a task, with its location and advice.

    `watched` means that its output is already displayed, `fixable` that `%openruntime fix` refers to its code, and `logged` that message
    and frames follow below the card.
    """

    kind = "ort-c ort-x"

    def __init__(self, task: Task, variables: Mapping[str, Any], watched: bool = True, fixable: bool = False, logged: bool = False) -> None:
        self.task = task
        self._fixable = fixable
        self._logged = logged
        self.label = f"Error of {title(task)}"
        failure = task.failure
        self._traceback = (failure.traceback or "").rstrip() if failure else ""
        self.frames = frames(self._traceback)
        self._last = (failure.last_output or "").rstrip() if failure and not watched and not failure.traceback else ""
        self._advice = advice(task, variables)

    def content(self) -> Iterable[Styled]:
        """Return the message, the frames, advice, the traceback, the last output, and the next commands."""
        if self._logged:
            yield from (line(frame.where, class_="m") for frame in self.frames[-1:])
        else:
            yield self._head()
            for shown in (frame.styled() for frame in self.frames):
                yield Styled(indent(shown, "    "), shown.html)
        yield from map(line, self._advice)
        if FRAME.search(self._traceback):  # otherwise it only repeats the message
            hint = f"Full traceback: %openruntime result {self.task.task_id} --verbose"
            yield Styled(hint, collapsed("Traceback in the worker", self._traceback))
        if self._last:
            indented = "".join(f"\n    {each}" for each in self._last.splitlines())
            yield Styled(f"Last output:{indented}", collapsed("Last output", self._last))
        if commands := self._next():
            yield line(joined(map(code, commands)), class_="m")

    def _head(self) -> Styled:
        message = (self.task.error or str(self.task.status)).strip()
        kind, colon, rest = message.partition(": ")
        html = tag("span", tag("strong", kind), colon, rest) if colon and kind.isidentifier() else tag("strong", message)
        mark, _, colour = STATES[self.task.status]
        return Styled(f"{mark} {message}", tag("div", sign(mark, colour), " ", html, class_="ort-e"))

    def _next(self) -> list[str]:
        """Return the commands that can help."""
        task, failure = self.task, self.task.failure
        commands = [f"%openruntime output {task.task_id}"] if self._last else []
        if failure is not None and failure.kind is FailureKind.WORKER_DIED and task.session_name:
            return [f"%openruntime restart {task.session_name}", *commands]
        if retry_helps(failure):
            longer = f" --timeout {2 * task.timeout:g}" if task.status is TaskState.TIMED_OUT and task.timeout else ""
            return [f"%openruntime retry {task.task_id}{longer}", *commands]
        fixable = self._fixable and not self._logged  # the kernel that has the error ends with the program
        return ["%openruntime fix", *commands] if fixable and model_helps(failure) else commands


TRANSIENT = {
    *("TimeoutError", "ConnectionError", "ConnectionResetError", "ConnectionRefusedError", "ConnectionAbortedError", "BrokenPipeError"),
    *("ConnectTimeout", "ReadTimeout", "ConnectError", "ReadError", "URLError", "HTTPError", "RemoteDisconnected", "SSLError"),
    *("ProviderUnreachable", "ProviderBusy", "ProviderBroken", "Unavailable"),
}
"""Exceptions after which the same code may succeed."""
OF_SURROUNDINGS = {
    *("SystemExit", "KeyboardInterrupt", "BdbQuit", "EOFError", "ModuleNotFoundError", "MemoryError", "MemoryRefused"),
    *("StorageUnavailable", "NoBackend", "OSError", "PermissionError", "FileNotFoundError"),
}
"""Exceptions whose cause is outside the code, so that other code does not help."""


def retry_helps(failure: Failure | None) -> bool:
    """Return whether a task may succeed if it is run again without changes, except for its timeout."""
    if failure is None:
        return True
    if failure.kind is FailureKind.MEMORY:
        return failure.peak_memory is None  # otherwise the same work exceeds its limit again
    return failure.kind is not FailureKind.RAISED or failure.type in TRANSIENT


def model_helps(failure: Failure | None) -> bool:
    """Return whether a model can fix the code that failed."""
    return failure is not None and failure.kind is FailureKind.RAISED and failure.type not in TRANSIENT | OF_SURROUNDINGS


def advice(task: Task, variables: Mapping[str, Any]) -> list[str]:
    """Return advice on an error, without repeating its message."""
    failure = task.failure
    if failure is None:
        return []
    if task.status is TaskState.TIMED_OUT:
        return ["Increase --timeout, or split the work into smaller tasks"]
    if failure.kind is FailureKind.WORKER_DIED and task.session_name:
        return [f"The variables of the session {task.session_name} are lost. Restart the session to use it again with an empty namespace."]
    if failure.kind is FailureKind.WORKER_DIED:
        return ["Only this task's worker died, and no other task is affected. --retries 2 retries such a task automatically."]
    return _of_exception(failure, variables) if failure.kind is FailureKind.RAISED else []


def _of_exception(failure: Failure, variables: Mapping[str, Any]) -> list[str]:
    message = failure.message
    if failure.type == "NameError" and (found := re.search(r"name '([^\W\d]\w*)' is not defined", message)):
        if found[1] in variables:
            return [f"{found[1]} is a notebook variable, which workers cannot access: pass it with --in {found[1]}"]
        return [f"Workers cannot access the notebook's variables and imports: import or define {found[1]} in this cell"]
    if failure.type == "ModuleNotFoundError" and (found := re.search(r"No module named '([\w.]+)'", message)):
        return [f"Install the package in the worker's environment: %pip install {found[1].partition('.')[0]}"]
    if failure.type == "BdbQuit" or (failure.type == "EOFError" and "breakpoint()" in message):
        return ["A worker has no keyboard, so debuggers do not work in it: debug the code in a regular cell"]
    if failure.type == "EOFError" and ("EOF when reading a line" in message or "getpass.py" in (failure.traceback or "")):
        return ["A worker has no keyboard: call input() and getpass() in a regular cell, and pass the answer with --in"]
    if failure.type == "SystemExit":
        return ["exit() ends the task as failed: remove it, or raise an exception with the reason"]
    if failure.type == "OutputNotSet":
        return ["Assign the variable in the cell, or remove it from --out"]
    if failure.type in ("MemoryError", "MemoryRefused"):
        return ["Reduce the amount of data, or split the work into several tasks"]
    return []
