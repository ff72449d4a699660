"""Data source of a kernel's dashboards, collected once for all of them. Runs on the event thread while a dashboard is open."""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.client.transport.watch import CONNECTED, DISCONNECTED, Watch
from openruntime_jupyter.errors import NotConnected, OpenRuntimeError
from openruntime_jupyter.schemas import endpoints as api
from openruntime_jupyter.schemas.base import epoch
from openruntime_jupyter.schemas.system import MetricsHistory, Timeframe
from openruntime_jupyter.schemas.tasks import Task, TaskState

RUNNING = 50
ROWS = 20
"""Maximum number of running tasks, and of pending and of finished tasks, in a message. The page requests more itself. A longer table
would push the content below it out of sight."""
ENDED = [state.value for state in TaskState if state.terminal]

EVERY: dict[Timeframe, float] = {"5m": 1.0, "15m": 5.0, "1h": 15.0, "6h": 60.0, "24h": 60.0, "7d": 300.0}
"""Update interval of the charts for each timeframe, in seconds."""

POINTS = 300
"""Number of points in a chart, about one for three pixels."""

CHARTED = (
    *("gpu_utilization", "cpu_utilization", "memory_usage", "worker_memory", "gpu_memory", "mlx_memory"),
    *("active_tasks", "pending_tasks"),
)
"""Metric series in the charts. Other series are not sent."""

CHANGES_EVERY = 0.1
"""Minimum interval between messages about single tasks, in seconds. It limits the message rate for many short tasks."""
TASKS_EVERY = 0.25
"""Minimum interval between fetches of the task list because of new tasks, in seconds."""
TASKS_MAX_AGE = 5.0
"""Maximum age of the task list, in seconds. Tasks of other runtimes send no events here."""

NOT_SENT = {"parameters": True, "inputs": True, "result": True}
"""Large fields, which the page requests when the user opens a task."""

Show = Callable[[dict[str, Any]], None]


class Subscription:
    """One dashboard: its timeframe and callbacks. `sent` holds the last value of each part."""

    def __init__(self, timeframe: Timeframe, show: Show, check: Callable[[], None]) -> None:
        self.timeframe = timeframe
        self.show = show
        self.check = check
        self.charted_at = -math.inf
        self.sent: dict[str, Any] = {}


