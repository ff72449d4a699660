"""Relay of a job's events to its runtime: output is coalesced, and what makes no sense is rejected here, as a runtime would."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

from openruntime_jupyter.engines.hosts.messages import Displayed, Generated, Message, Printed, Progressed, Started
from openruntime_jupyter.runtime.tasks.entry import TAIL_CHARACTERS, OutputBuffer, display_size
from openruntime_jupyter.schemas.tasks import Progress
from openruntime_jupyter.schemas.values import ResponsePiece

INTERVAL = 0.1
"""Minimum seconds between two messages of output."""

MOST_CHARACTERS = 1 << 20
"""Length from which text continues in another message, so that no frame is too large."""


class Relay:
    """Observer of one job, whose messages carry `number`. The first output after a pause is sent at once.

    Output that the runtime would leave out is not sent, and of several updates of a display only the newest: the relay keeps the same
    `OutputBuffer` as the runtime. While the link is `full`, text, updates and progress are collected, and a display lets the task wait.

    Parameters
    ----------
    send : sends a message
    max_output : limit of the task's output, in characters
    full : returns True while the runtime reads more slowly than this host sends
    hold : lets the task wait at its next output until that is over
    started : called when a worker starts the job
    """

    def __init__(
        self,
        number: int,
        send: Callable[[Message], None],
        max_output: int,
        full: Callable[[], bool] = lambda: False,
        hold: Callable[[], None] = lambda: None,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        self._number = number
        self._send = send
        self._full = full
        self._hold = hold
        self._started = started
        self._output = OutputBuffer(max_output)
        self._loop = asyncio.get_running_loop()
        self._texts: list[Printed | Generated] = []
        self._beyond: Printed | None = None
        """Newest of the texts that exceed the limit, of which only the end is sent."""
        self._updates: dict[str, dict[str, Any]] = {}
        """Newest updates by the ids of their displays."""
        self._growth: dict[str, int] = {}
        """Characters by which these displays have grown."""
        self._noted: set[str] = set()
        """Types of left-out displays that the runtime has noted since the last clear."""
        self._progress: Progressed | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at = 0.0

    def started(self, worker: str) -> None:
        """Report the start on a worker."""
        self._started()
        self._send(Started(self._number, worker))

    def waiting(self, reason: str | None) -> None:
        """Do nothing: the workers of this host are always reachable."""

    def progressed(self, progress: dict[str, Any]) -> None:
        """Report progress, the newest only."""
        checked = Progress(n=progress["n"], total=progress.get("total"), message=progress.get("message"))
        self._progress = Progressed(self._number, checked.n, checked.total, checked.message)
        self._send_soon()

    def printed(self, stream: Literal["stdout", "stderr"], text: str, omitted: int = 0) -> None:
        """Report text of the task."""
        with self._in_order_if_it_clears():
            self._add_printed(stream, text)

    def _add_printed(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        kept = self._output.print(stream, text)
        if kept:
            last = self._texts[-1] if self._texts else None
            joins = isinstance(last, Printed) and last.stream == stream and last is not self._beyond
            if isinstance(last, Printed) and joins and len(last.text) < MOST_CHARACTERS:
                last.text += text[:kept]
            else:
                self._texts.append(Printed(self._number, stream, text[:kept]))
        if kept < len(text):
            self._add_beyond(stream, text[kept:])

    def _add_beyond(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        """Add text after the limit: the runtime counts it and shows the end of it, as text of its newest stream."""
        beyond = self._beyond
        if beyond is None or self._texts[-1] is not beyond:
            self._beyond = beyond = Printed(self._number, stream, "")
            self._texts.append(beyond)
        beyond.stream = stream
        beyond.text += text
        if len(beyond.text) > 2 * TAIL_CHARACTERS:
            beyond.omitted += len(beyond.text) - TAIL_CHARACTERS
            beyond.text = beyond.text[-TAIL_CHARACTERS:]

    def displayed(self, item: dict[str, Any]) -> None:
        """Report a display."""
        kind, display_id = item["output_type"], item.get("display_id")
        if self._output.clears_next:
            self._noted.clear()
        updated = display_id if kind == "update_display_data" and display_id and self._output.shows(display_id) else None
        growth = self._output.apply(item)
        if growth is None:
            if kind not in self._noted:
                self._noted.add(kind)
                size = display_size(item["data"])
                self._send_in_order({"output_type": kind, "data": {}, "metadata": {}, "display_id": display_id, "omitted": size})
        elif updated is not None:
            self._updates[updated] = item
            self._growth[updated] = self._growth.get(updated, 0) + growth
            self._send_soon()
        else:
            if "data" not in item:  # a clear, or a region that may be cleared by its next output
                self._noted.clear()
            self._send_in_order(item)

    def _send_in_order(self, item: dict[str, Any]) -> None:
        self.flush()
        self._send(Displayed(self._number, item))
        if self._full():
            self._hold()

    def generated(self, piece: ResponsePiece) -> None:
        """Report a piece of a response, which is never left out."""
        if not piece.text:
            self._add_piece(piece)
            self._send_soon()
            return
        with self._in_order_if_it_clears():
            self._output.print("stdout", piece.text)
            self._add_piece(piece)

    def _add_piece(self, piece: ResponsePiece) -> None:
        last = self._texts[-1] if self._texts else None
        if not (isinstance(last, Generated) and _extended(last, piece)):
            self._texts.append(Generated(self._number, piece.text, piece.reasoning, piece.call))

    @contextlib.contextmanager
    def _in_order_if_it_clears(self) -> Iterator[None]:
        """Send text that deletes earlier output after all earlier messages and before all later ones, and other text soon."""
        clears = self._output.clears_next
        if clears:
            self._noted.clear()
            self.flush()
        yield
        if clears:
            self.flush()
        else:
            self._send_soon()

    def _send_soon(self) -> None:
        if self._timer is None:
            pause = self._sent_at + INTERVAL - time.monotonic()
            if pause <= 0 and not self._full():
                self.flush()
            else:
                self._timer = self._loop.call_later(pause if pause > 0 else INTERVAL, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._send_soon()

    def flush(self) -> None:
        """Send what is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sent_at = time.monotonic()
        texts, self._texts, self._beyond = self._texts, [], None
        for message in texts:
            self._send(message)
        # Those that shrink first, so that the runtime has room for the others as this host had.
        updates, growth = self._updates, self._growth
        self._updates, self._growth = {}, {}
        for display_id in sorted(updates, key=growth.__getitem__):
            self._send(Displayed(self._number, updates[display_id]))
        progress, self._progress = self._progress, None
        if progress is not None:
            self._send(progress)


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
