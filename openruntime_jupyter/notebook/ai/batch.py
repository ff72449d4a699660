"""Many prompts through the queue: so many ahead that it never runs dry, and so few that others find room in it."""

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
"""Prompts that wait or run at once."""
HOPELESS = 10
"""Failures in a row, with nothing answered between them, after which no more is asked."""
LOOK_SECONDS = 0.2
"""Between two looks at how far it is."""
CANCEL_SECONDS = 15.0
"""How long the end of what was cancelled is waited for."""


class Batch(View):
    """Asks `prompts`, but for those at the places that are `done` already, and shows itself as a line with a bar.

    `answers` and `task_ids` are in the order of the prompts, `failures` are by place. `problem` is what ended it before its time.
    """

    def __init__(
        self, client: Client, workflow: str, parameters: dict[str, Any], prompts: Sequence[str], done: Mapping[int, tuple[str, str]]
    ) -> None:
        self.answers: list[str | None] = [done[place][0] if place in done else None for place in range(len(prompts))]
        self.task_ids: list[str | None] = [done[place][1] if place in done else None for place in range(len(prompts))]
        self.failures: dict[int, str] = {}
        self.problem: OpenRuntimeError | None = None
        self.then: Callable[[], Any] = lambda: None
        """Called at the end, on the thread that asks."""
        self.tokens = 0
        self.answered = 0
        self.known = len(done)
        """How many were answered before."""
        self._client, self._workflow, self._parameters, self._prompts = client, workflow, parameters, prompts
        self._left = deque(place for place in range(len(prompts)) if place not in done)
        self._flying: dict[Future[Any], int] = {}
        self._in_a_row = 0
        self._rests_until = 0.0
        self._began = time.monotonic()
        self._ended: float | None = None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="openruntime-prompts", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it has ended within so many seconds; None: however long it takes."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Ask nothing more, and stop what is under way; what was answered stays."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody stopped it."""
        return self._cancelled.is_set()

    @property
    def gave_up(self) -> bool:
        """Whether it stopped asking, as nothing but failures came back."""
        return self._in_a_row >= HOPELESS

    def _run(self) -> None:
        completions = Completions(self._client.backend)
        try:
            completions.open()
            while (self._left and not self.gave_up) or self._flying:
                if self._cancelled.is_set():
                    self._stop()
                    break
                self._send(completions)
                self._take(LOOK_SECONDS)
        except OpenRuntimeError as problem:
            self.problem = problem
            self._stop()
        finally:
            completions.close()
            self._ended = time.monotonic()
            self.then()

    def _send(self, completions: Completions) -> None:
        while self._left and len(self._flying) < MOST_AHEAD and not self.gave_up and time.monotonic() >= self._rests_until:
            place = self._left[0]
            try:
                handle = self._client.ask(self._prompts[place], self._workflow, **self._parameters)
            except (QueueFull, RateLimited) as problem:
                self._rests_until = time.monotonic() + (problem.retry_after or 1.0)
                return
            except OpenRuntimeError as problem:
                if not self.answered and not self._flying:
                    raise  # what is wrong with the first is most likely wrong with all
                self._left.popleft()
                self._failed(place, str(problem))
                continue
            self._left.popleft()
            self.task_ids[place] = handle.id
            self._flying[completions.future(handle)] = place
        if not self._flying:
            self._cancelled.wait(LOOK_SECONDS)

    def _take(self, seconds: float) -> None:
        if not self._flying:
            return
        for future in wait(self._flying, seconds, FIRST_COMPLETED).done:
            place = self._flying.pop(future)
            problem = None if future.cancelled() else future.exception()
            if future.cancelled() or problem is not None:
                self._failed(place, _first_line(problem) if problem is not None else "cancelled")
            else:
                self._answered(place, future.result())

    def _answered(self, place: int, reply: Reply) -> None:
        self.answers[place] = reply.text
        self.tokens += reply.usage.completion_tokens or 0
        self.answered += 1
        self._in_a_row = 0

    def _failed(self, place: int, why: str) -> None:
        self.failures[place] = why
        self._in_a_row += 1

    def _stop(self) -> None:
        """The last first, so that nothing is started that is about to be cancelled."""
        for future in reversed(list(self._flying)):
            assert isinstance(future, TaskFuture)
            with suppress(OpenRuntimeError):
                future.cancel()
        for future, place in self._flying.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                self._answered(place, future.result())
        self._flying.clear()

    @property
    def _words(self) -> tuple[str, str, str]:
        if self._ended is None:
            return ("●", "cancelling" if self.cancelled else "asking", "go")
        if self.cancelled:
            return ("■", "stopped", "m")
        if self.problem is not None or self.gave_up:
            return ("✕", "gave up", "no")
        return ("✓", "completed", "ok") if not self.failures else ("!", "completed", "wa")

    @property
    def _parts(self) -> list[str]:
        spent = (self._ended or time.monotonic()) - self._began
        had = self.answered + len(self.failures)
        left = spent / had * (len(self._left) + len(self._flying)) if had and self._ended is None else None
        said = [
            f"{self.known + self.answered:,} of {len(self._prompts):,} rows",
            f"{self.known:,} known already" if self.known else None,
            f"{len(self.failures):,} failed" if self.failures else None,
            f"{self.tokens:,} tokens" if self.tokens else None,
            duration(spent),
            f"about {rough(left)} left" if left else None,
            f"{HOPELESS} failures in a row" if self.gave_up else None,
            _first_line(self.problem) if self.problem is not None else None,
        ]
        return [part for part in said if part]

    def html(self) -> str:
        """See `View.html`."""
        sign, words, colour = self._words
        state = Html(f"{tag('span', sign, class_=colour, aria_hidden='true')} {tag('span', words)}")
        line = tag("div", tag("span", state), " ", tag("span", joined(self._parts), class_="m"), class_="ort-h")
        done = (self.known + self.answered + len(self.failures)) / max(1, len(self._prompts))
        filled = tag("div", class_=colour if colour in ("ok", "no") else None, style=f"width:{done:.1%}")
        return block(f"Prompts: {words}", line, tag("div", filled, class_="ort-b", role="progressbar", aria_valuenow=round(done * 100)))

    def text(self) -> str:
        """See `View.text`."""
        return " · ".join([" ".join(self._words[:2]), *self._parts])

    def __repr__(self) -> str:
        return f"<Batch of {len(self._prompts):,} prompts: {self.text()}>"


def watch_batch(batch: Batch) -> bool:
    """Run it to its end and show how far it is; whether Ctrl-C stopped it. A second Ctrl-C waits no longer."""
    live = Live()
    with Interrupts() as interrupts:
        batch.start()
        deadline = float("inf")
        while not batch.wait(LOOK_SECONDS) and interrupts.count < 2 and time.monotonic() < deadline:
            if interrupts.count and not batch.cancelled:
                deadline = time.monotonic() + CANCEL_SECONDS
                batch.cancel()
            live.update(batch)
    live.update(batch, final=True)
    return batch.cancelled


def _first_line(problem: BaseException) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
