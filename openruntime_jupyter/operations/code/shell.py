"""IPython shell of a worker: magics, top-level await and rich output as in a notebook, sent to the watchers of the task."""

from __future__ import annotations

import base64
import linecache
import sys
import traceback
import warnings
from typing import Any

from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import ExecutionInfo, InteractiveShell
from traitlets import Type
from traitlets.config import Config

from openruntime_jupyter.operations.code.widgets import TaskWidgets
from openruntime_jupyter.operations.context import TaskContext


class TaskDisplayPublisher(DisplayPublisher):
    """Publisher that sends `display()` output to the watchers of the task."""

    def publish(self, data: Any, metadata: Any = None, *args: Any, transient: Any = None, update: bool = False, **kwargs: Any) -> None:
        """Send a MIME bundle, or the update of an earlier one."""
        shell: Any = self.shell
        shell.send(data, metadata, "update_display_data" if update else "display_data", (transient or {}).get("display_id"))

    def clear_output(self, wait: bool = False) -> None:
        """Delete the output of the task, or that of the output widget that captures it."""
        shell: Any = self.shell
        if shell.context is not None:
            shell.context.clear_output(wait)


class TaskDisplayHook(DisplayHook):
    """Hook that sends the value of the last line of a cell to the watchers of the task."""

    def __call__(self, result: Any = None) -> None:
        """Send `result`, and keep it for the record of the task."""
        shell: Any = self.shell
        context = shell.context
        if result is None or context is None:
            return
        shell.last_value = result
        if self.quiet():
            return
        data, metadata = self.compute_format_data(result)  # type: ignore[no-untyped-call]
        shell.send(data, metadata, "execute_result")

    def quiet(self) -> bool:
        """Return whether the cell ends with a semicolon. IPython's version needs the history, which is disabled here."""
        shell: Any = self.shell
        return bool(self.semicolon_at_end_of_expression(shell.transform_cell(shell.source)))  # type: ignore[no-untyped-call]


class TaskCompiler(CachingCompiler):
    """Compiler that uses the caller's name for the code, so that tracebacks point at the caller's cell."""

    filename = "<cell>"
    """File name of the running cell."""

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        """Return the name of the running cell."""
        return self.filename


class TaskShell(InteractiveShell):
    """IPython shell of one worker."""

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
        self.widgets = TaskWidgets(self._update_display, self._capture_output)
        self.widgets.install()
        self._plain = dict(self.user_ns)
        warnings.filterwarnings("ignore", message="To exit: use")

    def init_signal(self) -> None:
        """Do nothing: `InterruptGuard` owns the signals."""

    def enable_gui(self, gui: str | None = None) -> None:
        """Do nothing: figures are always displayed inline."""

    def run_task(self, code: str, filename: str, space: dict[str, Any], context: TaskContext) -> tuple[Any, dict[str, Any]]:
        """Run a cell with `space` as additional variables; return the value of its last line and all variables.

        The namespace is new, except in a session. Exceptions of the cell propagate.
        """
        self.context = context
        self.source = code
        self.last_value = None
        # Only now: the traceback of the previous task needed these lines.
        compiler: Any = self.compile
        linecache.cache.pop(compiler.filename, None)
        compiler.filename = filename
        if not context.session:
            self.user_ns.clear()
            self.user_ns.update(self._plain, __name__="__main__")
        self.user_ns.update(space)
        result = self.run_cell(code, store_history=False)  # type: ignore[no-untyped-call]
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            raise error
        return self.last_value, self.user_ns

    def send(self, data: dict[str, Any], metadata: Any, output_type: str, display_id: str | None = None) -> None:
        """Send a MIME bundle to the watchers of the task, with widgets replaced by their static form."""
        if (context := self.context) is not None:
            with self.widgets.lock:
                data, display_id = self.widgets.replace(data, display_id)
                context.display(_textual(data), metadata, output_type, display_id)

    def _update_display(self, data: dict[str, Any], display_id: str) -> None:
        if (context := self.context) is not None:
            context.display(data, None, "update_display_data", display_id)

    def _capture_output(self, region: str | None) -> None:
        if (context := self.context) is not None:
            context.capture_output(region)

    def prepare_call(self, context: TaskContext) -> None:
        """Show the displays of a call, and reload changed modules before it if the session has turned `%autoreload` on."""
        self.context = context
        self.events.trigger("pre_run_cell", ExecutionInfo("", False, True, True, None))

    def showtraceback(self, *args: Any, **kwargs: Any) -> None:
        """Print an error that an output widget catches. For other errors do nothing: the failure of the task has the traceback."""
        if self.widgets.capturing:
            traceback.print_exception(*sys.exc_info())

    def showsyntaxerror(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the failure of the task has the error."""

    def ask_exit(self) -> None:
        """End the task, not the worker, for `exit` in a cell."""
        raise SystemExit

    def end_task(self) -> None:
        """Drop references to the task. Variables are kept for the next task of a session."""
        self.widgets.end_task()
        self.last_value = None
        self.context = None


def _textual(data: dict[str, Any]) -> dict[str, Any]:
    """Convert MIME data for JSON: bytes become base64, as in notebook files."""
    return {kind: base64.b64encode(value).decode() if isinstance(value, (bytes, bytearray)) else value for kind, value in data.items()}
