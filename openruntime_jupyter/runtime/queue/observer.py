"""Output and progress of running tasks, on their way to subscribers."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

from openruntime_jupyter.engines.protocol import StopReason
from openruntime_jupyter.runtime.events.output import Stream
from openruntime_jupyter.runtime.events.tokens import TokenPiece
from openruntime_jupyter.runtime.metrics.gpu.meters import Meters
from openruntime_jupyter.runtime.tasks.entry import Entry
from openruntime_jupyter.schemas.tasks import Progress


class News(Protocol):
    """Receiver of running tasks' output and progress."""

    def output_changed(self, entry: Entry) -> None:
        """Report new output."""

    def progressed(self, entry: Entry) -> None:
        """Report new progress."""

    def generated(self, entry: Entry, piece: TokenPiece) -> None:
        """Report new text of a model."""


class Watcher:
    """Observer of one running attempt."""

    def __init__(self, entry: Entry, news: News, meters: Meters) -> None:
        self._entry = entry
        self._news = news
        self._meters = meters
        self._timer: asyncio.TimerHandle | None = None

    def started(self, worker: str) -> None:
        """Start the running time; again for another worker."""
        self.close()
        entry = self._entry
        entry.worker = worker
        entry.started, entry.started_mono = time.time(), time.monotonic()
        if entry.lane.device.type == "gpu":
            self._meters.begin(entry.task_id, entry.lane.id)
        if entry.timeout is not None:
            self._timer = asyncio.get_running_loop().call_later(entry.timeout, entry.lane.engine.halt, entry.task_id, StopReason.TIMED_OUT)
        if entry.stop_reason is not None:
            entry.lane.engine.halt(entry.task_id, entry.stop_reason)

    def close(self) -> None:
        """Stop the timeout at the end of the attempt."""
        if self._timer is not None:
            self._timer.cancel()

    def progressed(self, progress: dict[str, Any]) -> None:
        """Keep progress, with the estimated remaining time."""
        entry = self._entry
        n, total = progress["n"], progress.get("total")
        remaining = None
        if total and n and entry.started_mono is not None and n <= total:
            remaining = (time.monotonic() - entry.started_mono) * (total - n) / n
        entry.progress = Progress.model_construct(n=n, total=total, message=progress.get("message"), remaining=remaining)
        self._news.progressed(entry)

    def printed(self, stream: Stream, text: str) -> None:
        """Add a piece of text to the output."""
        self._entry.output.print(stream, text)
        self._news.output_changed(self._entry)

    def displayed(self, item: dict[str, Any]) -> None:
        """Add a display to the output."""
        self._entry.output.display(item)
        self._news.output_changed(self._entry)

    def generated(self, text: str) -> None:
        """Publish generated text at once, and add it to the output, which is stored."""
        entry = self._entry
        if entry.tokens is not None:
            self._news.generated(entry, entry.tokens.add(text))
        entry.output.print("stdout", text)
        self._news.output_changed(entry)
