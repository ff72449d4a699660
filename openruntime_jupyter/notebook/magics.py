"""`%load_ext openruntime_jupyter`: the magics `%openruntime` and `%%openruntime`, and how handles look."""

from __future__ import annotations

from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand

from openruntime_jupyter.client.handle import TaskHandle
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.notebook.arguments import parse_cell, parse_line
from openruntime_jupyter.notebook.commands import run_line
from openruntime_jupyter.notebook.display import View
from openruntime_jupyter.notebook.failures import shortened
from openruntime_jupyter.notebook.help import Help
from openruntime_jupyter.notebook.running import run_cell
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.notebook.views import TaskCard


@magics_class
class OpenRuntimeMagics(Magics):
    """`%openruntime` alone explains both."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self.session = Session(shell)

    @no_var_expand
    @line_cell_magic
    def openruntime(self, line: str, cell: str | None = None) -> Any:
        """MLX work in worker processes: `%openruntime` alone explains itself, `%%openruntime` runs a cell as a task."""
        with shortened():
            if cell is None:
                return run_line(self.session, parse_line(line))
            arguments = parse_cell(line)
            return Help() if arguments.help else run_cell(self.session, arguments, cell)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """What `%load_ext openruntime_jupyter` does; doing it twice does no harm."""
    magics = OpenRuntimeMagics(shell)
    shell.register_magics(magics)
    formatters = _formatters(shell)
    # By type, so that the client needs no HTML and no IPython.
    formatters["text/html"].for_type(TaskHandle, lambda handle: _card(magics.session, handle).html())
    # IPython has ways of its own for the lists and dicts that views are too.
    formatters["text/plain"].for_type(View, lambda view, printer, _cycle: printer.text(view.text()))
    formatters["text/plain"].for_type(TaskHandle, lambda handle, printer, _cycle: printer.text(_card(magics.session, handle).text()))


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """What `%unload_ext openruntime_jupyter` does; tasks go on."""
    for kind in ("line", "cell"):
        magics = shell.magics_manager.magics[kind].pop("openruntime", None)
        if magics is not None:
            magics.__self__.session.forget()
    for mime in ("text/html", "text/plain"):
        for shown in (TaskHandle, View):
            _formatters(shell)[mime].pop(shown, None)


def _formatters(shell: InteractiveShell) -> Any:
    assert shell.display_formatter is not None
    return shell.display_formatter.formatters


def _card(session: Session, handle: TaskHandle) -> TaskCard:
    try:
        return TaskCard(handle.task, session.devices())
    except OpenRuntimeError:  # a view must show something, also of a runtime that is gone
        return TaskCard(handle.last_seen, {})
