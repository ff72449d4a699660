"""A runtime as a `concurrent.futures.Executor`, for code that takes one."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from hashlib import sha256
from types import CodeType
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.client.arrays import ArrayUploads
from openruntime_jupyter.client.deadlock_guard import refuse_deadlock
from openruntime_jupyter.client.futures import Completions, TaskFuture
from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.client.serialization import pack_call, sources_of
from openruntime_jupyter.client.transport.forks import reset_in_child
from openruntime_jupyter.client.transport.protocol import MOST_IN_BATCH, Backend, new_key
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.schemas.tasks import Task

if TYPE_CHECKING:
    from openruntime_jupyter.arrays.array_file import Layout
    from openruntime_jupyter.arrays.function_pickler import Stream
    from openruntime_jupyter.client.client import Client

MOST_BYTES = 4_000_000
"""JSON bytes of one request's calls, beyond its first."""


class TaskExecutor(Executor):
    """Each call is a task, with the options of `client`; its future can be cancelled while it runs."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._completions = Completions(client.backend)
        self._submissions = Submissions(client.backend, self._completions, client.follow_session)
        self._lock = threading.Lock()
        self._unfinished: set[TaskFuture] = set()
        self._bursts: dict[str, str] = {}
        self._down = False
        reset_in_child(self)

    def after_fork(self) -> None:
        """Forget the parent's calls; see `Forkable`."""
        self._lock = threading.Lock()
        inherited, self._unfinished = self._unfinished, set()
        self._bursts.clear()
        for future in inherited:
            future.abandon()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Queue `fn(*args, **kwargs)`; the future's `handle` is its task.

        The request is sent by a thread, together with other calls that come meanwhile: a refusal by the runtime, such as `QueueFull`, is
        the future's exception. Raises RuntimeError after `shutdown`, `WouldDeadlock` in a task of the same lane, and `InvalidRequest`
        that names the argument or variable that can't be pickled.
        """
        if self._down:
            raise RuntimeError("this executor was shut down: make another one by client.executor()")
        refuse_deadlock(self._client.backend, self._client.options.device, "a new task")
        uploads, codes = ArrayUploads(self._client.backend), list[CodeType]()
        pickled, same = pack_call(fn, args, kwargs, uploads, codes), self._identity(fn)
        future = TaskFuture()
        with self._lock:
            if all(each.done() for each in self._unfinished):
                self._bursts.clear()
            burst = self._bursts.setdefault(same, uuid.uuid4().hex)
            self._unfinished.add(future)
        future.add_done_callback(self._finished)
        sources = sources_of(codes, self._client.backend.local)
        parameters = {"pickled": pickled, "arrays": uploads.references(), "sources": sources, "burst": burst}
        self._submissions.add(Submission(self._client.call_request(fn, parameters), uploads, future))
        return future

    def _identity(self, function: Callable[..., Any]) -> str:
        """Return what is equal for two calls of one function if its pickle is: the variables that it uses are then the same too."""
        arrays = _CountedArrays(self._client.backend)
        pickled = pack_call(function, (), {}, arrays)
        # Large data is not compared.
        return sha256(pickled.encode()).hexdigest() if isinstance(pickled, str) and not arrays.ids else new_key()

    def _finished(self, future: Future[Any]) -> None:
        assert isinstance(future, TaskFuture)
        with self._lock:
            self._unfinished.discard(future)

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
        with self._lock:
            futures = list(self._unfinished)
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            wait_for(futures)
        self._submissions.close()


class _CountedArrays(ArrayUploads):
    """Counts the arrays and large pickles of a function, and sends none."""

    def keep(self, value: Any, layout: Layout) -> None:
        """Count an array."""
        self.ids.append("")

    def keep_pickle(self, stream: Stream) -> dict[str, str]:
        """Count a large pickle."""
        self.ids.append("")
        return {}


@dataclass
class Submission:
    """A call that is to be submitted."""

    request: dict[str, Any]
    uploads: ArrayUploads
    future: TaskFuture


class Submissions:
    """Submits calls in batches: those that come while a request is under way go together with the next one.

    `told` is called with the answer to each.
    """

    def __init__(self, backend: Backend, completions: Completions, told: Callable[[Task | BaseException], None]) -> None:
        self._backend = backend
        self._told = told
        self._completions = completions
        self._lock = threading.Lock()
        self._waiting: deque[Submission] = deque()
        self._sending = False
        self._closed = False
        self._sender = ThreadPoolExecutor(1, "openruntime-submissions")
        reset_in_child(self)

    def after_fork(self) -> None:
        """Forget the parent's thread and what it has to send; see `Forkable`."""
        self._lock = threading.Lock()
        self._waiting.clear()
        self._sending = False
        self._sender = ThreadPoolExecutor(1, "openruntime-submissions")

    def add(self, submission: Submission) -> None:
        """Submit a call soon."""
        with self._lock:
            self._waiting.append(submission)
            if self._sending:
                return
            self._sending = True
        self._sender.submit(self._send)

    def close(self) -> None:
        """Send what waits, and close the completions after it."""
        if not self._closed:
            self._closed = True
            self._sender.submit(self._completions.close)
            self._sender.shutdown(wait=False)

    def _send(self) -> None:
        while group := self._next():
            try:
                self._completions.open()  # before a task can end
                answers = self._backend.submit_many([each.request for each in group], new_key())
            except BaseException as problem:
                for each in group:
                    each.future.refuse(problem)
            else:
                for each, answer in zip(group, answers, strict=True):
                    self._settle(each.future, answer)
            for each in group:
                each.uploads.release()

    def _next(self) -> list[Submission]:
        with self._lock:
            group: list[Submission] = []
            size = 0
            while self._waiting and len(group) < MOST_IN_BATCH and size < MOST_BYTES:
                group.append(self._waiting.popleft())
                size += len(group[-1].request["parameters"]["pickled"])
            self._sending = bool(group)
            return group

    def _settle(self, future: TaskFuture, answer: Task | OpenRuntimeError) -> None:
        self._told(answer)
        if isinstance(answer, OpenRuntimeError):
            future.refuse(answer)
        else:
            future.submitted(TaskHandle(self._backend, answer))
            self._completions.add(future)


def _each(function: Callable[..., Any], items: list[tuple[Any, ...]]) -> list[Any]:
    return [function(*item) for item in items]
