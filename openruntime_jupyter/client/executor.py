"""A runtime as a `concurrent.futures.Executor`, for code that knows nothing of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.client.completions import Completions
from openruntime_jupyter.client.lanes import refuse_deadlock

if TYPE_CHECKING:
    from openruntime_jupyter.client.client import Client


class TaskExecutor(Executor):
    """Each call is a task, with the options of `client`; its future can be cancelled while it runs."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._completions = Completions(client.backend)
        self._down = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Queue `fn(*args, **kwargs)`; the future's `handle` is its task.

        Raises RuntimeError after `shutdown`, `WouldDeadlock` in a task of the same lane, and what `Client.submit_call` raises.
        """
        if self._down:
            raise RuntimeError("this executor was shut down: make another one by client.executor()")
        refuse_deadlock(self._client.backend, self._client.options.device, "a new task")
        self._completions.open()
        return self._completions.future(self._client.submit_call(fn, *args, **kwargs))

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1) -> Iterator[Any]:
        """`fn` of the items of all `iterables` together, in order; a task works on `chunksize` of them. See `Executor.map`."""
        if chunksize < 1:
            raise ValueError(f"chunksize is {chunksize}, and must be 1 or more")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        items = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(items, chunksize)), [])
        return itertools.chain.from_iterable(super().map(_each, itertools.repeat(fn), chunks, timeout=timeout))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more; with `wait`, return when all tasks have ended. `cancel_futures` stops them, those that run too."""
        self._down = True
        futures = self._completions.waiting()
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            wait_for(futures)
        self._completions.close()


def _each(function: Callable[..., Any], items: list[tuple[Any, ...]]) -> list[Any]:
    return [function(*item) for item in items]
