"""IPython inside a worker: magics, top-level await and rich output as in a notebook, shown where the task is watched."""

from __future__ import annotations

import linecache
import warnings
from typing import TYPE_CHECKING, Any

from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import ExecutionInfo, InteractiveShell
from traitlets import Type
from traitlets.config import Config

if TYPE_CHECKING:
    from openruntime_jupyter.worker.context import TaskContext


class TaskDisplayPublisher(DisplayPublisher):
    """`display()` reaches the task's watchers."""

    def publish(self, data: Any, metadata: Any = None, *args: Any, **kwargs: Any) -> None:
        """Show a MIME bundle."""
        shell: Any = self.shell
        if shell.context is not None:
            shell.context.display(_textual(data), metadata)

    def clear_output(self, wait: bool = False) -> None:
        """Nothing: what a task has shown stays in its record."""


class TaskDisplayHook(DisplayHook):
    """The value of a cell's last line reaches the task's watchers."""

    def __call__(self, result: Any = None) -> None:
        """Show `result`, and keep it for the task's record."""
        shell: Any = self.shell
        context = shell.context
        if result is None or context is None:
            return
        shell.last_value = result
        if self.quiet():
            return
        data, metadata = self.compute_format_data(result)  # type: ignore[no-untyped-call]
        context.display(_textual(data), metadata, "execute_result")

    def quiet(self) -> bool:
        """Whether the cell ends in a semicolon: IPython would look into its history, of which there is none here."""
        shell: Any = self.shell
        return bool(self.semicolon_at_end_of_expression(shell.transform_cell(shell.source)))  # type: ignore[no-untyped-call]


class TaskCompiler(CachingCompiler):
    """Calls the code what the caller calls it, so that tracebacks point at the caller's cell."""

    filename = "<cell>"

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        """The running cell's name."""
        return self.filename


class TaskShell(InteractiveShell):
    """IPython of one worker."""

    compiler_class = Type(TaskCompiler)
    displayhook_class = Type(TaskDisplayHook)
    display_pub_class = Type(TaskDisplayPublisher)

    def __init__(self, **kwargs: Any) -> None:
        config = Config()
        config.HistoryManager.enabled = False
        config.InteractiveShell.colors = "nocolor"
        super().__init__(config=config, user_ns={}, **kwargs)  # type: ignore[no-untyped-call]
        self.last_value: Any = None
        self.source = ""
        self.context: TaskContext | None = None
        self._plain = dict(self.user_ns)
        warnings.filterwarnings("ignore", message="To exit: use")

    def init_signal(self) -> None:  # the worker's guard owns the signals
        """Nothing."""

    def enable_gui(self, gui: str | None = None) -> None:
        """Nothing: figures are shown as in a notebook, whether or not `%matplotlib inline` asks for it."""

    def run_task(self, code: str, filename: str, space: dict[str, Any], context: TaskContext) -> tuple[Any, dict[str, Any]]:
        """Run a cell with `space` as further variables; return its last line's value and all variables.

        The namespace is new, except in a session. Raises what the cell raised.
        """
        self.context = context
        self.source = code
        self.last_value = None
        # Not sooner: a traceback of the task before took its lines from there.
        linecache.cache.pop(TaskCompiler.filename, None)
        TaskCompiler.filename = filename
        if not context.session:
            self.user_ns.clear()
            self.user_ns.update(self._plain, __name__="__main__")
        self.user_ns.update(space)
        result = self.run_cell(code, store_history=False)  # type: ignore[no-untyped-call]
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            raise error
        return self.last_value, self.user_ns

    def prepare_call(self) -> None:
        """Reload changed modules before a call, if the session has turned `%autoreload` on."""
        self.events.trigger("pre_run_cell", ExecutionInfo("", False, True, True, None))

    def showtraceback(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the task's failure carries the traceback."""

    def showsyntaxerror(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the task's failure carries it."""

    def ask_exit(self) -> None:
        """`exit` in a cell ends the cell's task, not the worker."""
        raise SystemExit

    def end_task(self) -> None:
        """Forget the task; the process ends with it, except in a session, whose variables stay."""
        self.last_value = None
        self.context = None


def _textual(data: dict[str, Any]) -> dict[str, Any]:
    """MIME data as JSON can hold it: bytes become base64, as in a notebook's file."""
    import base64

    return {kind: base64.b64encode(value).decode() if isinstance(value, (bytes, bytearray)) else value for kind, value in data.items()}
