"""Tasks that no cell follows: cards of background tasks, and the report of those that earlier kernels of the notebook left behind.

Cards follow their tasks while the kernel lives. One thread updates all of them, woken by the runtime's events. Front ends find a card by
its display id, whichever cell runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from IPython.display import display

from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.client.transport.watch import DISCONNECTED, Watch
from openruntime_jupyter.errors import NotConnected, OpenRuntimeError, TaskNotFound
from openruntime_jupyter.notebook.display.format import counted
from openruntime_jupyter.notebook.display.tasks import LeftTasks, TaskCard
from openruntime_jupyter.notebook.run.follow import UPDATE_SECONDS, LiveDisplay
from openruntime_jupyter.notebook.run.notifications import Notification
from openruntime_jupyter.schemas.tasks import Task, TaskState

if TYPE_CHECKING:
    from openruntime_jupyter.notebook.session import Session

REFRESH_SECONDS = 60.0
"""Maximum age of a card, in seconds: cards show the minute of their last update."""


class BackgroundTask:
    """A background task with its displayed cards. Its end is shown once, and nothing after it."""

    def __init__(self, handle: TaskHandle, watch: Watch) -> None:
        self.handle = handle
        self.watch = watch
        self.ended = False
        self.notifications: list[Notification] = []
        self._cards: list[tuple[LiveDisplay, Mapping[str, str]]] = []
        self._lock = threading.Lock()

    def display(self, devices: Mapping[str, str]) -> None:
        """Display a card in the running cell, also if the task has just ended. `devices` maps ids to names."""
        with self._lock:
            self._cards.append((LiveDisplay(), devices))
            self._update(*self._cards[-1])

    def show(self, reachable: bool = True) -> bool:
        """Show the last record in all cards. Return whether that was the end of the task."""
        with self._lock:
            if self.ended:
                return False
            self.ended = self.handle.last_seen.status.terminal
            for card, devices in self._cards:
                self._update(card, devices, reachable)
            for notification in self.notifications if self.ended else ():
                notification.send_for(self.handle.last_seen)
            return self.ended

    def _update(self, card: LiveDisplay, devices: Mapping[str, str], reachable: bool = True) -> None:
        card.update(TaskCard(self.handle.last_seen, devices, reachable, self.handle.seen_at))


class BackgroundTasks:
    """The background tasks of this kernel. `ended(task_id)` is called once the kernel has seen the end of a task, on any thread."""

    def __init__(self, ended: Callable[[str], None]) -> None:
        self._ended = ended
        self._tasks: dict[str, BackgroundTask] = {}
        self._due: set[str] = set()
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None

    def follow(self, handle: TaskHandle, notification: Notification | None = None) -> BackgroundTask:
        """Follow a task until it ends, the kernel stops, or `close`. Return its cards, to which cells can add theirs.

        Its end sends the `notification`.
        """

        def on_message(message: dict[str, Any]) -> None:
            if message["type"] != DISCONNECTED:  # until the connection is back, the card shows when its state was read
                self._wake(handle.id)

        known = self._tasks.get(handle.id)
        if known is not None:
            self._wake(handle.id)
            return known
        task = BackgroundTask(handle, handle.watch(on_message))
        task.notifications += [notification] if notification is not None else []
        with self._condition:
            self._tasks[handle.id] = task
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="openruntime-background", daemon=True)
                self._thread.start()
        self._wake(handle.id)  # its end may have been before the watch
        return task

    def refresh(self) -> None:
        """Show the ends that the kernel knows already. Called after each cell, so that they are among its messages."""
        for task in list(self._tasks.values()):
            if task.handle.last_seen.status.terminal:
                self._show(task)

    def close(self) -> None:
        """Stop following all tasks."""
        for task in list(self._tasks.values()):
            self._drop(task)

    def _wake(self, task_id: str) -> None:
        with self._condition:
            self._due.add(task_id)
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                awake = self._condition.wait_for(lambda: self._due or not self._tasks, REFRESH_SECONDS)
                if not self._tasks:
                    self._thread = None
                    return
                due = [task for task_id, task in self._tasks.items() if not awake or task_id in self._due]
                self._due.clear()
            for task in due:
                self._update(task)
            time.sleep(UPDATE_SECONDS)  # the maximum rate of updates

    def _update(self, task: BackgroundTask) -> None:
        try:
            _ = task.handle.task
        except NotConnected:
            self._show(task, reachable=False)
        except OpenRuntimeError:  # the task was deleted
            self._drop(task)
        else:
            self._show(task)

    def _show(self, task: BackgroundTask, reachable: bool = True) -> None:
        if task.show(reachable):
            self._ended(task.handle.id)
        if task.ended:
            self._drop(task)

    def _drop(self, task: BackgroundTask) -> None:
        with self._condition:
            self._tasks.pop(task.handle.id, None)
            self._condition.notify()
        task.watch.close()


def report_unseen(session: Session) -> None:
    """Show which remembered tasks ended, and which still run, with the commands that show them. Ended ones are then forgotten."""
    ended: list[Task] = []
    live: list[Task] = []
    for task_id in session.unseen.of_earlier_kernels():
        try:
            task = session.client.task(task_id).last_seen
        except TaskNotFound:  # deleted, or of another runtime
            session.unseen.remove(task_id)
            continue
        (ended if task.status.terminal else live).append(task)
    completed = all(task.status is TaskState.COMPLETED for task in ended)
    _report(ended, f"{'finished' if completed else 'ended'} while you were away")
    running = all(task.status is TaskState.RUNNING for task in live)
    _report(live, f"{'is' if len(live) == 1 else 'are'} {'still running' if running else 'still waiting or running'}")
    for task in ended:
        session.unseen.remove(task.task_id)


def _report(tasks: list[Task], what: str) -> None:
    if tasks:
        display(LeftTasks(tasks, f"{counted(len(tasks), 'task')} of this notebook {what}"))
