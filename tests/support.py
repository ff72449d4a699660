"""Real servers as real processes, and waiting for a condition instead of sleeping. For every test that needs either."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
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
"""Jupyter Server with this package's extension alone; `(sys.executable, "-m", "jupyterlab")` has the others too."""
STANDALONE = (sys.executable, "-c", "import sys; from openruntime_jupyter.cli import main; sys.exit(main())")
"""What the console script `jupyter-openruntime` runs, with this interpreter."""

NOT_ASKED = ("jupyter_lsp", "jupyter_server_terminals", "jupyterlab", "notebook", "notebook_shim")
"""What else Jupyter Server would load here, for pages that only a browser asks for: half of what its start costs."""

UNASKED = {"page_config_data": {"buildAvailable": False, "buildCheck": False}}
"""With each page JupyterLab asks Node.js whether its own bundle is up to date, which costs half a second."""

FOREIGN = ("OPENRUNTIME_", "JUPYTER_", "JPY_", "JUPYTERHUB_", "OPENAI_")

Value = TypeVar("Value")


def slowness() -> float:
    """How many times as long as alone this process takes now, since others want the processor too; at least 1.

    What must be done within some time on a machine of its own is given that much more.
    """
    begun, used = time.perf_counter(), time.thread_time()
    while (spent := time.thread_time() - used) < 0.05:
        pass
    return max(1.0, (time.perf_counter() - begun) / spent)


def wait_until(condition: Callable[[], Value | None], seconds: float = 60.0, what: str | Callable[[], str] = "the condition") -> Value:
    """The first true value of `condition()`, polled; an AssertionError that says `what` was missing after `seconds`."""
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
    """Wait until a kernel answers that somebody else has started."""

    def answers() -> bool:
        try:
            kernel.wait_for_ready(timeout=seconds)
        except RuntimeError:  # a slow machine's kernel, whose heart misses a beat, is taken for dead
            return False
        return True

    wait_until(answers, seconds, "the kernel's answer")


def free_port() -> int:
    """A port of the loopback that is free now, and that no connection takes by chance: the system gives those from 32768 on."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Home:
    """A user's folders, of their own: what two servers share when they belong to one user."""

    path: Path

    @property
    def data_dir(self) -> Path:
        """Where the runtime keeps its history."""
        return self.path / "openruntime"

    @property
    def runtime_dir(self) -> Path:
        """Where Jupyter tells of its servers."""
        return self.path / "jupyter-runtime"

    def environment(self, extra: Mapping[str, str] | None = None, paths: Sequence[Path] = ()) -> dict[str, str]:
        """The environment of a process that lives here; nothing of the surrounding Jupyter leaks in."""
        for folder in ("jupyter-config", "jupyter-data", "jupyter-runtime", "ipython"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        # Else Lab asks whether it may fetch Jupyter's news, in an alert over the page.
        notifications = self.path / "jupyter-config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
        notifications.mkdir(parents=True, exist_ok=True)
        (notifications / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return {
            **kept,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), kept.get("PATH", ""))),
            "HOME": str(self.path),
            "JUPYTER_CONFIG_DIR": str(self.path / "jupyter-config"),
            "JUPYTER_DATA_DIR": str(self.path / "jupyter-data"),
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
    """A server process. `url` is the place whose `/health` answers, `root` that of the server around it."""

    process: subprocess.Popen[bytes]
    home: Home
    root: str
    url: str
    token: str | None
    log: Path
    client: httpx.Client = field(
        default_factory=lambda: httpx.Client(trust_env=False, cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())))
    )
    """Of any thread; it sends no token by itself, and keeps no cookie: Jupyter logs in by one whoever came with the token once."""
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Every answer that any test sees is what the description of the API says."""
        self.client.event_hooks = {"response": [lambda response: must_fit(self.url, response)]}

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self.process.pid

    @property
    def ws_url(self) -> str:
        """The address of the WebSocket."""
        return "ws" + self.url.removeprefix("http") + "/ws"

    @property
    def headers(self) -> dict[str, str]:
        """What a request needs to be let in."""
        return {"Authorization": f"token {self.token}"} if self.token else {}

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask for `path` below `url`, with the token unless `headers` says otherwise."""
        options.setdefault("timeout", 60.0)
        options["headers"] = {**self.headers, **options.get("headers", {})}
        return self.client.request(method, self.url + path, **options)

    def get(self, path: str, **options: Any) -> Any:
        """The JSON of a GET that must succeed."""
        return self._json(self.request("GET", path, **options))

    def submit(self, operation: str, parameters: Mapping[str, Any] | None = None, **fields: Any) -> Any:
        """The Task that `POST /tasks` answers; `wait=False` among `fields` makes it asynchronous."""
        body = {"operation": operation, "parameters": dict(parameters or {}), **fields}
        return self._json(self.request("POST", "/tasks", json=body))

    def finished(self, task_id: str, seconds: float = 90.0) -> Any:
        """The Task once it is terminal."""
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
        """The end of what the server wrote."""
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def descendants(self) -> list[psutil.Process]:
        """The living processes that it started, and theirs; those seen earlier are remembered and told while they live."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children(recursive=True):
                self.seen.setdefault(child.pid, child)
        return [process for process in self.seen.values() if alive(process)]

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Ask it to stop (SIGTERM), by its own pid; its exit code. An AssertionError if it, or a child of it, outlives that."""
        self.descendants()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.ended(seconds)

    def ended(self, seconds: float = STOP_SECONDS) -> int:
        """Its exit code, once it has ended and left no process behind."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not stop within {seconds} s\n{self.tail()}") from None
        wait_until(lambda: not self.descendants(), 30.0, lambda: f"the end of {self.descendants()}")
        return code

    def kill(self) -> None:
        """SIGKILL, as the out-of-memory killer would; its workers see it and end by themselves."""
        self.descendants()
        self.process.kill()
        self.process.wait()

    def clean_up(self) -> None:
        """End whatever is left, so that a test that failed leaves no process either."""
        self.client.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for process in self.descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie does not."""
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
    """A real server of its own user on a free port, ready to answer; stopped by its own pid at the end, which must be clean.

    `folder` is where its home is made, or the `Home` that it shares with an earlier server. `config` is traitlets' JSON, such as
    `{"OpenRuntimeApp": {"cpu_slots": 1}}`. With `command=STANDALONE` the API lies at the root; `token=None` then lets the server make
    its own, and requests go without one. `paths` are further folders of Python modules. `healthy` waits until `/health` says so,
    else only until it answers with the status `ready`.
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
        others = dict.fromkeys(NOT_ASKED, False) if command == JUPYTER else {}
        extensions = {"openruntime_jupyter": True, **others, **given.get("jpserver_extensions", {})}
        settings["ServerApp"] = {"tornado_settings": UNASKED, **given, "jpserver_extensions": extensions}
    name = "jupyter_openruntime_config.json" if standalone else "jupyter_server_config.json"
    (home.path / "jupyter-config" / name).write_text(json.dumps(settings))
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*full, *arguments], env=environ, cwd=home.path, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
    root = f"http://127.0.0.1:{port}{base_url.rstrip('/')}"
    server = Server(process, home, root, root if standalone else f"{root}/openruntime", token, log)
    try:
        wait_until(lambda: _ready(server, healthy, ready), START_SECONDS, lambda: f"the server's answer\n{server.tail()}")
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
