"""Futures of tasks: one thread hears of all their ends, however many there are."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from typing import Any

from openruntime_jupyter.client.backend import Backend
from openruntime_jupyter.client.forks import reset_in_child
from openruntime_jupyter.client.handle import TaskHandle
from openruntime_jupyter.client.raised import as_raised
from openruntime_jupyter.client.watch import CONNECTED, Watch
from openruntime_jupyter.errors import NotConnected, OpenRuntimeError, TaskCancelled, TaskNotFound
from openruntime_jupyter.models import TaskState

EARLY_KEPT = 10_000
"""Ends that are remembered of tasks that nobody has asked about yet: one may end before its submitter knows its id."""

FETCHERS = 4
"""Results that are fetched at the same time."""


OF_THE_PARENT = (
    "this future belongs to the process that this one was forked from: its handle may have the result, by future.handle.result(); "
    "make the child's futures in the child"
)


class TaskFuture(Future[Any]):
    """The future of a task. Unlike a thread's, it can be cancelled while it runs."""

    def __init__(self, handle: TaskHandle) -> None:
        super().__init__()
        self.handle = handle
        self._began = False
        self._one_at_a_time = threading.Lock()

    def begin(self) -> None:
        """The task runs."""
        self._began = True

    def running(self) -> bool:
        """Whether the task was started and has not ended."""
        return self._began and not self.done()

    def cancel(self) -> bool:
        """Stop the task; returns once it has ended: False where it ended otherwise before that."""
        if not self.done():
            self.settle_with(self.handle.cancel().status)
        return self.cancelled()

    def settle_with(self, status: TaskState) -> None:
        """Note that it was cancelled, if it was."""
        with self._one_at_a_time:  # who cancels it and who hears of that come here both
            if status is TaskState.CANCELLED and not self.done() and super().cancel():
                self.set_running_or_notify_cancel()

    def settle(self) -> bool:
        """Fetch the ended task's result; False where the runtime can't be reached for it now."""
        try:
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
        self._watch: Watch | None = None
        self._fetchers: ThreadPoolExecutor | None = None
        self._closed = False
        reset_in_child(self)

    def after_fork(self) -> None:
        """See `Forkable`."""
        inherited = list(self._waiting.values())
        self._lock = threading.Lock()
        self._waiting, self._early = {}, OrderedDict()
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
        """The future of a task's result; the same one for all who ask while it has not ended."""
        self.open()
        with self._lock:
            future = self._waiting.setdefault(handle.id, TaskFuture(handle))
            status = self._early.pop(handle.id, None)
        if status is not None or handle.last_seen.status.terminal:
            self._ended(handle.id)
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
            if message.get("gap") and self._fetchers is not None:
                self._fetchers.submit(self._look_again)
            return
        data = message.get("data") or {}
        task_id, status = str(data.get("task_id")), str(data.get("status"))
        with self._lock:
            future = self._waiting.get(task_id)
        if future is not None and status == TaskState.RUNNING:
            future.begin()
        elif status in ENDED and future is not None:
            self._ended(task_id)
        elif status in ENDED:
            self._keep_early(task_id, status)

    def _keep_early(self, task_id: str, status: str) -> None:
        with self._lock:
            self._early[task_id] = status
            if len(self._early) > EARLY_KEPT:
                self._early.popitem(last=False)
            late = task_id in self._waiting
        if late:
            self._ended(task_id)

    def _ended(self, task_id: str) -> None:
        with self._lock:
            future, fetchers = self._waiting.get(task_id), self._fetchers
        if future is not None and fetchers is not None:
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down, and takes no more work
                fetchers.submit(self._settle, task_id, future)

    def _settle(self, task_id: str, future: TaskFuture) -> None:
        settled = True
        try:
            settled = future.settle()
        finally:
            if settled:
                with self._lock:
                    self._waiting.pop(task_id, None)
            self._let_go()

    def _look_again(self) -> None:
        for future in self.waiting():
            try:
                ended = future.handle.task.status.terminal
            except TaskNotFound:
                ended = True  # and asking for its result says so
            except OpenRuntimeError:
                ended = False  # the runtime has gone again: its return is heard of
            if ended:
                self._settle(future.handle.id, future)

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


ENDED = frozenset(state.value for state in TaskState if state.terminal)
