"""The IPython extension: the magics `%openruntime` and `%%openruntime`, their completion, and the display of handles.

Loading imports little. The code that runs tasks takes half a second to import, so a thread imports it and the first use waits.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand

from openruntime_jupyter import environment  # noqa: F401 - records the environment before the user's next statement
from openruntime_jupyter.client.code.map_progress import Observer, set_default_observer
from openruntime_jupyter.client.unseen import UnseenTasks
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.imports import load
from openruntime_jupyter.notebook.ai.last_error import last_failure
from openruntime_jupyter.notebook.display.html import View

if TYPE_CHECKING:
    from openruntime_jupyter.client.handles import TaskHandle
    from openruntime_jupyter.notebook.completion import CompletionSources
    from openruntime_jupyter.notebook.session import Session
    from openruntime_jupyter.schemas.tasks import Task, TaskPage

HANDLE = "openruntime_jupyter.client.handles.TaskHandle"
REPLY = "openruntime_jupyter.client.ai_response.Reply"
TASK = "openruntime_jupyter.schemas.tasks.Task"
PAGE = "openruntime_jupyter.schemas.tasks.TaskPage"
"""Displayed types, by name so that registering their formatters imports nothing."""


@magics_class
class OpenRuntimeMagics(Magics):
    """The magics `%openruntime` and `%%openruntime`."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._session: Session | None = None
        self._sources: CompletionSources | None = None
        self._loading = threading.Thread(target=load, args=("openruntime_jupyter.notebook.commands",), daemon=True)
        self._loading.start()

    @property
    def session(self) -> Session:
        """Shared state of this kernel's magics."""
        if self._session is None:
            # Two threads that import the same modules at once see partially initialized modules.
            self._loading.join()
            from openruntime_jupyter.notebook.session import Session

            assert self.shell is not None
            self._session = Session(self.shell)
        return self._session

    @no_var_expand
    @line_cell_magic
    def openruntime(self, line: str, cell: str | None = None) -> Any:
        """Run MLX work in worker processes. `%openruntime` shows the help, `%%openruntime` runs a cell as a task."""
        session = self.session
        from openruntime_jupyter.notebook.commands import run_cell_magic, run_line
        from openruntime_jupyter.notebook.display.errors import one_line_errors

        with one_line_errors():
            return run_line(session, line) if cell is None else run_cell_magic(session, line, cell)

    def complete(self, context: Any) -> Any:
        """Return the completions at the cursor as an IPython matcher."""
        session = self.session
        from openruntime_jupyter.notebook.completion import CompletionSources, matches

        if self._sources is None:
            self._sources = CompletionSources(session)
        return matches(context, self._sources)

    def view(self, value: TaskHandle | Task | TaskPage) -> View:
        """Return the view of a handle or record."""
        session = self.session
        from openruntime_jupyter.client.handles import TaskHandle
        from openruntime_jupyter.notebook.display.tasks import TaskCard, TaskTable
        from openruntime_jupyter.schemas.base import epoch
        from openruntime_jupyter.schemas.tasks import TaskPage

        record = value.last_seen if isinstance(value, TaskHandle) else value
        devices: Mapping[str, str] = {}
        seen = not isinstance(value, TaskHandle)
        with suppress(OpenRuntimeError):  # show the last known state if the runtime is unreachable
            if isinstance(value, TaskHandle):
                record, seen = value.described(), True
            devices = session.devices()
        if isinstance(record, TaskPage):
            return TaskTable(record, devices)
        if isinstance(value, TaskHandle):
            return TaskCard(record, devices, seen, value.seen_at, work=True)
        return TaskCard(record, devices, seen, epoch(record.timestamp))

    def follow(self, handle: TaskHandle) -> None:
        """Display a handle as a card that follows its task. Raises `NotImplementedError` if there is nothing to follow."""
        from openruntime_jupyter.client.interruption import in_kernel

        session = self.session
        devices: Mapping[str, str] = {}
        live = False
        with suppress(OpenRuntimeError):  # the runtime is unreachable
            live = not handle.status.terminal
            devices = session.devices()
        if not live or not in_kernel():
            raise NotImplementedError  # makes IPython use the other formatters
        session.background.follow(handle).display(devices)

    def after_cell(self, _result: object = None) -> None:
        """Update the cards of background tasks after a cell."""
        if self._session is not None:
            self._session.background.refresh()

    def report_unseen(self) -> None:
        """Report the tasks of this notebook that its earlier kernels left behind."""
        if UnseenTasks().of_earlier_kernels():
            session = self.session
            from openruntime_jupyter.notebook.run.background import report_unseen

            report_unseen(session)

    def forget(self) -> None:
        """Close the connection to the runtime. Tasks continue."""
        if self._session is not None:
            self._session.background.close()
            self._session.forget()


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Load the extension. Loading it again replaces the earlier instance."""
    unload_ipython_extension(shell)
    magics = OpenRuntimeMagics(shell)
    shell.register_magics(magics)
    _add_matcher(shell, magics)
    shell.events.register("post_run_cell", last_failure.record)
    shell.events.register("post_run_cell", magics.after_cell)
    set_default_observer(_map_bar)
    formatters = _formatters(shell)
    for kind in (HANDLE, TASK, PAGE):
        _show(formatters, kind, magics)
    _displays(shell).for_type_by_name(*HANDLE.rsplit(".", 1), magics.follow)
    # IPython uses this method of an exception to render it.
    setattr(OpenRuntimeError, "_render_traceback_", _render_error)  # noqa: B010  not declared by any exception
    module, _, name = REPLY.rpartition(".")
    formatters["text/markdown"].for_type_by_name(module, name, _markdown)
    formatters["text/plain"].for_type_by_name(module, name, lambda reply, printer, _cycle: printer.text(reply.text))
    # Some views are lists or dicts, for which IPython has its own formatters.
    formatters["text/plain"].for_type(View, lambda view, printer, _cycle: printer.text(view.text()))
    with suppress(OpenRuntimeError):
        magics.report_unseen()


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Unload the extension. Tasks continue."""
    loaded = {shell.magics_manager.magics[kind].pop("openruntime", None) for kind in ("line", "cell")} - {None}
    for magic in loaded:
        magic.__self__.forget()
        with suppress(ValueError):
            shell.events.unregister("post_run_cell", magic.__self__.after_cell)
    _displays(shell).pop(HANDLE, None)
    set_default_observer(None)
    with suppress(ValueError):  # the extension was not loaded
        shell.events.unregister("post_run_cell", last_failure.record)
    matchers = shell.Completer.custom_matchers
    matchers[:] = [each for each in matchers if not _is_ours(each)]
    for mime in ("text/html", "text/plain", "text/markdown"):
        for shown in (HANDLE, REPLY, TASK, PAGE, View):
            _formatters(shell)[mime].pop(shown, None)
    with suppress(AttributeError):  # the extension was not loaded
        delattr(OpenRuntimeError, "_render_traceback_")


