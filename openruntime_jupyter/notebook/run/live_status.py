"""Status line of a running cell, updated in place. The final state is saved with the notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import DisplayHandle, display

from openruntime_jupyter.notebook.display.html import View
from openruntime_jupyter.notebook.display.tasks import TaskLine
from openruntime_jupyter.schemas.tasks import Task

UPDATE_SECONDS = 0.2
"""Interval between updates."""


class Live:
    """Display that is updated in place. In a terminal, which cannot update displays, it is a line on stderr."""

    def __init__(self) -> None:
        self._shown: Any = None
        self._handle: DisplayHandle | None = None
        self._terminal = getattr(get_ipython(), "kernel", None) is None

    def update(self, view: View, final: bool = False) -> None:
        """Replace the display by `view`. `final` marks the last update."""
        if self._terminal:
            self._write(view.text(), final)
        elif (bundle := view.bundle()) != self._shown:
            self._send(bundle)

    def _send(self, bundle: dict[str, Any]) -> None:
        self._shown = bundle
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def _write(self, text: str, final: bool) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}\n" if final else f"\r\x1b[K{text[:120]}")
            sys.stderr.flush()
        elif final:
            sys.stderr.write(f"{text}\n")


class StatusLine(Live):
    """Live display of a task."""

    def __init__(self, task: Task, devices: Mapping[str, str]) -> None:
        super().__init__()
        self.task = task
        self._devices = devices
        self._note: str | None = None
        self._shown_at = float("-inf")

    def show(self, task: Task | None = None, note: str | None = None, final: bool = False) -> None:
        """Show `task` (None: the last one) and keep `note`. Updates are limited to one per 0.2 s, except final ones and notes."""
        self.task, self._note = task or self.task, note or self._note
        urgent = final or note is not None or self.task.status.terminal
        if not urgent and time.monotonic() - self._shown_at < UPDATE_SECONDS:
            return
        self.update(TaskLine(self.task, self._devices, self._note if not self.task.status.terminal else None), final)
        self._shown_at = time.monotonic()
