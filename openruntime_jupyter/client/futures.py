"""Futures of tasks: one thread hears of all their ends, however many there are."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from typing import Any

from openruntime_jupyter.client.exceptions import as_raised
from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.client.transport.forks import reset_in_child
from openruntime_jupyter.client.transport.protocol import MOST_IN_BATCH, Backend
from openruntime_jupyter.client.transport.watch import CONNECTED, Watch
from openruntime_jupyter.errors import NotConnected, OpenRuntimeError, TaskCancelled
from openruntime_jupyter.schemas.tasks import Ended, TaskState

log = logging.getLogger(__name__)

EARLY_KEPT = 10_000
"""States that are remembered of unknown tasks: one may start and end before its submitter knows its id."""

FETCHERS = 4
"""Large results that are fetched at the same time. Small ones come many at a time, by one request."""


OF_THE_PARENT = (
    "this future belongs to the process that this one was forked from: its handle may have the result, by future.handle.result(); "
    "make the child's futures in the child"
)


class TaskFuture(Future[Any]):
    """The future of a task. Unlike a thread's, it can be cancelled while it runs."""

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
        """The task, once it is submitted; raises what its submission raised."""
        self._submitted.wait()
        if self._handle is None:
            raise self.exception(0) or CancelledError
        return self._handle

    def submitted(self, handle: TaskHandle) -> None:
        """Note that the task is queued."""
        self._handle = handle
        self._submitted.set()

    def refuse(self, problem: BaseException) -> None:
        """Note that the task could not be submitted."""
        self._try(self.set_exception, problem)
        self._submitted.set()

    def begin(self) -> None:
        """The task runs."""
        self._began = True

    def running(self) -> bool:
        """Whether the task was started and has not ended."""
        return self._began and not self.done()

    def cancel(self) -> bool:
        """Stop the task; returns once it has ended: False where it ended otherwise before that."""
        self._submitted.wait()
        if self._handle is not None and not self.done():
            self.settle_with(self._handle.cancel().status)
        return self.cancelled()

    def settle_with(self, status: TaskState) -> None:
        """Note that it was cancelled, if it was."""
        with self._one_at_a_time:  # who cancels it and who hears of that come here both
            if status is TaskState.CANCELLED and not self.done() and super().cancel():
                self.set_running_or_notify_cancel()

    def settle(self, ended: Ended | None = None) -> bool:
        """Take the result of the ended task, or fetch it. Return False where the runtime can't be reached for it now."""
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
        """Fail, in a forked child: what would settle it runs in the parent. Callbacks are the parent's, and are not called."""
        super().__init__()  # a thread of the parent's may have held its lock
        self._submitted = threading.Event()
        self._submitted.set()
        self._one_at_a_time = threading.Lock()
        self.set_exception(NotConnected(OF_THE_PARENT))

    def _try(self, conclude: Callable[[Any], None], outcome: Any) -> None:
        with contextlib.suppress(InvalidStateError):  # it was cancelled meanwhile
            conclude(outcome)


class Completions:
    """Watches a runtime while there are futures that wait. Close it once no more are wanted; those that wait are still served."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._waiting: dict[str, TaskFuture] = {}
        self._early: OrderedDict[str, str] = OrderedDict()
        self._ready: dict[str, TaskFuture] = {}
        """Those whose tasks have ended and whose results are not asked for yet."""
        self._collecting = False
        self._watch: Watch | None = None
        self._fetchers: ThreadPoolExecutor | None = None
        self._closed = False
        reset_in_child(self)

    def after_fork(self) -> None:
        """See `Forkable`."""
        inherited = list(self._waiting.values())
        self._lock = threading.Lock()
        self._waiting, self._early, self._ready = {}, OrderedDict(), {}
        self._collecting = False
        self._watch, self._fetchers = None, None
        for future in inherited:
            future.abandon()

    def open(self) -> None:
        """Begin to hear; called before a task is submitted, so that its end is not missed."""
        with self._lock:
            if self._watch is None:
                self._fetchers = ThreadPoolExecutor(FETCHERS, "openruntime-results")
                self._watch = self._backend.watch(("task_update",), self._heard)

    def future(self, handle: TaskHandle) -> TaskFuture:
        """Return the future of a task's result; the same one to all callers while the task has not ended."""
        self.open()
        return self.add(TaskFuture(handle))

    def add(self, future: TaskFuture) -> TaskFuture:
        """Settle this future of a submitted task when the task ends. Return the one that is there already, if there is one."""
        handle = future.handle
        with self._lock:
            future = self._waiting.setdefault(handle.id, future)
            status = self._early.pop(handle.id, None) or handle.last_seen.status
        self._follow(handle.id, future, status)
        return future

    def waiting(self) -> list[TaskFuture]:
        """The futures of tasks that have not ended."""
        with self._lock:
            return list(self._waiting.values())

    def close(self) -> None:
        """Let go once the last one has ended."""
        self._closed = True
        self._let_go()

    def _heard(self, message: dict[str, Any]) -> None:
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
        """Have a fetcher call a function. Return False where there are none, or the interpreter is shutting down."""
        fetchers = self._fetchers
        if fetchers is None:
            return False
        try:
            fetchers.submit(function, *arguments)
        except RuntimeError:  # it takes no more work
            return False
        return True

    def _collect_ready(self) -> None:
        """Collect until nothing is left: tasks that end during one request are collected together by the next."""
        while True:
            with self._lock:
                ready, self._ready = self._ready, {}
                self._collecting = bool(ready)
            if not ready:
                break
            for task_id, future in self._collect(ready).items():
                self._settle(task_id, future)  # and where the runtime can't be reached, the next connection looks again
        self._let_go()

    def _look_again(self) -> None:
        with self._lock:
            waiting = dict(self._waiting)
        self._collect(waiting)

    def _collect(self, futures: dict[str, TaskFuture]) -> dict[str, TaskFuture]:
        """Settle those whose tasks have ended. Return the others, and those whose results could not be collected."""
        left = dict(futures)
        for start in range(0, len(futures), MOST_IN_BATCH):
            asked = list(futures)[start : start + MOST_IN_BATCH]
            try:
                while asked and (collected := self._backend.collect(asked)):
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
    """Whether everything of the result is there, or it is an error."""
    if isinstance(ended.task, OpenRuntimeError) or ended.task.result is None:
        return True
    result = ended.task.result
    return not result.arrays and (result.payload is None or ended.payload is not None)


ENDED = frozenset(state.value for state in TaskState if state.terminal)
FOLLOWED = ENDED | {TaskState.RUNNING.value}
