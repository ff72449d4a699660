"""Batch of prompts, submitted with a bounded number in flight so that other users' tasks still get a turn."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from typing import Any

from openruntime_jupyter.client.ai_response import Reply
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.futures import Completions, TaskFuture
from openruntime_jupyter.errors import OpenRuntimeError, QueueFull, RateLimited
from openruntime_jupyter.notebook.display.format import duration, rough
from openruntime_jupyter.notebook.display.html import Html, View, block, joined, tag
from openruntime_jupyter.notebook.run.follow import Interrupts
from openruntime_jupyter.notebook.run.live_status import Live

MOST_AHEAD = 32
"""Maximum number of prompts in flight (pending or running)."""
HOPELESS = 10
"""Number of consecutive failures after which the batch stops."""
POLL_SECONDS = 0.2
"""Interval between progress updates."""
CANCEL_SECONDS = 15.0
"""Time to wait for cancelled prompts to finish."""


class Batch(View):
    """Batch of prompts, displayed as a status line with a progress bar.

    `done` maps the index of each prompt answered earlier to its answer and task id; these are not submitted again. `answers` and
    `task_ids` are in the order of the prompts. `failures` maps an index to an error message. `problem` is the error that aborted the
    batch.
    """

    def __init__(
        self, client: Client, workflow: str, parameters: dict[str, Any], prompts: Sequence[str], done: Mapping[int, tuple[str, str]]
    ) -> None:
        self.answers: list[str | None] = [done[place][0] if place in done else None for place in range(len(prompts))]
        self.task_ids: list[str | None] = [done[place][1] if place in done else None for place in range(len(prompts))]
        self.failures: dict[int, str] = {}
        self.problem: OpenRuntimeError | None = None
        self.then: Callable[[], Any] = lambda: None
        """Callback on completion, called on the batch's thread."""
        self.tokens = 0
        self.answered = 0
        self.known = len(done)
        """Number of prompts answered by earlier runs."""
        self._client, self._workflow, self._parameters, self._prompts = client, workflow, parameters, prompts
        self._left = deque(place for place in range(len(prompts)) if place not in done)
        self._in_flight: dict[Future[Any], int] = {}
        self._consecutive_failures = 0
        self._paused_until = 0.0
        self._began = time.monotonic()
        self._ended: float | None = None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="openruntime-prompts", daemon=True)

    def start(self) -> None:
        """Start submitting prompts on a background thread."""
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the batch to end, for at most `timeout` seconds (None: no limit), and return whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Stop submitting and cancel the prompts in flight. Answers so far are kept."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """True after a call to `cancel`."""
        return self._cancelled.is_set()

    @property
    def gave_up(self) -> bool:
        """True if the batch stopped after `HOPELESS` consecutive failures."""
        return self._consecutive_failures >= HOPELESS

    def _run(self) -> None:
        completions = Completions(self._client.backend)
        try:
            completions.open()
            while (self._left and not self.gave_up) or self._in_flight:
                if self._cancelled.is_set():
                    self._stop()
                    break
                self._send(completions)
                self._take(POLL_SECONDS)
        except OpenRuntimeError as problem:
            self.problem = problem
            self._stop()
        finally:
            completions.close()
            self._ended = time.monotonic()
            self.then()

    def _send(self, completions: Completions) -> None:
        while self._left and len(self._in_flight) < MOST_AHEAD and not self.gave_up and time.monotonic() >= self._paused_until:
            place = self._left[0]
            try:
                handle = self._client.ask(self._prompts[place], self._workflow, **self._parameters)
            except (QueueFull, RateLimited) as problem:
                self._paused_until = time.monotonic() + (problem.retry_after or 1.0)
                return
            except OpenRuntimeError as problem:
                if not self.answered and not self._in_flight:
                    raise  # if the first prompt is rejected, the others very likely are too
                self._left.popleft()
                self._failed(place, str(problem))
                continue
            self._left.popleft()
            self.task_ids[place] = handle.id
            self._in_flight[completions.future(handle)] = place
        if not self._in_flight:
            self._cancelled.wait(POLL_SECONDS)

    def _take(self, seconds: float) -> None:
        if not self._in_flight:
            return
        for future in wait(self._in_flight, seconds, FIRST_COMPLETED).done:
            place = self._in_flight.pop(future)
            problem = None if future.cancelled() else future.exception()
            if future.cancelled() or problem is not None:
                self._failed(place, _first_line(problem) if problem is not None else "cancelled")
            else:
                self._answered(place, future.result())

    def _answered(self, place: int, reply: Reply) -> None:
        self.answers[place] = reply.text
        self.tokens += reply.usage.completion_tokens or 0
        self.answered += 1
        self._consecutive_failures = 0

    def _failed(self, place: int, why: str) -> None:
        self.failures[place] = why
        self._consecutive_failures += 1

    def _stop(self) -> None:
        """Cancel the prompts in flight, newest first, so that no pending prompt starts in between."""
        for future in reversed(list(self._in_flight)):
            assert isinstance(future, TaskFuture)
            with suppress(OpenRuntimeError):
                future.cancel()
        for future, place in self._in_flight.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                self._answered(place, future.result())
        self._in_flight.clear()

    @property
    def _words(self) -> tuple[str, str, str]:
        if self._ended is None:
            return ("●", "cancelling" if self.cancelled else "running", "go")
        if self.cancelled:
            return ("■", "stopped", "m")
        if self.problem is not None or self.gave_up:
            return ("✕", "gave up", "no")
        return ("✓", "completed", "ok") if not self.failures else ("!", "completed", "wa")

    @property
    def _parts(self) -> list[str]:
        spent = (self._ended or time.monotonic()) - self._began
        ended = self.answered + len(self.failures)
        left = spent / ended * (len(self._left) + len(self._in_flight)) if ended and self._ended is None else None
        parts = [
            f"{self.known + self.answered:,} of {len(self._prompts):,} rows",
            f"{self.known:,} from earlier runs" if self.known else None,
            f"{len(self.failures):,} failed" if self.failures else None,
            f"{self.tokens:,} tokens" if self.tokens else None,
            duration(spent),
            f"about {rough(left)} left" if left else None,
            f"{HOPELESS} consecutive failures" if self.gave_up else None,
            _first_line(self.problem) if self.problem is not None else None,
        ]
        return [part for part in parts if part]

    def html(self) -> str:
        """Return the view as HTML."""
        sign, words, colour = self._words
        state = Html(f"{tag('span', sign, class_=colour, aria_hidden='true')} {tag('span', words)}")
        line = tag("div", tag("span", state), " ", tag("span", joined(self._parts), class_="m"), class_="ort-h")
        done = (self.known + self.answered + len(self.failures)) / max(1, len(self._prompts))
        filled = tag("div", class_=colour if colour in ("ok", "no") else None, style=f"width:{done:.1%}")
        return block(f"Prompts: {words}", line, tag("div", filled, class_="ort-b", role="progressbar", aria_valuenow=round(done * 100)))

    def text(self) -> str:
        """Return the view as plain text."""
        return " · ".join([" ".join(self._words[:2]), *self._parts])

    def __repr__(self) -> str:
        return f"<Batch of {len(self._prompts):,} prompts: {self.text()}>"


def watch_batch(batch: Batch) -> bool:
    """Run the batch with a live progress display, and return whether Ctrl-C cancelled it. A second Ctrl-C returns at once."""
    live = Live()
    with Interrupts() as interrupts:
        batch.start()
        deadline = float("inf")
        while not batch.wait(POLL_SECONDS) and interrupts.count < 2 and time.monotonic() < deadline:
            if interrupts.count and not batch.cancelled:
                deadline = time.monotonic() + CANCEL_SECONDS
                batch.cancel()
            live.update(batch)
    live.update(batch, final=True)
    return batch.cancelled


def _first_line(problem: BaseException) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
