"""Interface of a client to a runtime."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from openruntime_jupyter.client.transport.watch import OnMessage, Watch
from openruntime_jupyter.schemas.arrays import ArrayInfo
from openruntime_jupyter.schemas.endpoints import Endpoint

MOST_IN_BATCH = 1_000
"""Maximum tasks in one call of `SUBMIT_BATCH`. Limits the request size; runtimes accept more."""

MOST_BYTES = 4_000_000
"""Approximate maximum size of such a call in bytes of JSON, not counting its first task."""

LONGEST_WAIT = 20.0
"""Maximum seconds that one request waits: shorter than the idle timeouts of common proxies."""

Result = TypeVar("Result")


def new_key() -> str:
    """Return a new idempotency key."""
    return uuid.uuid4().hex


def size_of_call(request: dict[str, Any]) -> int:
    """Return the approximate size of a `call` in bytes of JSON. Servers also limit the number of values, of which `world` has most."""
    parameters = request["parameters"]
    world = parameters["world"] or {}
    return len(parameters["pickled"]) + 100 * (len(world.get("path", ())) + len(world.get("environment", ())))


class Backend(Protocol):
    """Thread-safe synchronous interface to a runtime: calls of the endpoints in `schemas/endpoints.py`, streams and events.

    All methods raise only the errors of `openruntime_jupyter.errors`, including `NotConnected` if the runtime does not respond.
    `http.py` and `embedded.py` implement it, and the contract tests cover both.
    """

    where: str
    """URL of the runtime, or `embedded`."""
    local: bool
    """True if the runtime is on this machine and can use this process's interpreter and folders."""

    def call(
        self,
        endpoint: Endpoint[Result],
        *ids: str,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        wait: float = 0.0,
    ) -> Result:
        """Call an endpoint and return its response.

        Parameters
        ----------
        ids
            Parameters of the path, in order.
        query, body
            Fields of the endpoint's models. Values of the query that are None are not sent.
        key
            Idempotency key (`new_key()`): a repeated key returns the same task, so a lost or interrupted call can be repeated.
        wait
            Maximum seconds to wait for what the endpoint waits for: the end of a task, output, or results. The call may return
            earlier, after `LONGEST_WAIT`; call it again then. Submissions are asynchronous.
        """

    def upload(self, array_id: str, pieces: Callable[[], Iterable[bytes]], size: int) -> ArrayInfo:
        """Upload a safetensors file of `size` bytes as an array. `pieces` returns its chunks, again for each attempt.

        Raises `ArrayConflict` if another array has that id, and `InvalidRequest` for an invalid id.
        """

    def download(self, array_id: str) -> Iterator[bytes]:
        """Yield the safetensors file of an array in chunks. Raises `ArrayNotFound`."""

    def tokens(self, task_id: str, since: int = 0) -> Iterator[tuple[int, str]]:
        """Stream the text of an AI task after `since` characters as (offset, piece) until the task ends.

        An offset of 0 after the first piece restarts the text. Closing the iterator does not cancel the task.
        """

    def watch(self, topics: Iterable[str], on_message: OnMessage) -> Watch:
        """Call `on_message(message)` for each event, on a thread shared by all watchers of this backend; see `watch.py`.

        Raises ValueError for an unknown topic.
        """

    def close(self) -> None:
        """Close the connections. Tasks keep running, and an embedded runtime runs until the process exits."""
