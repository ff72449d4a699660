"""Fixtures: real kernels, with and without a server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.support import TOKEN, Home, running_server

SECONDS = 60.0


@dataclass
class Cell:
    """An executed cell with its outputs as saved in the file, after display updates."""

    outputs: list[dict[str, Any]] = field(default_factory=list)
    status: str = "running"
    error: dict[str, Any] = field(default_factory=dict)
    updates: int = 0
    _displays: dict[str, dict[str, Any]] = field(default_factory=dict)

    def hear(self, message: dict[str, Any]) -> None:
        """Apply one kernel message."""
        kind, content = message["msg_type"], message["content"]
        if kind == "stream" and self.outputs and self.outputs[-1].get("name") == content["name"]:
            self.outputs[-1]["text"] += content["text"]
        elif kind in ("stream", "display_data", "execute_result", "error"):
            self.outputs.append({"kind": kind, **content})
        name = content.get("transient", {}).get("display_id")
        if kind == "display_data" and name:
            self._displays[name] = self.outputs[-1]
        elif kind == "update_display_data":
            self._displays[name].update(data=content["data"])
            self.updates += 1

    def stream(self, name: str = "stdout") -> str:
        """Return the text of a stream."""
        return "".join(output["text"] for output in self.outputs if output.get("name") == name)

    def shown(self, mime: str = "text/plain") -> list[str]:
        """Return all displays and values in one MIME type, in order."""
        return [output["data"].get(mime, "") for output in self.outputs if "data" in output]

    @property
    def line(self) -> str:
        """Status line as plain text."""
        return self.shown()[0]

    @property
    def value(self) -> str:
        """Value of the cell as plain text."""
        return next(output["data"]["text/plain"] for output in self.outputs if output["kind"] == "execute_result")


class Kernel:
    """A kernel of a separate user."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient, home: Home) -> None:
        self.manager = manager
        self.client = client
        self.home = home

    @property
    def pid(self) -> int:
        """Process id of the kernel."""
        provisioner: Any = self.manager.provisioner
        return int(provisioner.pid)

    def run(self, code: str, until: Callable[[Cell], bool] | None = None, then: Callable[[], None] = lambda: None) -> Cell:
        """Run a cell. While it runs, call `then` once `until` holds."""
        cell, waiting = Cell(), until
        message_id = self.client.execute(code, store_history=True)
        while cell.status == "running":
            message = self.client.get_iopub_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            cell.hear(message)
            if waiting is not None and waiting(cell):
                waiting = None
                then()
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
        assert waiting is None, f"this never came: {cell.outputs}"
        reply = self.client.get_shell_msg(timeout=SECONDS)
        while reply["parent_header"].get("msg_id") != message_id:
            reply = self.client.get_shell_msg(timeout=SECONDS)
        cell.status, cell.error = reply["content"]["status"], reply["content"]
        return cell

    def told_later(self) -> str:
        """Return the HTML of the next display update outside a running cell."""
        while True:
            message = self.client.get_iopub_msg(timeout=SECONDS)
            if message["msg_type"] == "update_display_data":
                return str(message["content"]["data"]["text/html"])

    def complete(self, code: str) -> list[str]:
        """Return the completions at the sign `|` in `code`, each as the completed line up to the cursor."""
        at = code.index("|")
        message_id = self.client.complete(code.replace("|", "", 1), at)
        reply = self.client.get_shell_msg(timeout=SECONDS)
        while reply["parent_header"].get("msg_id") != message_id:
            reply = self.client.get_shell_msg(timeout=SECONDS)
        found = reply["content"]
        assert found["cursor_end"] == at
        return [code[: found["cursor_start"]].rsplit("\n", maxsplit=1)[-1] + match for match in found["matches"]]

    def value(self, expression: str) -> str:
        """Return the repr of an expression."""
        cell = self.run(expression)
        assert cell.status == "ok", cell.error
        return cell.value

    def interrupt(self) -> None:
        """Interrupt the kernel, as the stop button does."""
        self.manager.interrupt_kernel()


@contextmanager
def running_kernel(home: Home, environment: Mapping[str, str] | None = None) -> Iterator[Kernel]:
    """Start a kernel with the magics loaded, and stop it at the end."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=home.environment(environment), cwd=os.fspath(home.path))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        kernel = Kernel(manager, client, home)
        loaded = kernel.run("%load_ext openruntime_jupyter")
        assert loaded.status == "ok", loaded.error
        yield kernel
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
        manager.cleanup_resources()


@pytest.fixture(scope="module", params=["embedded", "server"])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """Start a kernel with an embedded runtime, and one with a server."""
    home = Home(tmp_path_factory.mktemp("kernel"))
    if request.param == "embedded":
        with running_kernel(home) as running:
            yield running
        return
    with running_server(home, config={"OpenRuntimeApp": {"cpu_slots": 2}}) as server:
        # The variables that a server sets for its kernels; this process is the kernel's parent.
        told = {"OPENRUNTIME_URL": server.url, "OPENRUNTIME_TOKEN": TOKEN, "OPENRUNTIME_SERVER_PID": str(os.getpid())}
        with running_kernel(home, told) as running:
            yield running
