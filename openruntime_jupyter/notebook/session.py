"""What the magics of one kernel share: the connection, made at first use, and the newest task."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.discovery import EMBEDDED, connect
from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.errors import NotConnected
from openruntime_jupyter.notebook.arguments import LAST
from openruntime_jupyter.notebook.completion_sources import CompletionSources


class Session:
    """The runtime of a kernel, and the kernel's variables."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self._url: str | None = None
        self._client: Client | None = None
        self._lost: str | None = None
        self._devices: dict[str, str] = {}
        self.offers = CompletionSources(self)

    @property
    def client(self) -> Client:
        """The connection; a lost one is looked for anew."""
        if self._client is None:
            self._client = connect(self._url)
            self._client.origin = "notebook"
            if self._lost not in (None, self._client.where):
                here = self._client.where == EMBEDDED
                where = "this kernel hosts its tasks itself, and they end with it" if here else f"tasks go to {self._client.where}"
                sys.stderr.write(f"{self._lost} is gone: from now on {where}. `%openruntime connect URL` takes another place.\n")
            self._lost = None
        return self._client

    def use(self, url: str | None) -> None:
        """Take the runtime at `url` from now on, as `connect` does; raises what that raises, and then stays with the one it has."""
        client = connect(url)
        client.origin = "notebook"
        self.forget()
        self._url, self._client, self._lost = url, client, None

    def forget(self) -> None:
        """Look for a runtime anew at the next use."""
        client, self._client, self._devices = self._client, None, {}
        if client is not None:
            client.close()

    def lose(self) -> None:
        """Look for a runtime anew at the next use, since this one does not answer; another one is told of then."""
        if self._client is not None:
            self._lost = self._client.where
        self.forget()

    @property
    def namespace(self) -> dict[str, Any]:
        """The user's variables."""
        variables: dict[str, Any] = self.shell.user_ns
        return variables

    def devices(self) -> Mapping[str, str]:
        """Names of the devices by id, as far as they were ever known."""
        if not self._devices:
            try:
                self._devices = {device.id: device.name for device in self.client.devices()}
            except NotConnected:
                self.lose()
        return self._devices

    def remember(self, handle: TaskHandle, variable: str | None) -> None:
        """Keep `handle` as the newest, and in `variable` if one was asked for."""
        self.namespace[LAST] = handle
        if variable is not None:
            self.namespace[variable] = handle

    def handle(self, word: str) -> TaskHandle:
        """The task of that id, or of the handle in the variable of that name; raises `TaskNotFound`, `UsageError`."""
        value = self.namespace.get(word)
        if isinstance(value, TaskHandle):
            return value
        if word.isidentifier() and value is not None and not isinstance(value, str):
            raise UsageError(f"{word} is {type(value).__name__}, and no handle of a task.")
        return self.client.task(value if isinstance(value, str) else word)

    def inputs(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The variables of those names; raises `UsageError` that lists the ones that there are not."""
        missing = [name for name in names if name not in self.namespace]
        if missing:
            raise UsageError(f"--in: nothing is called {' or '.join(missing)} here: run the cell that sets it first.")
        return {name: self.namespace[name] for name in names}

    def cell_name(self) -> str:
        """What to call a task of the cell that runs now: `"quickstart [7]"`."""
        notebook = os.environ.get("JPY_SESSION_NAME")
        return f"{Path(notebook).stem if notebook else 'cell'} [{self.cell_number()}]"

    def cell_number(self) -> int:
        """The number beside the cell that runs now: whether `execution_count` is that already depends on IPython's version."""
        history = self.shell.history_manager
        return int(self.shell.execution_count) if history is None else len(history.input_hist_parsed) - 1
