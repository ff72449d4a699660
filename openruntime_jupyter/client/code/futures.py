"""Futures of tasks. One thread watches the completion of all of them."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from typing import Any

from openruntime_jupyter.client.handles import TaskHandle, as_raised
from openruntime_jupyter.client.transport.forks import reset_in_child
from openruntime_jupyter.client.transport.protocol import MOST_IN_BATCH, Backend
from openruntime_jupyter.client.transport.watch import CONNECTED, Watch
from openruntime_jupyter.errors import NotConnected, OpenRuntimeError, TaskCancelled
from openruntime_jupyter.schemas.endpoints import COLLECT_RESULTS
from openruntime_jupyter.schemas.tasks import Ended, TaskState

log = logging.getLogger(__name__)

EARLY_KEPT = 10_000
"""Stored states of unknown tasks: a task may start and end before its submitter receives the id."""

FETCHERS = 4
"""Number of concurrent fetches of large results. Small results are fetched in batches."""


OF_THE_PARENT = (
    "This future belongs to the parent process. Get the result with future.handle.result() if it was submitted, "
    "or create the future in the child"
)


class TaskFuture(Future[Any]):
    """Future of a task. Unlike a thread's future, it can be cancelled while running."""

    def __init__(self, handle: TaskHandle | None = None) -> None:
        super().__init__()
        self._handle = handle
        self._submitted = threading.Event()
        self._began = False
        self._one_at_a_time = threading.Lock()
        if handle is not None:
            self._submitted.set()

    @property
    def handle(self) -> TaskHandle:
        """Wait for the submission and return the task's handle. Raises the errors of the submission."""
        self._submitted.wait()
        if self._handle is None:
            raise self.exception(0) or CancelledError
        return self._handle

    def submitted(self, handle: TaskHandle) -> None:
        """Store the handle of the queued task."""
        self._handle = handle
        self._submitted.set()

    def refuse(self, problem: BaseException) -> None:
        """Fail with the error of the submission."""
        self._try(self.set_exception, problem)
        self._submitted.set()

    def begin(self) -> None:
        """Mark the task as running."""
        self._began = True

    def running(self) -> bool:
        """Return whether the task is running."""
        return self._began and not self.done()

    def cancel(self) -> bool:
        """Cancel the task and wait for its end. Return False if it ended before the cancellation."""
        self._submitted.wait()
        if self._handle is not None and not self.done():
            self.settle_with(self._handle.cancel().status)
        return self.cancelled()

    def settle_with(self, status: TaskState) -> None:
        """Mark the future as cancelled if `status` is."""
        with self._one_at_a_time:  # reached from the cancelling thread and the event thread
            if status is TaskState.CANCELLED and not self.done() and super().cancel():
                self.set_running_or_notify_cancel()

    def settle(self, ended: Ended | None = None) -> bool:
        """Set the result of the ended task, fetching it if needed. Return False if the runtime is unreachable."""
        try:
            if ended is not None:
                self.handle.take(ended)
            value = self.handle.result(0)
        except NotConnected:
            return False
        except TaskCancelled:
            self.settle_with(TaskState.CANCELLED)
        except BaseException as problem:
            self._try(self.set_exception, as_raised(problem))
        else:
            self._try(self.set_result, value)
        return True

    def abandon(self) -> None:
        """Fail in a forked child, because the settling thread runs in the parent. The parent's callbacks are not called."""
        super().__init__()  # a thread of the parent may have held the lock
        self._submitted = threading.Event()
        self._submitted.set()
        self._one_at_a_time = threading.Lock()
        self.set_exception(NotConnected(OF_THE_PARENT))

    def _try(self, conclude: Callable[[Any], None], outcome: Any) -> None:
        with contextlib.suppress(InvalidStateError):  # it was cancelled concurrently
            conclude(outcome)


