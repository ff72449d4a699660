"""The option `--map`: one prompt for each row of a list or data frame. Rows answered by an earlier run are skipped."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from typing import Any
from uuid import uuid4

from IPython.core.error import UsageError
from IPython.display import display

from openruntime_jupyter.client.ai_response import Reply
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.code.futures import Completions, TaskFuture
from openruntime_jupyter.client.object_schema import ObjectSchema
from openruntime_jupyter.errors import OpenRuntimeError, QueueFull, RateLimited, TaskError
from openruntime_jupyter.notebook.ai.context import NAME, fill, is_frame
from openruntime_jupyter.notebook.ai.options import AiArguments
from openruntime_jupyter.notebook.ai.views import Sent
from openruntime_jupyter.notebook.display.errors import one_line
from openruntime_jupyter.notebook.display.format import as_of, duration, rough
from openruntime_jupyter.notebook.display.html import Column, Styled, View, joined, line, sign, table, tag
from openruntime_jupyter.notebook.display.tasks import progress_bar
from openruntime_jupyter.notebook.run.follow import CANCEL_SECONDS, Interrupts, LiveDisplay
from openruntime_jupyter.notebook.run.notifications import Notification
from openruntime_jupyter.notebook.session import Session

MOST_AHEAD = 32
"""Maximum number of prompts in flight (pending or running)."""
HOPELESS = 10
"""Number of consecutive failures after which the batch stops."""
POLL_SECONDS = 0.2
"""Interval between progress updates."""
ANSWER, TASK, ERROR = "answer", "task_id", "error"
"""Columns added to a data frame."""
ATTRIBUTE = "openruntime"
"""Key in `DataFrame.attrs` that maps task ids to prompt keys."""
SHOWN = 10
"""Maximum number of displayed rows."""
LONGEST = 120
"""Maximum length of a displayed row or answer, in characters."""


class Batch(View):
    """Batch of prompts with a bounded number in flight, so that other users' tasks still get a turn. Displayed as a progress bar.

    `done` maps the index of each prompt answered earlier to its answer and task id; these are not submitted again. `answers` and
    `task_ids` are in the order of the prompts. `failures` maps an index to an error message. `problem` is the error that aborted the
    batch. With a `schema`, the answers are objects.
    """

    def __init__(
        self,
        client: Client,
        workflow: str,
        parameters: dict[str, Any],
        prompts: Sequence[str],
        done: Mapping[int, tuple[Any, str]],
        schema: ObjectSchema | None = None,
    ) -> None:
        self.answers: list[Any] = [done.get(place, (None, None))[0] for place in range(len(prompts))]
        self.task_ids: list[str | None] = [done.get(place, (None, None))[1] for place in range(len(prompts))]
        self.failures: dict[int, str] = {}
        self.problem: OpenRuntimeError | None = None
        self.then: Callable[[], Any] = lambda: None
        """Callback on completion, called on the batch's thread."""
        self.tokens = 0
        self.answered = 0
        self.known = len(done)
        """Number of prompts answered by earlier runs."""
        self._client, self._workflow, self._parameters, self._prompts = client, workflow, parameters, prompts
        self._schema = schema
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
        try:
            self.answers[place] = reply.text if self._schema is None else self._schema.read(reply.text, reply.finish_reason)
        except OpenRuntimeError as problem:
            self._failed(place, _first_line(problem))
            return
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
    def _state(self) -> tuple[str, str, str]:
        """Sign, words and colour of the state."""
        if self._ended is None:
            return ("●", "cancelling" if self.cancelled else "running", "go")
        if self.cancelled:
            return ("■", "stopped", "m")
        if self.problem is not None or self.gave_up:
            return ("✕", "gave up", "no")
        return ("✓", "completed", "ok") if not self.failures else ("!", "completed", "wa")

    def _facts(self) -> Styled:
        spent = (self._ended or time.monotonic()) - self._began
        ended = self.answered + len(self.failures)
        left = spent / ended * (len(self._left) + len(self._in_flight)) if ended and self._ended is None else None
        return joined(
            [
                f"{self.known + self.answered:,} of {len(self._prompts):,} rows",
                f"{self.known:,} from earlier runs" if self.known else None,
                f"{len(self.failures):,} failed" if self.failures else None,
                f"{self.tokens:,} tokens" if self.tokens else None,
                duration(spent),
                f"about {rough(left)} left" if left else None,
                f"{HOPELESS} consecutive failures" if self.gave_up else None,
                _first_line(self.problem) if self.problem is not None else None,
                as_of() if self._ended is None else None,
            ]
        )

    def content(self) -> Iterable[Styled]:
        """Return the status line and the progress bar."""
        mark, words, colour = self._state
        facts = self._facts()
        html = tag("div", tag("span", sign(mark, colour), " ", words), " ", tag("span", facts, class_="m"), class_="ort-h")
        done = (self.known + self.answered + len(self.failures)) / max(1, len(self._prompts))
        return [Styled(f"{mark} {words} · {facts}", html), progress_bar(done, colour)]

    def __repr__(self) -> str:
        return f"<Batch of {len(self._prompts):,} prompts: {self.text()}>"


