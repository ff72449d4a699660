"""Runtime as a `concurrent.futures.Executor`."""

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
from openruntime_jupyter.client.code.futures import Completions, TaskFuture
from openruntime_jupyter.client.code.results import python_result
from openruntime_jupyter.client.code.serialization import pack_call, sources_of
from openruntime_jupyter.client.code_client import CodeClient
from openruntime_jupyter.client.handles import TaskHandle, refuse_deadlock
from openruntime_jupyter.client.transport.forks import reset_in_child
from openruntime_jupyter.client.transport.protocol import MOST_BYTES, MOST_IN_BATCH, Backend, new_key, size_of_call
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.schemas.endpoints import SUBMIT_BATCH
from openruntime_jupyter.schemas.tasks import Task

if TYPE_CHECKING:
    from openruntime_jupyter.arrays.array_layout import Layout
    from openruntime_jupyter.arrays.function_pickler import Stream


class TaskExecutor(Executor):
    """Executor whose calls are tasks with the options of `client`. Running futures can be cancelled."""

    def __init__(self, client: CodeClient) -> None:
        self._client = client
        self._completions = Completions(client.backend)
        self._submissions = Submissions(client.backend, self._completions, client.follow_session)
        self._lock = threading.Lock()
        self._unfinished: set[TaskFuture] = set()
        self._bursts: dict[str, str] = {}
        self._down = False
        reset_in_child(self)

    def after_fork(self) -> None:
        """Drop the parent's calls; see `Forkable`."""
        self._lock = threading.Lock()
        inherited, self._unfinished = self._unfinished, set()
        self._bursts.clear()
        for future in inherited:
            future.abandon()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Submit `fn(*args, **kwargs)`. The future's `handle` is the task.

        A thread sends the request, batched with other pending calls. Errors of the submission, such as `QueueFull`, become the
        future's exception. Raises RuntimeError after `shutdown`, `WouldDeadlock` in a task of the same lane, and `InvalidRequest`
        with the name of the argument or variable that can't be pickled.
        """
        if self._down:
            raise RuntimeError("This executor was shut down: create another one with client.executor()")
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
        """Return a key that is equal for two calls if the function's pickle, including the variables it uses, is equal."""
        arrays = _CountedArrays(self._client.backend)
        pickled = pack_call(function, (), {}, arrays)
        # Large data is not compared.
        return sha256(pickled.encode()).hexdigest() if isinstance(pickled, str) and not arrays.ids else new_key()

    def _finished(self, future: Future[Any]) -> None:
        assert isinstance(future, TaskFuture)
        with self._lock:
            self._unfinished.discard(future)

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1) -> Iterator[Any]:
        """Yield `fn` of the zipped items, in order. A task works on `chunksize` items. See `Executor.map`."""
        if chunksize < 1:
            raise ValueError(f"chunksize is {chunksize}, but must be at least 1")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        items = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(items, chunksize)), [])
        return itertools.chain.from_iterable(super().map(_each, itertools.repeat(fn), chunks, timeout=timeout))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls; with `wait`, wait until all tasks have ended. `cancel_futures` cancels them, also running ones."""
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
    """Counter of a function's arrays and large pickles that sends nothing."""

    def keep(self, value: Any, layout: Layout) -> None:
        """Count an array."""
        self.ids.append("")

    def keep_pickle(self, stream: Stream) -> dict[str, str]:
        """Count a large pickle."""
        self.ids.append("")
        return {}


@dataclass
class Submission:
    """Call to submit."""

    request: dict[str, Any]
    uploads: ArrayUploads
    future: TaskFuture


class Submissions:
    """Sender that submits calls in batches: calls that arrive during a request are sent with the next one.

    `on_response` is called with each response.
    """

    def __init__(self, backend: Backend, completions: Completions, on_response: Callable[[Task | BaseException], None]) -> None:
        self._backend = backend
        self._on_response = on_response
        self._completions = completions
        self._lock = threading.Lock()
        self._waiting: deque[Submission] = deque()
        self._sending = False
        self._closed = False
        self._sender = ThreadPoolExecutor(1, "openruntime-submissions")
        reset_in_child(self)

    def after_fork(self) -> None:
        """Drop the parent's thread and unsent calls; see `Forkable`."""
        self._lock = threading.Lock()
        self._waiting.clear()
        self._sending = False
        self._sender = ThreadPoolExecutor(1, "openruntime-submissions")

    def add(self, submission: Submission) -> None:
        """Enqueue a call for submission."""
        with self._lock:
            self._waiting.append(submission)
            if self._sending:
                return
            self._sending = True
        self._sender.submit(self._send)

    def close(self) -> None:
        """Send the remaining calls, then close the completions."""
        if not self._closed:
            self._closed = True
            self._sender.submit(self._completions.close)
            self._sender.shutdown(wait=False)

    def _send(self) -> None:
        while group := self._next():
            try:
                self._completions.open()  # before a task can end
                answers = self._backend.call(SUBMIT_BATCH, body={"tasks": [each.request for each in group]}, key=new_key())
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
                size += size_of_call(group[-1].request)
            self._sending = bool(group)
            return group

    def _settle(self, future: TaskFuture, answer: Task | OpenRuntimeError) -> None:
        self._on_response(answer)
        if isinstance(answer, OpenRuntimeError):
            future.refuse(answer)
        else:
            future.submitted(TaskHandle(self._backend, answer, python_result))
            self._completions.add(future)


def _each(function: Callable[..., Any], items: list[tuple[Any, ...]]) -> list[Any]:
    return [function(*item) for item in items]
