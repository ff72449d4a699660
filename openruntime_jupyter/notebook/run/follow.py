"""Live display of a task in a cell: status line, output, and Ctrl-C.

A background thread polls the runtime. The main thread displays everything, because only output from the main thread is assigned to
the right cell.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from enum import Enum
from queue import Empty, SimpleQueue
from shutil import get_terminal_size
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from IPython.display import DisplayHandle, clear_output

from openruntime_jupyter.client.code.map_progress import MapProgress
from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.client.interruption import DECIDE_POLL, DECIDE_SECONDS, in_kernel, kernel_stops
from openruntime_jupyter.errors import NotConnected, OpenRuntimeError, Unavailable
from openruntime_jupyter.notebook.display.html import View
from openruntime_jupyter.notebook.display.tasks import MapLine, TaskLine
from openruntime_jupyter.notebook.run.live_widgets import LiveWidgets
from openruntime_jupyter.schemas.tasks import OutputItem, Task, TaskOutput
from openruntime_jupyter.terminal import terminal_text

if TYPE_CHECKING:
    from typing_extensions import Self

ASK_SECONDS = 0.25
"""Long-poll timeout for new output, and so the maximum age of the status line."""
FIRST_SECONDS = 0.05
"""Timeout of the first request. A task that ends by then needs no thread and one display less: 3 ms of 17 ms for an empty cell."""
REST_SECONDS = 0.1
"""Minimum interval between requests, so that a task that prints continuously causes ten a second."""
CANCEL_SECONDS = 15.0
"""Time to wait for a cancelled task to end."""
UPDATE_SECONDS = 0.2
"""Minimum interval between updates of a status line."""


class FollowEnd(Enum):
    """Reasons to stop following a task."""

    ENDED = "the task ended"
    INTERRUPTED = "the task ended after Ctrl-C cancelled it"
    DETACHED = "Ctrl-C stopped following"
    LEFT = "the kernel is restarted or shut down"


class Interrupts(AbstractContextManager["Interrupts"]):
    """Context manager that counts Ctrl-C instead of raising KeyboardInterrupt, and calls `wake` each time.

    The third Ctrl-C raises as usual, in case the count is not checked. On other threads, which receive no Ctrl-C, it does nothing.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self.count = 0
        self.wake = wake
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler if self._before is None else self._before)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.wake()
        if self.count > 2:
            raise KeyboardInterrupt


