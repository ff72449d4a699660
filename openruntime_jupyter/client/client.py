"""Synchronous client, and sessions: dedicated workers that keep variables and modules between cells and calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.client.async_client import AsyncClient
from openruntime_jupyter.client.base import NOT_SUBMITTED
from openruntime_jupyter.client.code.executor import TaskExecutor
from openruntime_jupyter.client.code.map import run_map
from openruntime_jupyter.client.code_client import CodeClient
from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.client.interruption import interruptible
from openruntime_jupyter.errors import SessionNotFound
from openruntime_jupyter.schemas.system import Session

if TYPE_CHECKING:
    from typing_extensions import Self


class Client(CodeClient):
    """Client of a local or remote runtime, created by `connect()`.

    Thread-safe. All methods raise only the errors of `openruntime_jupyter.errors`: `InvalidRequest` for an invalid parameter,
    `NotConnected` if the runtime is unreachable.
    """

    def map(
        self,
        function: Callable[[Any], Any],
        iterable: Iterable[Any],
        /,
        chunk_size: int | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> list[Any]:
        """Return `function(item)` for each item, computed by workers, in the order of the items.

        A failed item does not stop the others. Interrupting the call cancels the remaining tasks. Unlike tasks of `submit_call`, they
        end with the server.

        Parameters
        ----------
        function, iterable
            The function and its items.
        chunk_size
            Items per task. The default gives each slot of the device about four tasks. Use 1 if an item takes seconds, for
            fine-grained progress and cancellation.
        progress
            Show a progress bar. None: in IPython with the extension loaded, if the map takes longer than half a second and is called on
            the main thread. True: also elsewhere, as a line on stderr. False: never.
        **options
            Those of `with_options`.

        Raises
        ------
        MapFailed
            After all items have run: the failed items by index, and the other results.

        Also raises the errors of `submit_call`.
        """
        client = self.with_options(**options) if options else self
        items = list(iterable)
        with interruptible(NOT_SUBMITTED):
            return run_map(client, function, items, chunk_size, progress)

    @cached_property
    def aio(self) -> AsyncClient:
        """Return the asynchronous client: `await client.aio.run("compute", expression="1 + 1")`."""
        return AsyncClient(self)

    def executor(self, **options: Any) -> TaskExecutor:
        """Return the runtime as a `concurrent.futures.Executor`. `options` are those of `with_options`.

        Calls become tasks as with `submit_call`. Running futures can be cancelled.
        """
        return TaskExecutor(self.with_options(**options) if options else self)

    def session(self, name: str, *, reload: bool = False) -> ClientSession:
        """Return the session `name` of this notebook: a worker that keeps its variables between cells and calls.

        The first task starts the worker. Tasks of a session are not isolated: they see modules as first imported, and the state
        that earlier tasks left.

        Parameters
        ----------
        name
            Its name in this notebook, or the id of any session.
        reload
            Reload changed modules before each cell (IPython's `%autoreload 2`).
        """
        session = ClientSession(self, name)
        if reload:
            session.run_code(RELOAD)
        return session

    def close(self) -> None:
        """Close the connection, including that of `aio`. Tasks keep running."""
        if "aio" in vars(self):
            self.aio.let_go()
        super().close()


RELOAD = "%load_ext autoreload\n%autoreload 2"


class ClientSession:
    """Session of this notebook, created by `Client.session`.

    Its tasks run sequentially in one worker process, which keeps variables, modules and settings between tasks. While idle, it
    holds memory but no device slot. As a context manager it frees the session on exit.

    Raises `SessionEnded` with the reason once the worker has ended. `restart()` then starts an empty session.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.client = client.with_options(session=name)
        """Client that runs all cells and calls in the session."""

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `function(*args, **kwargs)` in the session and return its value; see `Client.call`.

        The function can use the session's variables that its own notebook does not define.
        """
        return self.client.call(function, *args, **kwargs)

    def submit_call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskHandle:
        """Submit `function(*args, **kwargs)` to the session; see `Client.submit_call`."""
        return self.client.submit_call(function, *args, **kwargs)

    def submit_code(self, code: str, inputs: dict[str, Any] | None = None, outputs: tuple[str, ...] = ()) -> TaskHandle:
        """Submit Python code to the session; see `Client.submit_code`."""
        return self.client.submit_code(code, inputs, outputs)

    def run_code(self, code: str, inputs: dict[str, Any] | None = None, outputs: tuple[str, ...] = ()) -> dict[str, Any]:
        """Run Python code in the session and return the variables named `outputs`."""
        values: dict[str, Any] = self.submit_code(code, inputs, outputs).result()
        return values

    @property
    def info(self) -> Session:
        """Return the current record. Raises `SessionNotFound` before the session's first task and after its end."""
        return self.client.find_session(self.name)

    def restart(self) -> Session:
        """End the worker; the next task starts with an empty namespace. Raises `SessionNotFound`."""
        return self.client.restart_session(self.name)

    def free(self) -> None:
        """End the session and free its memory. Does nothing if it has not started or was freed."""
        try:
            self.client.free_session(self.name)
        except SessionNotFound:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def __repr__(self) -> str:
        return f"<session {self.name!r} at {self.client.where}>"
