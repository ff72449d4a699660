"""Progress of a `map` call, for a bar in a notebook or a line on stderr.

The notebook extension imports this module when it loads, so it imports nothing that is slow.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from openruntime_jupyter.time_left import TimeLeft

if TYPE_CHECKING:
    from openruntime_jupyter.client.transport.protocol import Backend
    from openruntime_jupyter.client.transport.watch import Watch

SHOW_AFTER = 0.5
"""Seconds after which a map is shown that was not asked to. Shorter ones need no bar."""
UPDATE_SECONDS = 0.5
"""Maximum interval between two updates."""

MapState = Literal["running", "completed", "cancelled", "failed", "no longer watched"]


@dataclass(frozen=True, slots=True)
class MapProgress:
    """Progress of a map: of its `total` items `done` have run, `failed` of them with an error.

    `seconds` is the time so far, and `remaining` the estimated time left, None if unknown.
    """

    name: str
    state: MapState
    total: int
    done: int
    failed: int
    seconds: float
    remaining: float | None

    @property
    def title(self) -> str:
        """Return the title of the bar."""
        return f"map {self.name}" if self.name else "map"


Observer = Callable[[MapProgress], None]
"""Display of one map, called on the thread of `map`: while it runs, and once at its end."""

_make_default: Callable[[], Observer | None] | None = None


def set_default_observer(make: Callable[[], Observer | None] | None) -> None:
    """Set the function that returns an observer for a map, or None to show nothing."""
    global _make_default
    _make_default = make


def write_line(progress: MapProgress) -> None:
    """Show progress as a line on stderr, which a terminal updates in place."""
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    left = f", about {progress.remaining:.0f} s left" if progress.remaining else ""
    text = f"{progress.title}: {progress.state}, {progress.done:,} of {progress.total:,} items{failed}, {progress.seconds:.1f} s{left}"
    ended = progress.state != "running"
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}\n" if ended else f"\r\x1b[K{text[:120]}")
        sys.stderr.flush()
    elif ended:
        sys.stderr.write(f"{text}\n")


class MapReporter:
    """Reports of one map to its observer, with the items of chunks that still run.

    Parameters
    ----------
    wanted : True: always; False: never; None: if there is a default observer, and the map takes longer than `SHOW_AFTER`
    """

    def __init__(self, backend: Backend, name: str, total: int, wanted: bool | None) -> None:
        default = _make_default() if _make_default is not None and wanted is not False else None
        self._observer = default or (write_line if wanted else None)
        self._shown = bool(wanted)
        self._backend = backend
        self._name = name
        self._total = total
        self._begun = time.monotonic()
        self._time_left = TimeLeft()
        self._watch: Watch | None = None
        self._within: dict[str, float] = {}
        """Finished items of each running chunk, by task."""

    @property
    def interval(self) -> float | None:
        """Return the maximum number of seconds between two calls of `update`; None for any."""
        return None if self._observer is None else UPDATE_SECONDS

    def update(self, done: int, failed: int, running: Iterable[tuple[str, int]]) -> None:
        """Report `done` items of ended chunks, and the number of `failed` ones. `running` has task id and size of the other chunks."""
        if self._observer is None or (not self._shown and time.monotonic() - self._begun < SHOW_AFTER):
            return
        self._shown = True
        if self._watch is None:
            self._watch = self._backend.watch(("task_progress",), self._on_progress)
        # A chunk of one item reports the progress of that item.
        within = sum(min(size, self._within.get(task_id, 0)) for task_id, size in running if size > 1)
        self._report("running", done + int(within), failed)

    def end(self, state: MapState, done: int, failed: int) -> None:
        """Report the end, if the map was shown."""
        if self._watch is not None:
            self._watch.close()
        if self._shown:
            self._report(state, done, failed)

    def _report(self, state: MapState, done: int, failed: int) -> None:
        now = time.monotonic()
        # The time before the first item is that of the queue and of the start of workers.
        left = self._time_left.report(done, self._total, now) if done and state == "running" else None
        if self._observer is not None:
            self._observer(MapProgress(self._name, state, self._total, done, failed, now - self._begun, left))

    def _on_progress(self, message: dict[str, Any]) -> None:
        if message["type"] == "task_progress":
            data = message["data"]
            self._within[data["task_id"]] = data["n"]