class LiveDisplay:
    """Display that is updated in place. In a terminal, which cannot update displays, it is a line on stderr."""

    def __init__(self) -> None:
        self._shown: Any = None
        self._handle: DisplayHandle | None = None
        self.terminal = not in_kernel()

    def update(self, view: View, final: bool = False) -> None:
        """Replace the display by `view`. `final` marks the last update."""
        if self.terminal:
            self._write(view.text(), final)
        elif (bundle := view.bundle()) != self._shown:
            self._shown = bundle
            if self._handle is None:
                self._handle = DisplayHandle()  # known before it is shown, so that the report of a Ctrl-C in `display` updates it
                self._handle.display(bundle, raw=True)
            else:
                self._handle.update(bundle, raw=True)

    def restore(self) -> None:
        """Display it again after the output of its cell was cleared."""
        if self._handle is not None:
            self._handle.display(self._shown, raw=True)

    def _write(self, text: str, final: bool) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}\n" if final else f"\r\x1b[K{text[: get_terminal_size().columns - 1]}")
            sys.stderr.flush()
        elif final:
            sys.stderr.write(f"{text}\n")


class StatusLine(LiveDisplay):
    """Live display of a task. The last state is saved with the notebook, with its time unless it is final."""

    def __init__(self, followed: TaskHandle, devices: Mapping[str, str]) -> None:
        super().__init__()
        self._followed = followed
        self.task = followed.last_seen
        self.devices = devices
        self.note: str | None = None
        self.shown = 0
        """Position in the output of the task up to which the cell shows it."""
        self._updated_at = float("-inf")

    def show(self, task: Task | None = None, note: str | None = None, final: bool = False) -> None:
        """Show `task` (None: the last one) and keep `note`. Updates are limited to one per `interval`, except final ones and notes."""
        self.task, self.note = task or self.task, note or self.note
        urgent = final or note is not None or self.task.status.terminal
        if urgent or time.monotonic() - self._updated_at >= self.interval():
            self.update(self.view(), final)
            self._updated_at = time.monotonic()

    @property
    def seen_at(self) -> float:
        """Time of the last record in seconds since the epoch."""
        return self._followed.seen_at

    def take(self, output: TaskOutput) -> None:
        """Note the position in the output, before its items are shown."""
        self.shown = output.next

    def interval(self) -> float:
        """Return the minimum number of seconds between updates."""
        return UPDATE_SECONDS

    def view(self) -> View:
        """Return the view of the task."""
        return TaskLine(self.task, self.devices, None if self.task.status.terminal else self.note, self.seen_at, self.shown)


class MapBar(LiveDisplay):
    """Observer of a map that updates one display. The final state is saved with the notebook."""

    def __call__(self, progress: MapProgress) -> None:
        """Show the progress."""
        self.update(MapLine(progress), final=progress.state != "running")


class OutputReplay:
    """Writer of a task's output to the kernel's streams and displays, so that progress bars and pictures work as usual.

    When the task clears its output, the displays of the cell itself are also cleared: `restore` displays them again.
    """

    def __init__(self, restore: Callable[[], None] = lambda: None) -> None:
        self._last: TextIO | None = None
        self._restore = restore
        self._widgets = LiveWidgets()

    def show(self, items: Iterable[OutputItem]) -> None:
        """Show `items` after the earlier output."""
        for item in items:
            if item.output_type == "stream":
                self._write(sys.stderr if item.name == "stderr" else sys.stdout, item.text or "")
                continue
            self._flush()
            if item.output_type == "clear_output":
                self._clear()
            elif item.data:
                self._widgets.publish(item)
        self._flush()
        self._widgets.release()

    def end(self) -> None:
        """Show the final form of widgets, once the task is no longer followed."""
        self._widgets.end()

    def _clear(self) -> None:
        if in_kernel() or sys.stdout.isatty():
            clear_output(wait=True)  # until the display that follows, so that the page does not flicker
        self._restore()
        self._widgets.clear()

    def _write(self, stream: TextIO, text: str) -> None:
        if self._last is not stream:
            self._flush()  # the streams are sent independently, so flush to preserve the order
            self._last = stream
        stream.write(text)

    def _flush(self) -> None:
        if self._last is not None:
            self._last.flush()


def shown_again(items: Iterable[OutputItem]) -> list[OutputItem]:
    """Return the output of a task for a new cell: text as a terminal shows it, and displays that are independent of earlier cells."""
    shown: list[OutputItem] = []
    for item in items:
        last = shown[-1] if shown else None
        if item.output_type != "stream":
            kind = "display_data" if item.output_type == "update_display_data" else item.output_type
            shown.append(item.model_copy(update={"output_type": kind, "display_id": None}))
        elif last is not None and last.output_type == "stream" and last.name == item.name:
            shown[-1] = last.model_copy(update={"text": (last.text or "") + (item.text or "")})
        else:
            shown.append(item)
    return [item.model_copy(update={"text": terminal_text(item.text)}) if item.text else item for item in shown]


class Follower(threading.Thread):
    """Thread that polls a task until it ends, and puts its output and record, or an error, into the queue `news`."""

    def __init__(self, handle: TaskHandle, news: SimpleQueue[Any]) -> None:
        super().__init__(name=f"openruntime-follow-{handle.id}", daemon=True)
        self._task = handle  # Thread has its own `_handle` since Python 3.13
        self._news = news
        self._stopped = threading.Event()
        self._since = 0
        self.finished = False

    def run(self) -> None:
        """Poll until the task ends or `stop` is called."""
        try:
            self._follow()
        except OpenRuntimeError as problem:
            self._news.put(problem)

    def stop(self) -> None:
        """Stop polling. The response of a pending request is ignored."""
        self._stopped.set()

    def _follow(self) -> None:
        while not self._stopped.is_set():
            sent_at = time.monotonic()
            if self.ask(ASK_SECONDS).status.terminal and self.finished:
                return
            self._stopped.wait(max(0.0, REST_SECONDS - (time.monotonic() - sent_at)))

    def ask(self, wait: float) -> Task:
        """Wait up to `wait` seconds for output, put it and the record into `news`, and return the record."""
        shown = self._task.follow_output(self._since, wait)
        if shown.items and shown.items[0].output_type == "clear_output" and not shown.finished:
            # A picture often comes shortly after text: without it, the old picture would vanish for a moment.
            self._stopped.wait(REST_SECONDS)
            shown = self._task.follow_output(self._since)
        self._since, self.finished = shown.next, shown.finished
        self._news.put(shown)
        self._news.put(task := shown.task or self._task.task)  # older servers send no record with the output
        return task


def follow(
    handle: TaskHandle, line: StatusLine, show: Callable[[list[OutputItem]], None], interrupts: Interrupts, cancel: bool = True
) -> tuple[Task, FollowEnd]:
    """Show a task in `line`, and its output with `show`, until it ends. Return its record and the reason for stopping.

    Ctrl-C cancels the task, and a second Ctrl-C stops following it. With `cancel` False, the first Ctrl-C stops following. A restart or
    shutdown of the kernel stops following, and the task continues. Raises errors of the runtime, such as `NotConnected`.
    """
    news: SimpleQueue[Any] = SimpleQueue()
    interrupts.wake = lambda: news.put(None)
    follower = Follower(handle, news)
    try:
        task = follower.ask(FIRST_SECONDS)
        line.show(task)  # displayed above the output
        if not (task.status.terminal and follower.finished):
            follower.start()
        return _watch(handle, news, line, show, interrupts, cancel)
    except (NotConnected, Unavailable) as problem:  # Unavailable: the runtime is stopping
        line.show(note="unreachable", final=True)
        raise NotConnected(f"{problem}. Afterwards, `%openruntime wait {handle.id}` shows the state of this task") from problem
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
    finished, cancellation = False, Cancellation(handle, news)
    while not (finished and line.task.status.terminal):
        stops = kernel_stops()  # asked once, because another thread changes it
        if stops and not cancellation.sent:
            line.show(note="no longer watched: the kernel was stopped", final=True)
            return line.task, FollowEnd.LEFT
        if cancel and interrupts.count:
            if not cancellation.requested:
                cancellation.request()
                line.show(note="cancelling")
            cancellation.send_if_due(now=interrupts.count > 1)
        if interrupts.count > (1 if cancel else 0) or cancellation.expired or stops:
            line.show(note="being cancelled, no longer watched" if cancellation.sent else "no longer watched, still running", final=True)
            return line.task, FollowEnd.DETACHED
        try:
            item = news.get(timeout=DECIDE_POLL if cancellation.pending else ASK_SECONDS)
        except Empty:
            continue
        if isinstance(item, OpenRuntimeError):
            raise item
        if isinstance(item, TaskOutput):
            finished = item.finished
            line.take(item)  # before `show`, which may update the line with the output in it
            show(item.items)
        elif isinstance(item, Task):
            line.show(item)
    line.show(final=True)
    return line.task, FollowEnd.INTERRUPTED if cancellation.requested else FollowEnd.ENDED


class Cancellation:
    """Cancellation of a task: requested by Ctrl-C, and sent after `DECIDE_SECONDS` unless the kernel stops."""

    def __init__(self, handle: TaskHandle, news: SimpleQueue[Any]) -> None:
        self._task = handle
        self._news = news
        self._due = self._deadline = math.inf

    @property
    def requested(self) -> bool:
        """True once Ctrl-C was pressed."""
        return self._due < math.inf

    @property
    def sent(self) -> bool:
        """True once the cancellation was sent to the runtime."""
        return self._deadline < math.inf

    @property
    def pending(self) -> bool:
        """True between the two."""
        return self.requested and not self.sent

    @property
    def expired(self) -> bool:
        """True if the task has not ended within `CANCEL_SECONDS`."""
        return time.monotonic() > self._deadline

    def request(self) -> None:
        """Start the time for the decision. A terminal has no restart, so that there is nothing to decide."""
        self._due = time.monotonic() + (DECIDE_SECONDS if in_kernel() else 0.0)

    def send_if_due(self, now: bool) -> None:
        """Send the request once its time has come, or `now`. Another thread waits for the answer."""
        if not self.sent and (now or time.monotonic() >= self._due):
            self._deadline = time.monotonic() + CANCEL_SECONDS
            threading.Thread(target=self._send, name=f"openruntime-cancel-{self._task.id}", daemon=True).start()

    def _send(self) -> None:
        try:
            self._task.cancel()
        except OpenRuntimeError as problem:
            self._news.put(problem)