class Completions:
    """Watcher of a runtime while futures are pending. After `close`, pending futures are still settled."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._waiting: dict[str, TaskFuture] = {}
        self._early: OrderedDict[str, str] = OrderedDict()
        self._ready: dict[str, TaskFuture] = {}
        """Futures of ended tasks whose results are not requested yet."""
        self._collecting = False
        self._watch: Watch | None = None
        self._fetchers: ThreadPoolExecutor | None = None
        self._closed = False
        reset_in_child(self)

    def after_fork(self) -> None:
        """Reset the state in a forked child; see `Forkable`."""
        inherited = list(self._waiting.values())
        self._lock = threading.Lock()
        self._waiting, self._early, self._ready = {}, OrderedDict(), {}
        self._collecting = False
        self._watch, self._fetchers = None, None
        for future in inherited:
            future.abandon()

    def open(self) -> None:
        """Subscribe to events. Called before a submission so that the task's end is not missed."""
        with self._lock:
            if self._watch is None:
                self._fetchers = ThreadPoolExecutor(FETCHERS, "openruntime-results")
                self._watch = self._backend.watch(("task_update",), self._on_event)

    def future(self, handle: TaskHandle) -> TaskFuture:
        """Return the future of a task's result, shared by all callers until the task has ended."""
        self.open()
        return self.add(TaskFuture(handle))

    def add(self, future: TaskFuture) -> TaskFuture:
        """Register a submitted task's future. Return the task's existing future if there is one."""
        handle = future.handle
        with self._lock:
            future = self._waiting.setdefault(handle.id, future)
            status = self._early.pop(handle.id, None) or handle.last_seen.status
        self._follow(handle.id, future, status)
        return future

    def waiting(self) -> list[TaskFuture]:
        """Return the futures of tasks that have not ended."""
        with self._lock:
            return list(self._waiting.values())

    def close(self) -> None:
        """Unsubscribe once the last task has ended."""
        self._closed = True
        self._let_go()

    def _on_event(self, message: dict[str, Any]) -> None:
        if message["type"] == CONNECTED:
            if message.get("gap"):
                self._work(self._look_again)
            return
        data = message.get("data") or {}
        task_id, status = str(data.get("task_id")), str(data.get("status"))
        if status not in FOLLOWED:
            return
        with self._lock:
            future = self._waiting.get(task_id)
            if future is None:
                self._early[task_id] = status
                if len(self._early) > EARLY_KEPT:
                    self._early.popitem(last=False)
        if future is not None:
            self._follow(task_id, future, status)

    def _follow(self, task_id: str, future: TaskFuture, status: str) -> None:
        if status == TaskState.RUNNING:
            future.begin()
        elif status in ENDED:
            with self._lock:
                self._ready[task_id] = future
                if self._collecting:
                    return
                self._collecting = self._work(self._collect_ready)

    def _work(self, function: Callable[..., None], *arguments: Any) -> bool:
        """Call a function in a fetcher thread. Return False without fetchers or during interpreter shutdown."""
        fetchers = self._fetchers
        if fetchers is None:
            return False
        try:
            fetchers.submit(function, *arguments)
        except RuntimeError:  # the executor was shut down
            return False
        return True

    def _collect_ready(self) -> None:
        """Collect the results of ended tasks in batches until none are left."""
        while True:
            with self._lock:
                ready, self._ready = self._ready, {}
                self._collecting = bool(ready)
            if not ready:
                break
            for task_id, future in self._collect(ready).items():
                self._settle(task_id, future)  # if the runtime is unreachable, the next connection retries
        self._let_go()

    def _look_again(self) -> None:
        with self._lock:
            waiting = dict(self._waiting)
        self._collect(waiting)

    def _collect(self, futures: dict[str, TaskFuture]) -> dict[str, TaskFuture]:
        """Settle the futures of ended tasks. Return those that are still pending or could not be collected."""
        left = dict(futures)
        for start in range(0, len(futures), MOST_IN_BATCH):
            asked = list(futures)[start : start + MOST_IN_BATCH]
            try:
                while asked and (collected := self._backend.call(COLLECT_RESULTS, body={"tasks": asked})):
                    for ended in collected:
                        self._take(ended, left.pop(ended.task_id))
                    asked = [task_id for task_id in asked if task_id in left]
            except OpenRuntimeError as problem:
                log.debug("Results could not be collected: %s", problem)
                break
        return left

    def _take(self, ended: Ended, future: TaskFuture) -> None:
        if _complete(ended) or self._fetchers is None:
            self._settle(ended.task_id, future, ended)
        else:
            self._work(self._settle, ended.task_id, future, ended)

    def _settle(self, task_id: str, future: TaskFuture, ended: Ended | None = None) -> None:
        settled = True
        try:
            settled = future.settle(ended)
        finally:
            if settled:
                with self._lock:
                    self._waiting.pop(task_id, None)
            self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            if not self._closed or self._waiting:
                return
            watch, self._watch = self._watch, None
            fetchers, self._fetchers = self._fetchers, None
        if watch is not None:
            watch.close()
        if fetchers is not None:
            fetchers.shutdown(wait=False)


def _complete(ended: Ended) -> bool:
    """Return whether the result is complete or an error."""
    if isinstance(ended.task, OpenRuntimeError) or ended.task.result is None:
        return True
    result = ended.task.result
    return not result.arrays and (result.payload is None or ended.payload is not None)


ENDED = frozenset(state.value for state in TaskState if state.terminal)
FOLLOWED = ENDED | {TaskState.RUNNING.value}