class Feed:
    """Data source for all dashboards of one runtime in this process."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.RLock()
        self._subscriptions: list[Subscription] = []
        self._watch: Watch | None = None
        self._operations: list[dict[str, Any]] | None = None
        self._table = _Table(backend)
        self._changes: dict[str, dict[str, Any]] = {}
        self._flushed = -math.inf

    def open(self, timeframe: Timeframe, show: Show, check: Callable[[], None] = lambda: None) -> Subscription:
        """Start sending data to a dashboard.

        `show(parts)` receives the changed parts, and `check()` is called regularly, both on the event thread.
        """
        subscription = Subscription(timeframe, show, check)
        with self._lock:
            self._subscriptions.append(subscription)
            if self._watch is None:
                self._watch = self._backend.watch(("task_update", "task_progress", "metrics"), self._on_event)
        return subscription

    def change(self, subscription: Subscription, timeframe: Timeframe) -> None:
        """Switch to another timeframe with the next update."""
        subscription.timeframe, subscription.charted_at = timeframe, -math.inf

    def close(self, subscription: Subscription) -> None:
        """Stop sending data to a dashboard. The last one closes the event connection."""
        with self._lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
            watch = None if self._subscriptions else self._watch
            if watch is not None:
                self._watch = None
        if watch is not None:
            watch.close()

    def _on_event(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == DISCONNECTED:
            self._send({"connection": {"live": False, "reason": message["error"]}})
        elif kind in (CONNECTED, "metrics"):
            self._table.mark_stale(every=kind == CONNECTED)
            self._guarded(self._refresh)
            for subscription in list(self._subscriptions):
                subscription.check()
        else:
            self._on_change(message["data"])

    def _guarded(self, fetch: Callable[[], None]) -> None:
        """Run `fetch` and report a runtime that does not respond."""
        try:
            fetch()
        except NotConnected as problem:
            self._send({"connection": {"live": False, "reason": str(problem)}})
        except OpenRuntimeError as problem:
            self._send({"connection": {"live": True, "reason": str(problem)}})

    def _refresh(self) -> None:
        self._changes = {}  # included in the rows that are fetched next
        self._send(self._parts())
        self._chart()

    def _on_change(self, data: dict[str, Any]) -> None:
        self._table.mark_stale(every=True)
        now = time.monotonic()
        if data["task_id"] not in self._table.ids:
            if now - self._table.fetched_at >= TASKS_EVERY:
                self._guarded(lambda: self._send(self._table.parts()))
            return
        self._changes.setdefault(data["task_id"], {}).update(data)
        if now - self._flushed >= CHANGES_EVERY:
            changes, self._changes, self._flushed = self._changes, {}, now
            self._send({"changes": list(changes.values())})

    def _parts(self) -> dict[str, Any]:
        backend = self._backend
        if self._operations is None:
            self._operations = [entry.model_dump(mode="json") for entry in backend.call(api.LIST_OPERATIONS)]
        return {
            "connection": {"live": True, "reason": None},
            "health": backend.call(api.GET_HEALTH).model_dump(mode="json"),
            "devices": [device.model_dump(mode="json") for device in backend.call(api.LIST_DEVICES)],
            "hosts": [host.model_dump(mode="json", exclude_none=True) for host in backend.call(api.LIST_HOSTS)],
            **self._table.parts(),
            "sessions": [session.model_dump(mode="json", exclude_none=True) for session in backend.call(api.LIST_SESSIONS)],
            "models": [model.model_dump(mode="json") for model in backend.call(api.LIST_MODELS).models if model.resident],
            "operations": self._operations,
        }

    def _chart(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [each for each in self._subscriptions if now - each.charted_at >= 0.9 * EVERY[each.timeframe]]
        for timeframe in {each.timeframe for each in due}:
            chart = packed(self._backend.call(api.GET_METRICS_HISTORY, query={"timeframe": timeframe, "points": POINTS}))
            for subscription in due:
                if subscription.timeframe == timeframe:
                    subscription.charted_at = now
                    subscription.show({"chart": chart})

    def _send(self, parts: dict[str, Any]) -> None:
        with self._lock:
            subscriptions = list(self._subscriptions)
        for subscription in subscriptions:
            # Unchanged parts are not sent again, so an idle dashboard causes no traffic.
            news = {name: part for name, part in parts.items() if name == "changes" or subscription.sent.get(name) != part}
            subscription.sent |= {name: part for name, part in news.items() if name != "changes"}
            if news:
                subscription.show(news)


class _Table:
    """Cache of the rows of the task table, fetched again only when they may have changed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._parts: dict[str, Any] = {"tasks": [], "counts": {}}
        self._stale = True
        self.ids: frozenset[str] = frozenset()
        self.fetched_at = -math.inf

    def mark_stale(self, every: bool = False) -> None:
        """Mark the rows as stale if they may have changed over time. `every` marks them unconditionally."""
        live = any(row["status"] in ("pending", "running") for row in self._parts["tasks"])
        self._stale = self._stale or every or live or time.monotonic() - self.fetched_at >= TASKS_MAX_AGE

    def parts(self) -> dict[str, Any]:
        """Return the rows: running tasks, pending tasks in execution order, and finished tasks, newest first."""
        if self._stale:
            self._stale, self.fetched_at = False, time.monotonic()
            # Finished tasks are fetched first, so that a task that changes state in between is listed once, in its newer state.
            ended = self._backend.call(api.LIST_TASKS, query={"limit": ROWS, "state": ENDED})
            waiting = self._backend.call(api.LIST_TASKS, query={"limit": ROWS, "order": "next"})
            running = self._backend.call(api.LIST_TASKS, query={"limit": RUNNING, "state": ["running"]})
            tasks = {task.task_id: task for task in (*sorted(running.tasks, key=_start), *waiting.tasks, *ended.tasks)}
            counts = {"running": running.total_count, "waiting": waiting.total_count, "ended": ended.total_count}
            self._parts = {"tasks": [row(task) for task in tasks.values()], "counts": counts}
            self.ids = frozenset(tasks)
        return self._parts


def _start(task: Task) -> str:
    return task.started_at or task.submitted_at


def row(task: Task) -> dict[str, Any]:
    """Return a task as a table row, without large fields and without values that the page computes."""
    running = task.status is TaskState.RUNNING
    return task.model_dump(mode="json", exclude={**NOT_SENT, "execution_time": running}, exclude_none=True)


def packed(history: MetricsHistory) -> dict[str, Any]:
    """Return the charts as one float32 buffer: the means and then the maxima of each series, NaN for missing values.

    Points are `resolution` seconds apart.
    """
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


_feeds: WeakValueDictionary[Backend, Feed] = WeakValueDictionary()
"""Feeds by runtime. Dashboards keep them alive."""


def feed_of(backend: Backend) -> Feed:
    """Return the shared feed of a runtime."""
    feed = _feeds.get(backend)
    if feed is None:
        feed = _feeds[backend] = Feed(backend)
    return feed
