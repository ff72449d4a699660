"""A cell that watches a task: one status line, live output, Ctrl-C.

One background thread asks the runtime; everything that is shown is shown by the main thread, because only there does a
notebook know which cell it belongs to.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from enum import Enum
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.errors import NotConnected, OpenRuntimeError, Unavailable
from openruntime_jupyter.notebook.run.live_status import StatusLine
from openruntime_jupyter.notebook.run.output import Replay
from openruntime_jupyter.schemas.tasks import OutputItem, Task, TaskOutput

if TYPE_CHECKING:
    from typing_extensions import Self

ASK_SECONDS = 0.25
"""How long one question for new output waits: also how old the figures of the status line may be."""
FIRST_SECONDS = 0.05
"""How long the first question waits. A task that ends by then costs no thread and one display less, 3 ms of 17 for an empty cell."""
REST_SECONDS = 0.1
"""Between two questions, so that a task which prints without end costs ten a second."""
CANCEL_SECONDS = 15.0
"""How long a cell waits for the end of a task that it cancelled."""


class FollowEnd(Enum):
    """How a cell came to stop watching."""

    ENDED = "the task ended"
    INTERRUPTED = "it was cancelled by Ctrl-C, and ended"
    DETACHED = "Ctrl-C left it alone"


class Interrupts(AbstractContextManager["Interrupts"]):
    """Counts Ctrl-C instead of raising KeyboardInterrupt in the middle of whatever runs, and calls `wake` each time.

    The third one raises as ever, in case nobody looks at the count. Off the main thread nothing changes: no Ctrl-C comes there.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self.count = 0
        self.wake = wake
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._heard)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler if self._before is None else self._before)

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.wake()
        if self.count > 2:
            raise KeyboardInterrupt


class Follower(threading.Thread):
    """Asks for a task's output and record until it has ended, and puts both, or the error that stopped it, into `news`."""

    def __init__(self, handle: TaskHandle, news: SimpleQueue[Any]) -> None:
        super().__init__(name=f"openruntime-follow-{handle.id}", daemon=True)
        self._task = handle  # Thread has a `_handle` of its own since Python 3.13
        self._news = news
        self._stopped = threading.Event()
        self._since = 0
        self.finished = False

    def run(self) -> None:
        """See `Thread.run`."""
        try:
            self._follow()
        except OpenRuntimeError as problem:
            self._news.put(problem)

    def stop(self) -> None:
        """Ask nothing more; what is under way is forgotten."""
        self._stopped.set()

    def _follow(self) -> None:
        while not self._stopped.is_set():
            asked = time.monotonic()
            if self.ask(ASK_SECONDS).status.terminal and self.finished:
                return
            self._stopped.wait(max(0.0, REST_SECONDS - (time.monotonic() - asked)))

    def ask(self, wait: float) -> Task:
        """Put the output and the record into `news` that there are within `wait` seconds, and return the record."""
        shown = self._task.follow_output(self._since, wait)
        self._since, self.finished = shown.next, shown.finished
        self._news.put(shown)
        self._news.put(task := shown.task or self._task.task)  # a server of an earlier release gives no record with the output
        return task


def follow(handle: TaskHandle, devices: Mapping[str, str], interrupts: Interrupts, cancel: bool = True) -> tuple[Task, FollowEnd]:
    """Show `handle`'s task until it ends; returns its record and how the watching ended.

    Ctrl-C cancels the task, and a second one leaves it alone; with `cancel` False the first one leaves it alone already.
    Raises what the runtime's answers raise, such as `NotConnected`.
    """
    return attend(handle, StatusLine(handle.last_seen, devices), Replay().show, interrupts, cancel)


def attend(
    handle: TaskHandle, line: StatusLine, show: Callable[[list[OutputItem]], None], interrupts: Interrupts, cancel: bool = True
) -> tuple[Task, FollowEnd]:
    """What `follow` does, with a line and a way to `show` output of the caller's own."""
    news: SimpleQueue[Any] = SimpleQueue()
    interrupts.wake = lambda: news.put(None)
    follower = Follower(handle, news)
    try:
        task = follower.ask(FIRST_SECONDS)
        line.show(task)  # above the output
        if not (task.status.terminal and follower.finished):
            follower.start()
        return _watch(handle, news, line, show, interrupts, cancel)
    except (NotConnected, Unavailable) as problem:  # the latter of one that is being stopped
        line.show(note="out of reach", final=True)
        raise NotConnected(f"{problem}. `%openruntime wait {handle.id}` tells then what became of this task") from problem
    finally:
        follower.stop()


def _watch(
    handle: TaskHandle,
    news: SimpleQueue[Any],
    line: StatusLine,
    show: Callable[[list[OutputItem]], None],
    interrupts: Interrupts,
    cancel: bool,
) -> tuple[Task, FollowEnd]:
    finished, deadline = False, float("inf")
    while not (finished and line.task.status.terminal):
        if interrupts.count > (1 if cancel else 0) or time.monotonic() > deadline:
            line.show(
                note="no longer watched: it goes on" if deadline == float("inf") else "being cancelled, no longer watched", final=True
            )
            return line.task, FollowEnd.DETACHED
        if interrupts.count and deadline == float("inf"):
            deadline = time.monotonic() + CANCEL_SECONDS
            line.show(note="cancelling")
            threading.Thread(target=_cancel, args=(handle, news), name=f"openruntime-cancel-{handle.id}", daemon=True).start()
        try:
            heard = news.get(timeout=ASK_SECONDS)
        except Empty:
            continue
        if isinstance(heard, OpenRuntimeError):
            raise heard
        if isinstance(heard, TaskOutput):
            show(heard.items)
            finished = heard.finished
        elif isinstance(heard, Task):
            line.show(heard)
    line.show(final=True)
    return line.task, FollowEnd.INTERRUPTED if deadline != float("inf") else FollowEnd.ENDED


def _cancel(handle: TaskHandle, news: SimpleQueue[Any]) -> None:
    try:
        handle.cancel()
    except OpenRuntimeError as problem:
        news.put(problem)