def _map_bar() -> Observer | None:
    """Return the bar of a map; None on other threads, whose displays belong to no cell."""
    if threading.current_thread() is not threading.main_thread():
        return None
    from openruntime_jupyter.notebook.run.follow import MapBar

    return MapBar()


def _add_matcher(shell: InteractiveShell, magics: OpenRuntimeMagics) -> None:
    from IPython.core.completer import context_matcher

    ours = context_matcher(identifier="openruntime", priority=100)
    # The decorator sets attributes, which a bound method does not allow.
    shell.Completer.custom_matchers.append(ours(lambda context: magics.complete(context)))  # noqa: PLW0108


def _is_ours(matcher: Any) -> bool:
    return getattr(matcher, "matcher_identifier", None) == "openruntime"


def _displays(shell: InteractiveShell) -> Any:
    """Return the formatter for values that display themselves."""
    assert shell.display_formatter is not None
    return shell.display_formatter.ipython_display_formatter


def _formatters(shell: InteractiveShell) -> Any:
    assert shell.display_formatter is not None
    return shell.display_formatter.formatters


def _markdown(reply: Any) -> str:
    from openruntime_jupyter.notebook.ai.sanitize import sanitize

    return sanitize(reply.text)


def _show(formatters: Any, kind: str, magics: OpenRuntimeMagics) -> None:
    """Register the formatters that display a type as a view."""
    module, _, name = kind.rpartition(".")
    formatters["text/html"].for_type_by_name(module, name, lambda value: magics.view(value).html())
    formatters["text/plain"].for_type_by_name(module, name, lambda value, printer, _cycle: printer.text(magics.view(value).text()))


def _render_error(error: OpenRuntimeError) -> list[str]:
    from openruntime_jupyter.notebook.display.errors import client_traceback

    return client_traceback(error)
