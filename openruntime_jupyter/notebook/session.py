"""Shared state of one kernel's magics: the lazy connection and the newest task."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.discovery import EMBEDDED, connect
from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.client.notebook_file import notebook
from openruntime_jupyter.client.unseen import UnseenTasks
from openruntime_jupyter.errors import NotConnected
from openruntime_jupyter.notebook.arguments import LAST
from openruntime_jupyter.notebook.display.format import device_name
from openruntime_jupyter.notebook.run.background import BackgroundTasks


class Session:
    """A kernel's connection to its runtime, and the kernel's variables."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self._url: str | None = None
        self._client: Client | None = None
        self._lost: str | None = None
        self._devices: dict[str, str] = {}
        self._has_gpu = False
        self.unseen = UnseenTasks()
        self.background = BackgroundTasks(self.unseen.remove)

    @property
    def client(self) -> Client:
        """Connection to the runtime. A lost connection is replaced by a new one."""
        if self._client is None:
            self._client = connect(self._url)
            self._client.origin = "notebook"
            if self._lost not in (None, self._client.where):
                here = self._client.where == EMBEDDED
                where = "this kernel hosts its own tasks, which end with it" if here else f"tasks go to {self._client.where}"
                sys.stderr.write(f"{self._lost} is unreachable: from now on {where}. `%openruntime connect URL` selects another runtime\n")
            self._lost = None
        return self._client

    def use(self, url: str | None) -> None:
        """Switch to the runtime at `url`. Raises the errors of `connect`, and then keeps the current runtime."""
        client = connect(url)
        client.origin = "notebook"
        self.forget()
        self._url, self._client, self._lost = url, client, None

    def forget(self) -> None:
        """Close the connection. The next use connects again."""
        client, self._client, self._devices = self._client, None, {}
        if client is not None:
            client.close()

    def lose(self) -> None:
        """Close the connection to an unreachable runtime. The next use connects again, and reports a change of runtime."""
        if self._client is not None:
            self._lost = self._client.where
        self.forget()

    @property
    def namespace(self) -> dict[str, Any]:
        """Variables of the user."""
        variables: dict[str, Any] = self.shell.user_ns
        return variables

    def devices(self) -> Mapping[str, str]:
        """Return the names of the known devices by id."""
        if not self._devices:
            try:
                found = self.client.devices()
                self._devices = {device.id: device_name(device) for device in found}
                self._has_gpu = any(device.type == "gpu" for device in found)
            except NotConnected:
                self.lose()
        return self._devices

    def lacks_gpu(self) -> bool:
        """Return whether the devices are known, and none of them is a GPU."""
        return bool(self.devices()) and not self._has_gpu

    def remember(self, handle: TaskHandle, variable: str | None) -> None:
        """Store `handle` as the newest, and also in `variable` if given."""
        self.namespace[LAST] = handle
        if variable is not None:
            self.namespace[variable] = handle

    def handle(self, word: str) -> TaskHandle:
        """Return the handle for a task id or for a variable name. Raises `TaskNotFound` or `UsageError`."""
        value = self.namespace.get(word)
        if isinstance(value, TaskHandle):
            return value
        if word.isidentifier() and value is not None and not isinstance(value, str):
            raise UsageError(f"{word} is of type {type(value).__name__}, not a task handle")
        return self.client.task(value if isinstance(value, str) else word)

    def inputs(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return the variables by name. Raises `UsageError` for undefined variables."""
        missing = [name for name in names if name not in self.namespace]
        if missing:
            raise UsageError(f"--in: undefined variable {', '.join(map(repr, missing))}: run the cell that defines it first")
        return {name: self.namespace[name] for name in names}

    def cell_name(self) -> str:
        """Return the default task name for the running cell, such as `"quickstart [7]"`."""
        file = notebook()
        return f"{Path(file).stem if file else 'cell'} [{self.cell_number()}]"

    def cell_number(self) -> int:
        """Return the number of the running cell. Depending on IPython's version, `execution_count` may already be the next one."""
        history = self.shell.history_manager
        return int(self.shell.execution_count) if history is None else len(history.input_hist_parsed) - 1
