"""What dashboards show, gathered once for all of a kernel's: on the thread of the runtime's events, and only while one is open."""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.client.transport.watch import CONNECTED, DISCONNECTED, Watch
from openruntime_jupyter.errors import NotConnected, OpenRuntimeError
from openruntime_jupyter.schemas.base import epoch
from openruntime_jupyter.schemas.system import MetricsHistory, Timeframe
from openruntime_jupyter.schemas.tasks import Task, TaskState

RUNNING = 50
ROWS = 20
"""Tasks that are sent of those that run; and of those that wait and that have ended, of which a page asks for more itself: what lies below
the table must not be out of sight."""
ENDED = [state.value for state in TaskState if state.terminal]

EVERY: dict[Timeframe, float] = {"5m": 1.0, "15m": 5.0, "1h": 15.0, "6h": 60.0, "24h": 60.0, "7d": 300.0}
"""Seconds after which the charts of a timeframe have something new."""

POINTS = 300
"""A point for about three pixels."""

CHARTED = (
    *("gpu_utilization", "cpu_utilization", "memory_usage", "worker_memory", "gpu_memory", "mlx_memory"),
    *("active_tasks", "pending_tasks"),
)
"""The series that the charts draw: nothing else is sent."""

CHANGES_EVERY = 0.1
"""Seconds between two messages about single tasks: a thousand short tasks a second are not a thousand messages."""
TASKS_EVERY = 0.25
"""Seconds between two looks at the list of tasks for the sake of new ones."""
TASKS_UNTOLD = 5.0
"""Seconds after which the list is looked at though nothing was heard: tasks of other runtimes tell nothing here."""

NOT_SENT = {"parameters": True, "result": True}
"""What may be large: a page asks for it when a task is opened."""

Show = Callable[[dict[str, Any]], None]


class Shown:
    """One dashboard: which timeframe it shows, and who is told. `told` holds what it was told last, by part."""

    def __init__(self, timeframe: Timeframe, show: Show) -> None:
        self.timeframe = timeframe
        self.show = show
        self.charted = -math.inf
        self.told: dict[str, Any] = {}


