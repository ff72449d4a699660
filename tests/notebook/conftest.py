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

from tests.ai.provider_server import Connection, ProviderServer, Request, chunk, providing, usage
from tests.server.ai_support import steered
from tests.support import TOKEN, Home, Server, running_server
from tests.tiny_model import make_tiny_model

SECONDS = 60.0


@dataclass
class Cell:
    """An executed cell with its outputs as saved in the file, after display updates."""

    outputs: list[dict[str, Any]] = field(default_factory=list)
    status: str = "running"
    error: dict[str, Any] = field(default_factory=dict)
    updates: int = 0
    _displays: dict[str, dict[str, Any]] = field(default_factory=dict)

    def apply(self, message: dict[str, Any]) -> None:
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
        self._displays: dict[str, dict[str, Any]] = {}

    @property
    def pid(self) -> int:
        """Process id of the kernel."""
        provisioner: Any = self.manager.provisioner
        return int(provisioner.pid)

    def run(self, code: str, until: Callable[[Cell], bool] | None = None, then: Callable[[], None] = lambda: None) -> Cell:
        """Run a cell. While it runs, call `then` once `until` holds."""
        cell, waiting = Cell(_displays=self._displays), until
        message_id = self.client.execute(code, store_history=True)
        while cell.status == "running":
            message = self.client.get_iopub_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") != message_id:
                if message["msg_type"] == "update_display_data":
                    Cell(_displays=self._displays).apply(message)
                continue
            cell.apply(message)
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

    def shows_later(self, cell: Cell, text: str, mime: str = "text/plain") -> str:
        """Wait until the first display of the ended `cell` shows `text`, and return it. Updates may be messages of any cell, or of none."""
        while text not in (shown := cell.shown(mime)[0]):
            message = self.client.get_iopub_msg(timeout=SECONDS)
            if message["msg_type"] == "update_display_data":
                Cell(_displays=self._displays).apply(message)
        return shown

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


def error_of(cell: Cell) -> str:
    """Return the displayed error of a cell, or the line of an invalid magic."""
    return "\n".join([cell.stream("stderr").strip(), *cell.error.get("traceback", ())]).strip()


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


CODE = "It divides by zero.\n\n```python\nx = 6 * 7\n```\n\nThat is all."


def answer(connection: Connection, request: Request) -> None:
    """Answer `give code` with `CODE`, `label` with the last word in capitals, `repeat TEXT` with it, and other prompts with `steered`.

    `call ARGUMENTS` calls the first tool.
    """
    asked = request.json["messages"][-1]["content"]
    if asked.startswith("call "):
        function = {"name": request.json["tools"][0]["function"]["name"], "arguments": asked.removeprefix("call ")}
        connection.begin()
        connection.event(chunk(None, "tool_calls", tool_calls=[{"index": 0, "id": "call_0", "function": function}]))
        return
    if "repeat " in asked:
        connection.begin()
        connection.text(asked.partition("repeat ")[2])
        return
    if "give code" not in asked and "corrected cell" not in asked and "label" not in asked:
        steered(connection, request)
        return
    if "broken" in asked:
        connection.answer('{"error": {"message": "no such thing"}}', "400 Bad Request")
        return
    connection.begin()
    connection.text(*(asked.split()[-1].upper() if "label" in asked else CODE))
    connection.event(usage(10, 5))
    connection.event("[DONE]")


@pytest.fixture(scope="session")
def provider() -> Iterator[ProviderServer]:
    """Start a fake provider of models."""
    with providing(answer) as running:
        yield running


def of_provider(provider: ProviderServer) -> dict[str, str]:
    """Return the environment that makes a provider the default."""
    return {"OPENRUNTIME_AI_BASE_URL": provider.url, "OPENRUNTIME_AI_MODEL": "any"}


def of_server(server: Server) -> dict[str, str]:
    """Return the variables that a server sets for its kernels. This process is the kernel's parent."""
    return {"OPENRUNTIME_URL": server.url, "OPENRUNTIME_TOKEN": TOKEN, "OPENRUNTIME_SERVER_PID": str(os.getpid())}


@pytest.fixture(scope="session")
def embedded_kernel(tmp_path_factory: pytest.TempPathFactory, provider: ProviderServer) -> Iterator[Kernel]:
    """Start a kernel with an embedded runtime, a default provider and a tiny local model, for all tests of this process."""
    home = Home(tmp_path_factory.mktemp("kernel"))
    make_tiny_model(home.data_dir / "models" / "tiny")
    with running_kernel(home, of_provider(provider)) as running:
        yield running


@pytest.fixture(scope="session")
def server_kernel(tmp_path_factory: pytest.TempPathFactory, provider: ProviderServer) -> Iterator[Kernel]:
    """Start a kernel of a server with the same provider and model, for all tests of this process."""
    home = Home(tmp_path_factory.mktemp("kernel"))
    make_tiny_model(home.data_dir / "models" / "tiny")
    config = {"OpenRuntimeApp": {"cpu_slots": 2}}
    with (
        running_server(home, config=config, environment=of_provider(provider)) as server,
        running_kernel(home, of_server(server)) as running,
    ):
        yield running


@pytest.fixture(params=["embedded", "server"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Return the kernel with an embedded runtime, and the kernel of a server."""
    found: Kernel = request.getfixturevalue(f"{request.param}_kernel")
    return found
