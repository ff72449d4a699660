"""What dashboards show, gathered once for all of a kernel's: on the thread of the runtime's events, and only while one is open."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from openruntime_jupyter.client.backend import Backend
from openruntime_jupyter.client.watch import CONNECTED, DISCONNECTED, Watch
from openruntime_jupyter.errors import NotConnected, OpenRuntimeError
from openruntime_jupyter.models import MetricsHistory, Timeframe

ROWS = 50
"""Tasks that the table shows."""

EVERY: dict[Timeframe, float] = {"5m": 1.0, "15m": 5.0, "1h": 15.0, "6h": 60.0, "24h": 60.0, "7d": 300.0}
"""Seconds after which the charts of a timeframe have something new."""

POINTS = 300
"""A point for about three pixels."""

Show = Callable[[dict[str, Any]], None]


class Shown:
    """One dashboard: which timeframe it shows, and who is told. `told` holds what it was told last, by part."""

    def __init__(self, timeframe: Timeframe, show: Show) -> None:
        self.timeframe = timeframe
        self.show = show
        self.charted = 0.0
        self.told: dict[str, Any] = {}


class Feed:
    """Of one runtime, for all dashboards of this process."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.RLock()
        self._shown: list[Shown] = []
        self._watch: Watch | None = None
        self._operations: list[dict[str, Any]] | None = None

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
        shown.timeframe, shown.charted = timeframe, 0.0

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
            self._look()
        else:
            self._tell({"change": message["data"]})

    def _look(self) -> None:
        try:
            self._tell(self._parts())
            self._chart()
        except NotConnected as problem:
            self._tell({"connection": {"live": False, "reason": str(problem)}})
        except OpenRuntimeError as problem:
            self._tell({"connection": {"live": True, "reason": str(problem)}})

    def _parts(self) -> dict[str, Any]:
        backend = self._backend
        if self._operations is None:
            self._operations = [entry.model_dump(mode="json") for entry in backend.operations()]
        page = backend.tasks(ROWS)
        return {
            "connection": {"live": True, "reason": None},
            "health": backend.health().model_dump(mode="json"),
            "devices": [device.model_dump(mode="json") for device in backend.devices()],
            "tasks": [task.model_dump(mode="json", exclude={"parameters"}) for task in page.tasks],
            "total": page.total_count,
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
            news = {name: part for name, part in parts.items() if name == "change" or shown.told.get(name) != part}
            shown.told |= {name: part for name, part in news.items() if name != "change"}
            if news:
                shown.show(news)


def packed(history: MetricsHistory) -> dict[str, Any]:
    """A history as numbers in a row: seconds since the epoch, then each series' means and maxima (NaN where there are none)."""
    from openruntime_jupyter.models import epoch

    numbers = array("d", [epoch(each) or 0.0 for each in history.timestamps])
    for series in history.series.values():
        for values in (series.mean, series.max):
            numbers.extend(float("nan") if value is None else value for value in values)
    return {
        "timeframe": history.timeframe,
        "resolution": history.resolution_s,
        "series": [{"name": name, "unit": series.unit} for name, series in history.series.items()],
        "numbers": numbers.tobytes(),
    }


_feeds: WeakKeyDictionary[Backend, Feed] = WeakKeyDictionary()


def feed_of(backend: Backend) -> Feed:
    """The one feed of this runtime."""
    if backend not in _feeds:
        _feeds[backend] = Feed(backend)
    return _feeds[backend]
