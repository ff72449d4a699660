"""Relay of a job's events to its runtime: output is coalesced, and what makes no sense is rejected here, as a runtime would."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from openruntime_jupyter.engines.hosts.messages import Displayed, Generated, Message, Printed, Progressed, Started, Waiting
from openruntime_jupyter.runtime.tasks.entry import TAIL_CHARACTERS, OutputBuffer
from openruntime_jupyter.schemas.tasks import Progress
from openruntime_jupyter.schemas.values import ResponsePiece

INTERVAL = 0.1
"""Minimum seconds between two messages of output."""


class Relay:
    """Observer of one job, whose messages carry `number`. The first output after a pause is sent at once.

    After `max_output` characters only the end of the text of each interval is sent, because the runtime keeps no more of it. Of several
    updates of a display in an interval only the newest is sent.
    """

    def __init__(self, number: int, send: Callable[[Message], None], max_output: int) -> None:
        self._number = number
        self._send = send
        self._max_output = max_output
        self._loop = asyncio.get_running_loop()
        self._texts: list[Printed | Generated] = []
        self._updates: dict[str, Displayed] = {}
        """Newest updates by the ids of their displays."""
        self._progress: Progressed | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at = 0.0
        self._size = 0
        """Characters of text since the last clear."""

    def started(self, worker: str) -> None:
        """Report the start on a worker."""
        self._send(Started(self._number, worker))

    def waiting(self, reason: str | None) -> None:
        """Report why the job does not start."""
        self._send(Waiting(self._number, reason))

    def progressed(self, progress: dict[str, Any]) -> None:
        """Report progress, the newest only."""
        checked = Progress(n=progress["n"], total=progress.get("total"), message=progress.get("message"))
        self._progress = Progressed(self._number, checked.n, checked.total, checked.message)
        self._send_soon()

    def printed(self, stream: Literal["stdout", "stderr"], text: str, omitted: int = 0) -> None:
        """Report text of the task."""
        last = self._texts[-1] if self._texts else None
        if isinstance(last, Printed) and last.stream == stream:
            last.text += text
        else:
            self._texts.append(Printed(self._number, stream, text))
        self._send_soon()

    def displayed(self, item: dict[str, Any]) -> None:
        """Report a display."""
        OutputBuffer(self._max_output).apply(item)
        if item["output_type"] == "update_display_data" and item.get("display_id"):
            self._updates[item["display_id"]] = Displayed(self._number, item)
            self._send_soon()
            return
        self.flush()
        if item["output_type"] == "clear_output":
            self._size = 0
        self._send(Displayed(self._number, item))

    def generated(self, piece: ResponsePiece) -> None:
        """Report a piece of a response."""
        last = self._texts[-1] if self._texts else None
        if not (isinstance(last, Generated) and _extended(last, piece)):
            self._texts.append(Generated(self._number, piece.text, piece.reasoning, piece.call))
        self._send_soon()

    def _send_soon(self) -> None:
        if self._timer is None:
            pause = self._sent_at + INTERVAL - time.monotonic()
            if pause <= 0:
                self.flush()
            else:
                self._timer = self._loop.call_later(pause, self.flush)

    def flush(self) -> None:
        """Send what is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sent_at = time.monotonic()
        texts, self._texts = self._texts, []
        updates, self._updates = self._updates, {}
        progress, self._progress = self._progress, None
        for message in (*self._within_limit(texts), *updates.values()):
            self._send(message)
        if progress is not None:
            self._send(progress)

    def _within_limit(self, texts: list[Printed | Generated]) -> list[Printed | Generated]:
        """Return the texts without what the runtime would only count: from `start` to `end` of their characters."""
        size = sum(len(each.text) for each in texts)
        start, end = max(0, self._max_output - self._size), size - TAIL_CHARACTERS
        self._size += size
        if start >= end:
            return texts
        kept: list[Printed | Generated] = []
        at = omitted = 0
        for each in texts:
            first, last = max(start, at) - at, min(end, at + len(each.text)) - at
            at += len(each.text)
            if isinstance(each, Generated) or first >= last:
                kept.append(each)
                continue
            if first > 0:
                kept.append(Printed(self._number, each.stream, each.text[:first]))
            omitted += last - first
            if last < len(each.text):
                kept.append(Printed(self._number, each.stream, each.text[last:], omitted))
                omitted = 0
        if omitted:
            kept.append(Printed(self._number, "stdout", "", omitted))
        return kept


def _extended(last: Generated, piece: ResponsePiece) -> bool:
    """Append a piece to a message of the same part of the response, and return whether there was one."""
    if piece.text and last.text:
        last.text += piece.text
    elif piece.reasoning and last.reasoning:
        last.reasoning += piece.reasoning
    elif piece.call is not None and last.call is not None and piece.call.name is None and piece.call.index == last.call.index:
        last.call = replace(last.call, arguments=last.call.arguments + piece.call.arguments)
    else:
        return False
    return True