class Feed:
    """Of one runtime, for all dashboards of this process."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.RLock()
        self._shown: list[Shown] = []
        self._watch: Watch | None = None
        self._operations: list[dict[str, Any]] | None = None
        self._table = _Table(backend)
        self._changes: dict[str, dict[str, Any]] = {}
        self._flushed = -math.inf

    def open(self, timeframe: Timeframe, show: Show) -> Shown:
        """Begin to tell a dashboard; `show(parts)` gets what has changed, on the thread of the events."""
        shown = Shown(timeframe, show)
        with self._lock:
            self._shown.append(shown)
            if self._watch is None:
                self._watch = self._backend.watch(("task_update", "task_progress", "metrics"), self._heard)
        return shown

    def change(self, shown: Shown, timeframe: Timeframe) -> None:
        """Show another timeframe, from the next figures on."""
        shown.timeframe, shown.charted = timeframe, -math.inf

    def close(self, shown: Shown) -> None:
        """Tell it no more; the last one to go ends the connection."""
        with self._lock:
            if shown in self._shown:
                self._shown.remove(shown)
            watch = None if self._shown else self._watch
            if watch is not None:
                self._watch = None
        if watch is not None:
            watch.close()

    def _heard(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == DISCONNECTED:
            self._tell({"connection": {"live": False, "reason": message["error"]}})
        elif kind in (CONNECTED, "metrics"):
            self._table.stir(every=kind == CONNECTED)
            self._asking(self._look)
        else:
            self._changed(message["data"])

    def _asking(self, look: Callable[[], None]) -> None:
        """Ask the runtime, and tell of a runtime that does not answer."""
        try:
            look()
        except NotConnected as problem:
            self._tell({"connection": {"live": False, "reason": str(problem)}})
        except OpenRuntimeError as problem:
            self._tell({"connection": {"live": True, "reason": str(problem)}})

    def _look(self) -> None:
        self._changes = {}  # the rows that are fetched now know of them
        self._tell(self._parts())
        self._chart()

    def _changed(self, data: dict[str, Any]) -> None:
        self._table.heard(data)
        now = time.monotonic()
        if data["task_id"] not in self._table.ids:
            if now - self._table.asked >= TASKS_EVERY:
                self._asking(lambda: self._tell(self._table.parts()))
            return
        self._changes.setdefault(data["task_id"], {}).update(data)
        if now - self._flushed >= CHANGES_EVERY:
            changes, self._changes, self._flushed = self._changes, {}, now
            self._tell({"changes": list(changes.values())})

    def _parts(self) -> dict[str, Any]:
        backend = self._backend
        if self._operations is None:
            self._operations = [entry.model_dump(mode="json") for entry in backend.operations()]
        return {
            "connection": {"live": True, "reason": None},
            "health": backend.health().model_dump(mode="json"),
            "devices": [device.model_dump(mode="json") for device in backend.devices()],
            **self._table.parts(),
            "sessions": [session.model_dump(mode="json", exclude_none=True) for session in backend.sessions()],
            "models": [model.model_dump(mode="json") for model in backend.prompts.models().models if model.resident],
            "operations": self._operations,
        }

    def _chart(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [shown for shown in self._shown if now - shown.charted >= 0.9 * EVERY[shown.timeframe]]
        for timeframe in {shown.timeframe for shown in due}:
            chart = packed(self._backend.metrics_history(timeframe, POINTS))
            for shown in due:
                if shown.timeframe == timeframe:
                    shown.charted = now
                    shown.show({"chart": chart})

    def _tell(self, parts: dict[str, Any]) -> None:
        with self._lock:
            everybody = list(self._shown)
        for shown in everybody:
            # What is as it was is not sent again: an idle runtime's dashboard is quiet.
            news = {name: part for name, part in parts.items() if name == "changes" or shown.told.get(name) != part}
            shown.told |= {name: part for name, part in news.items() if name != "changes"}
            if news:
                shown.show(news)


class _Table:
    """The rows of the table of tasks, fetched again only when they may have changed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._parts: dict[str, Any] = {"tasks": [], "counts": {}}
        self._stirred = True
        self.ids: frozenset[str] = frozenset()
        self.asked = -math.inf

    def stir(self, every: bool = False) -> None:
        """Time has passed; `every`: anything may have changed in it."""
        live = any(row["status"] in ("pending", "running") for row in self._parts["tasks"])
        self._stirred = self._stirred or every or live or time.monotonic() - self.asked >= TASKS_UNTOLD

    def heard(self, _data: dict[str, Any]) -> None:
        """Something was told of a task."""
        self._stirred = True

    def parts(self) -> dict[str, Any]:
        """The rows: what runs, what waits in the order in which it is next, and what has ended, the newest first."""
        if self._stirred:
            self._stirred, self.asked = False, time.monotonic()
            # The ended are asked for first: a task that goes on meanwhile is listed as what it has become.
            ended = self._backend.tasks(ROWS, states=ENDED)
            waiting = self._backend.tasks(ROWS, order="next")
            running = self._backend.tasks(RUNNING, states=["running"])
            tasks = {task.task_id: task for task in (*sorted(running.tasks, key=_start), *waiting.tasks, *ended.tasks)}
            counts = {"running": running.total_count, "waiting": waiting.total_count, "ended": ended.total_count}
            self._parts = {"tasks": [row(task) for task in tasks.values()], "counts": counts}
            self.ids = frozenset(tasks)
        return self._parts


def _start(task: Task) -> str:
    return task.started_at or task.submitted_at


def row(task: Task) -> dict[str, Any]:
    """A task as the table shows it: without what may be large, and without what the page reckons itself."""
    running = task.status is TaskState.RUNNING
    return task.model_dump(mode="json", exclude={**NOT_SENT, "execution_time": running}, exclude_none=True)


def packed(history: MetricsHistory) -> dict[str, Any]:
    """What is charted as float32 in a row: each series' means, then its maxima, NaN where there is none; points are `resolution` apart."""
    series = [(name, history.series[name]) for name in CHARTED if name in history.series]
    numbers = array("f")
    for _, values in series:
        for column in (values.mean, values.max):
            numbers.extend(math.nan if value is None else value for value in column)
    return {
        "timeframe": history.timeframe,
        "first": epoch(history.timestamps[0]) if history.timestamps else None,
        "count": len(history.timestamps),
        "resolution": history.resolution_s,
        "series": [{"name": name, "unit": values.unit} for name, values in series],
        "numbers": numbers.tobytes(),
    }


_feeds: WeakKeyDictionary[Backend, Feed] = WeakKeyDictionary()


def feed_of(backend: Backend) -> Feed:
    """The one feed of this runtime."""
    if backend not in _feeds:
        _feeds[backend] = Feed(backend)
    return _feeds[backend]