def watch_batch(batch: Batch) -> bool:
    """Run the batch with a live progress display, and return whether Ctrl-C cancelled it. A second Ctrl-C returns at once."""
    live = LiveDisplay()
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


class Answers(View, list[Any]):
    """Answers in the order of the rows, None for missing ones: a list that is displayed as a table.

    `failures` maps a row's index to its error message, and `task_ids` has the task of each row.
    """

    label = "Answers"
    columns: tuple[Column[tuple[int, str, str]], ...] = (
        Column("", lambda row: row[0], "number"),
        Column("row", lambda row: row[1], "wrap", labelled=False),
        Column("answer", lambda row: row[2], "wrap", labelled=False),
    )

    def __init__(self, batch: Batch, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
        super().__init__(batch.answers)
        self.failures = dict(sorted(batch.failures.copy().items()))
        self.task_ids = list(batch.task_ids)
        self.keys = list(keys)
        self._rows = [_cut(row["item"]) for row in rows]

    @property
    def missing(self) -> list[int]:
        """Indices of the rows without an answer."""
        return [place for place, answer in enumerate(self) if answer is None]

    def earlier(self) -> dict[str, tuple[Any, str]]:
        """Return the answers and task ids by prompt key."""
        known = zip(self.keys, self, self.task_ids, strict=True)
        return {key: (answer, task) for key, answer, task in known if answer is not None and task is not None}

    def content(self) -> Iterable[Styled]:
        """Return a table of the first rows. Failed rows take precedence."""
        caption = f"{len(self) - len(self.missing):,} of {len(self):,} rows answered"
        caption += f"; {len(self.failures):,} failed (.failures)" if self.failures else ""
        places = [*self.failures, *(place for place in range(len(self)) if place not in self.failures)][:SHOWN]
        errors = {place: f"✕ {_cut(why)}" for place, why in self.failures.items()}
        yield table(
            caption,
            self.columns,
            [(at, self._rows[at], errors.get(at) or _cut("—" if self[at] is None else self[at])) for at in sorted(places)],
        )
        if len(self) > SHOWN:
            yield Styled("", line(f"and {len(self) - SHOWN:,} more", class_="m").html)


def ask_rows(
    session: Session,
    client: Client,
    arguments: AiArguments,
    parameters: dict[str, Any],
    prompt: str,
    variables: Mapping[str, Any],
    schema: Any = None,
) -> Any:
    """Submit a prompt for each row without an answer. The result is stored in the `--out` variable, even after Ctrl-C.

    With a `schema`, a model or JSON schema as of `Client.ask`, the answers are objects.
    """
    assert arguments.rows is not None
    assert arguments.out is not None
    if arguments.rows not in session.namespace:
        raise UsageError(f"--map: undefined variable {arguments.rows!r}: run the cell that defines it first")
    source, out = session.namespace[arguments.rows], arguments.out
    rows = rows_of(source, arguments.rows)
    objects = None if schema is None else ObjectSchema(schema)
    if objects is not None:
        parameters = {**parameters, "response_format": objects.response_format}
    prompts = [fill(prompt, {**variables, **row}) for row in rows]
    _require_a_name(prompt, rows)
    keys = [_key(arguments.workflow, text, parameters) for text in prompts]
    earlier = _earlier(session.namespace.get(out))
    done = {place: earlier[key] for place, key in enumerate(keys) if key in earlier}
    batch = Batch(client, arguments.workflow, parameters, prompts, done, objects)

    def keep() -> Any:
        answers = Answers(batch, rows, keys)
        session.namespace[out] = found = answers if not is_frame(source) else _frame(source, answers)
        return found

    if arguments.show_prompt:
        settings = {"workflow": arguments.workflow, **parameters}
        display(Sent([{"role": "user", "content": prompts[0]}], settings, f"The first of {len(prompts):,} prompts"))
    notification = Notification(f"map-{uuid4().hex}", "the last prompt") if arguments.notify else None
    if arguments.background:

        def end() -> None:
            keep()
            if notification is not None:
                notification.send(batch.text())

        batch.then = end
        batch.start()
        if arguments.variable is not None:
            session.namespace[arguments.variable] = batch
        return batch
    try:
        stopped = watch_batch(batch)
    finally:
        found = keep()
        if notification is not None:
            notification.send(batch.text())
    return _ended(batch, found, stopped, out)


def rows_of(source: Any, name: str) -> list[dict[str, Any]]:
    """Return the template values of each row by name. Raises `UsageError` for values without rows."""
    if is_frame(source):
        taken = [column for column in (ANSWER, TASK, ERROR) if column in source.columns]
        if taken:
            raise UsageError(f"--map: {name} already has a column {taken[0]!r}, which is needed for the result: rename or drop it")
        names = [str(column) for column in source.columns]
        rows = [dict(zip(names, row, strict=True)) for row in source.itertuples(index=False, name=None)]
        return [{**row, "item": row} for row in rows]
    if isinstance(source, (str, bytes, Mapping)) or not hasattr(source, "__iter__") or not hasattr(source, "__len__"):
        raise UsageError(f"--map: {name} is of type {type(source).__name__}, which has no rows: use a list or a data frame")
    return [{**item, "item": item} if isinstance(item, Mapping) else {"item": item} for item in source]


def _require_a_name(prompt: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        raise UsageError("--map: there are no rows")
    known = list(rows[0])
    if not any(found in known for found in NAME.findall(prompt)):
        others = f", or {', '.join(f'{{{name}}}' for name in known if name != 'item')}" if len(known) > 1 else ""
        raise UsageError(f"the prompt does not refer to the row: use {{item}}{others} as a placeholder for the row")


def _key(workflow: str, prompt: str, parameters: Mapping[str, Any]) -> str:
    """Return a hash that identifies a prompt with its workflow and parameters."""
    content = json.dumps([workflow, prompt, parameters], sort_keys=True, default=str)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _earlier(kept: Any) -> dict[str, tuple[Any, str]]:
    """Return the answers and task ids of an earlier run by prompt key."""
    if isinstance(kept, Answers):
        return kept.earlier()
    if not is_frame(kept) or not {ANSWER, TASK} <= set(kept.columns):
        return {}
    keys = kept.attrs.get(ATTRIBUTE, {})
    return {
        keys[task]: (answer, task) for answer, task in zip(kept[ANSWER], kept[TASK], strict=True) if task in keys and answer is not None
    }


def _frame(source: Any, answers: Answers) -> Any:
    """Return a copy of the data frame with columns for answers, task ids and errors."""
    frame = source.copy()
    frame[ANSWER] = list(answers)
    frame[TASK] = answers.task_ids
    if answers.failures:
        frame[ERROR] = [answers.failures.get(place) for place in range(len(answers))]
    frame.attrs[ATTRIBUTE] = {task: key for key, task in zip(answers.keys, answers.task_ids, strict=True) if task is not None}
    return frame


def _ended(batch: Batch, found: Any, stopped: bool, out: str) -> Any:
    if batch.problem is not None:
        raise batch.problem
    if stopped:
        raise one_line(KeyboardInterrupt(f"cancelled; the answers so far are in {out}: run the cell again to continue with the rest"))
    if batch.failures and not batch.answered:
        place = min(batch.failures)
        raise one_line(TaskError(f"No row was answered. The first, row {place}: {batch.failures[place]}"))
    return found


def _cut(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
