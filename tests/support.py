"""Real servers in real processes, and polling for a condition instead of sleeping."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import psutil

from tests.fits import must_fit

if TYPE_CHECKING:
    from jupyter_client.blocking.client import BlockingKernelClient

TOKEN = "the-token-of-this-test"
START_SECONDS = 120.0
STOP_SECONDS = 60.0

JUPYTER = (sys.executable, "-m", "jupyter_server")
"""Jupyter Server with only this package's extension; `(sys.executable, "-m", "jupyterlab")` loads the others too."""
STANDALONE = (sys.executable, "-c", "import sys; from openruntime_jupyter.cli import main; sys.exit(main())")
"""The console script `jupyter-openruntime` with this interpreter."""

OTHER_EXTENSIONS = ("jupyter_lsp", "jupyter_server_terminals", "jupyterlab", "notebook", "notebook_shim")
"""Other extensions of Jupyter Server, which only browsers need. They take half of its start-up time."""

NO_BUILD_CHECK = {"page_config_data": {"buildAvailable": False, "buildCheck": False}}
"""Disable JupyterLab's check of its bundle with Node.js, which takes half a second per page."""

FOREIGN = ("OPENRUNTIME_", "JUPYTER_", "JPY_", "JUPYTERHUB_", "OPENAI_")

Value = TypeVar("Value")


def slowness() -> float:
    """Return the current slowdown of this process by others, at least 1.

    Tests multiply time limits that hold on an idle machine by this factor.
    """
    begun, used = time.perf_counter(), time.thread_time()
    while (spent := time.thread_time() - used) < 0.05:
        pass
    return max(1.0, (time.perf_counter() - begun) / spent)


def wait_until(condition: Callable[[], Value | None], seconds: float = 60.0, what: str | Callable[[], str] = "the condition") -> Value:
    """Poll and return the first true value of `condition()`. Raise AssertionError with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    pause = 0.005
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what() if callable(what) else what}: not within {seconds} s")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def ready(kernel: BlockingKernelClient, seconds: float = 120.0) -> None:
    """Wait until a kernel that is already started responds."""

    def answers() -> bool:
        try:
            kernel.wait_for_ready(timeout=seconds)
        except RuntimeError:  # on a slow machine, a missed heartbeat looks like a dead kernel
            return False
        return True

    wait_until(answers, seconds, "response of the kernel")


def free_port() -> int:
    """Return a free port of the loopback interface below 32768, where the system's ephemeral ports begin."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


NOTEBOOK = Path(__file__).parents[1] / "openruntime_jupyter" / "notebook"


def install_labextension(data: Path) -> None:
    """Install the front end of this tree into a data folder of Jupyter, where it precedes that of the environment."""
    folder = data / "labextensions" / "openruntime-jupyter"
    shutil.copytree(NOTEBOOK / "labextension" / "built", folder, dirs_exist_ok=True)
    shutil.copy(NOTEBOOK / "dashboard" / "static" / "dashboard.js", folder / "static")


@dataclass
class Home:
    """Folders of a user. Servers with the same home belong to one user."""

    path: Path

    @property
    def data_dir(self) -> Path:
        """Folder of the runtime's history."""
        return self.path / "openruntime"

    @property
    def runtime_dir(self) -> Path:
        """Folder in which Jupyter announces its servers."""
        return self.path / "jupyter-runtime"

    def environment(self, extra: Mapping[str, str] | None = None, paths: Sequence[Path] = ()) -> dict[str, str]:
        """Return the environment of a process in this home, without variables of the surrounding Jupyter."""
        for folder in ("jupyter-config", "jupyter-data", "jupyter-runtime", "ipython"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        # Otherwise JupyterLab shows an alert that asks for permission to fetch Jupyter's news.
        notifications = self.path / "jupyter-config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
        notifications.mkdir(parents=True, exist_ok=True)
        (notifications / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
        install_labextension(self.path / "jupyter-data")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return {
            **kept,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), kept.get("PATH", ""))),
            "HOME": str(self.path),
            "JUPYTER_CONFIG_DIR": str(self.path / "jupyter-config"),
            "JUPYTER_DATA_DIR": str(self.path / "jupyter-data"),
            "JUPYTER_PREFER_ENV_PATH": "no",  # this folder precedes that of the environment, which may have another version installed
            "JUPYTER_RUNTIME_DIR": str(self.runtime_dir),
            "IPYTHONDIR": str(self.path / "ipython"),
            "OPENRUNTIME_DATA_DIR": str(self.data_dir),
            "PYTHONPATH": os.pathsep.join((*map(str, paths), str(Path(__file__).parents[1]), kept.get("PYTHONPATH", ""))).rstrip(
                os.pathsep
            ),
            **(extra or {}),
        }


