"""Sessions: dedicated workers that keep variables and modules between cells and calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.client.base import BaseClient
from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.errors import SessionNotFound
from openruntime_jupyter.schemas.sessions import Session

if TYPE_CHECKING:
    from typing_extensions import Self

RELOAD = "%load_ext autoreload\n%autoreload 2"


class ClientSession:
    """Session of this notebook, created by `Client.session`.

    Its tasks run sequentially in one worker process, which keeps variables, modules and settings between tasks. While idle, it
    holds memory but no device slot. As a context manager it frees the session on exit.

    Raises `SessionEnded` with the reason once the worker has ended. `restart()` then starts an empty session.
    """

    def __init__(self, client: BaseClient, name: str) -> None:
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