@dataclass
class Server:
    """Server process. `url` is the base URL of the API, `root` that of the surrounding server."""

    process: subprocess.Popen[bytes]
    home: Home
    root: str
    url: str
    token: str | None
    log: Path
    client: httpx.Client = field(
        default_factory=lambda: httpx.Client(trust_env=False, cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())))
    )
    """Thread-safe client without a default token. It rejects cookies, because Jupyter sets a login cookie after a request with a token."""
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check each response against the OpenAPI document."""
        self.client.event_hooks = {"response": [lambda response: must_fit(self.url, response)]}

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self.process.pid

    @property
    def ws_url(self) -> str:
        """Address of the WebSocket."""
        return "ws" + self.url.removeprefix("http") + "/ws"

    @property
    def headers(self) -> dict[str, str]:
        """Authorization headers."""
        return {"Authorization": f"token {self.token}"} if self.token else {}

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Request `path` below `url`, with the token unless `headers` overrides it."""
        options.setdefault("timeout", 60.0)
        options["headers"] = {**self.headers, **options.get("headers", {})}
        return self.client.request(method, self.url + path, **options)

    def get(self, path: str, **options: Any) -> Any:
        """Return the JSON of a GET, which must succeed."""
        return self._json(self.request("GET", path, **options))

    def submit(self, operation: str, parameters: Mapping[str, Any] | None = None, **fields: Any) -> Any:
        """Return the Task from `POST /tasks`; `wait=False` in `fields` makes it asynchronous."""
        body = {"operation": operation, "parameters": dict(parameters or {}), **fields}
        return self._json(self.request("POST", "/tasks", json=body))

    def finished(self, task_id: str, seconds: float = 90.0) -> Any:
        """Wait for the end of a task and return it."""
        deadline = time.monotonic() + seconds
        while True:
            task = self.get(f"/tasks/{task_id}", params={"wait": "5"})
            if task["status"] not in ("pending", "running"):
                return task
            assert time.monotonic() < deadline, f"{task_id} is {task['status']} after {seconds} s: {task}"

    def _json(self, response: httpx.Response) -> Any:
        assert response.is_success, f"{response.status_code}: {response.text[:1000]}\n{self.tail()}"
        return response.json()

    def tail(self, size: int = 4000) -> str:
        """Return the end of the server's log."""
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def descendants(self) -> list[psutil.Process]:
        """Return all running descendants, including orphans seen by earlier calls."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children(recursive=True):
                self.seen.setdefault(child.pid, child)
        return [process for process in self.seen.values() if alive(process)]

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Stop the server with SIGTERM and return its exit code. Raise AssertionError if it or a child survives."""
        self.descendants()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.ended(seconds)

    def ended(self, seconds: float = STOP_SECONDS) -> int:
        """Wait until the server and its children have ended, and return its exit code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not stop within {seconds} s\n{self.tail()}") from None
        wait_until(lambda: not self.descendants(), 30.0, lambda: f"end of {self.descendants()}")
        return code

    def kill(self) -> None:
        """Send SIGKILL, as the out-of-memory killer does. The workers then exit."""
        self.descendants()
        self.process.kill()
        self.process.wait()

    def clean_up(self) -> None:
        """Kill all remaining processes, also after a failed test."""
        self.client.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for process in self.descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def alive(process: psutil.Process) -> bool:
    """Return True if a process is running and not a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def running_server(
    folder: Path | Home,
    command: Sequence[str] = JUPYTER,
    *arguments: str,
    base_url: str = "/",
    token: str | None = TOKEN,
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    paths: Sequence[Path] = (),
    port: int | None = None,
    healthy: bool = True,
    ready: int = 200,
) -> Iterator[Server]:
    """Start a real server on a free port, yield it once it responds, and stop it at the end, which must succeed.

    `folder` is the parent of a new home, or the `Home` of an earlier server. `config` is traitlets' JSON, such as
    `{"OpenRuntimeApp": {"cpu_slots": 1}}`. With `command=STANDALONE` the API is at the root; with `token=None` the server then creates a
    token, and requests are sent without one. `paths` are additional folders of Python modules. With `healthy`, wait until `/health`
    reports `healthy`, otherwise only for a response with the status `ready`.
    """
    home = folder if isinstance(folder, Home) else Home(folder / f"home-{free_port()}")
    port = port or free_port()
    standalone = command == STANDALONE
    environ = home.environment(environment, paths)
    log = home.path / f"server-{port}.log"
    full = [*command, f"--port={port}", "--ip=127.0.0.1" if standalone else "--ServerApp.ip=127.0.0.1"]
    if token is not None:
        full.append(f"--token={token}" if standalone else f"--IdentityProvider.token={token}")
    settings = dict(config or {})
    if not standalone:
        full += [
            "--ServerApp.port_retries=0",
            f"--ServerApp.base_url={base_url}",
            "--no-browser",
            "--allow-root",
            f"--ServerApp.root_dir={home.path}",
        ]
        given = settings.get("ServerApp", {})
        others = dict.fromkeys(OTHER_EXTENSIONS, False) if command == JUPYTER else {}
        extensions = {"openruntime_jupyter": True, **others, **given.get("jpserver_extensions", {})}
        settings["ServerApp"] = {"tornado_settings": NO_BUILD_CHECK, **given, "jpserver_extensions": extensions}
    name = "jupyter_openruntime_config.json" if standalone else "jupyter_server_config.json"
    (home.path / "jupyter-config" / name).write_text(json.dumps(settings))
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*full, *arguments], env=environ, cwd=home.path, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
    root = f"http://127.0.0.1:{port}{base_url.rstrip('/')}"
    server = Server(process, home, root, root if standalone else f"{root}/openruntime", token, log)
    try:
        wait_until(lambda: _ready(server, healthy, ready), START_SECONDS, lambda: f"response of the server\n{server.tail()}")
        yield server
        if process.poll() is None:
            server.stop()
    finally:
        server.clean_up()


def _ready(server: Server, healthy: bool, status: int) -> bool:
    if server.process.poll() is not None:
        raise AssertionError(f"the server ended with code {server.process.returncode}\n{server.tail()}")
    try:
        response = server.request("GET", "/health", timeout=30.0)
    except httpx.TransportError:
        return False
    if response.status_code == 503 != status and "could not be started" in response.text:
        raise AssertionError(f"{response.text}\n{server.tail()}")
    return response.status_code == status and (status != 200 or not healthy or response.json()["status"] == "healthy")
