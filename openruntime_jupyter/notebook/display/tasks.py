"""Views of tasks, maps and results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from openruntime_jupyter.client.code.map_progress import MapProgress, MapState
from openruntime_jupyter.notebook.display.format import (
    as_of,
    clock,
    duration,
    file_name,
    memory,
    number,
    ordinal,
    rough,
    shortened,
    unit_head,
    with_unit,
)
from openruntime_jupyter.notebook.display.html import (
    Bundle,
    Column,
    Html,
    RecordTable,
    Styled,
    View,
    code,
    collapsed,
    joined,
    line,
    pairs,
    prose,
    sign,
    styled,
    table,
    tag,
    task_id,
)
from openruntime_jupyter.schemas.base import epoch
from openruntime_jupyter.schemas.tasks import Progress, Task, TaskPage, TaskState

STATES: dict[TaskState, tuple[str, str, str]] = {
    # state: sign, word, CSS class of the colour
    TaskState.PENDING: ("○", "waiting", "wa"),
    TaskState.RUNNING: ("●", "running", "go"),
    TaskState.COMPLETED: ("✓", "completed", "ok"),
    TaskState.FAILED: ("✕", "failed", "no"),
    TaskState.CANCELLED: ("■", "cancelled", "m"),
    TaskState.TIMED_OUT: ("✕", "timed out", "no"),
    TaskState.INTERRUPTED: ("✕", "interrupted", "no"),
}
DEFAULT_PRIORITY = 5
"""Default priority, which views omit."""
LONGEST_NAME = 40
"""Maximum length of a task's name in a status line, in characters."""
LONGEST_MESSAGE = 80
"""Maximum length of a progress message in a view, in characters."""
LONGEST_CELL = 500
"""Maximum length of a value in a card, in characters."""


def title(task: Task) -> str:
    """Return the name of the task, or else its operation."""
    return task.name or task.operation


def phrase(task: Task) -> str:
    """Return the state in words: `"running"`, `"completed in 4.2 s"`, `"cancelled before it started"`."""
    word = STATES[task.status][1]
    if not task.status.terminal:
        return word
    if task.execution_time is None:
        return word if task.status is TaskState.COMPLETED else f"{word} before it started"
    return f"{word} {'in' if task.status is TaskState.COMPLETED else 'after'} {duration(task.execution_time)}"


def state(task: Task, words: str | None = None) -> Styled:
    """Return the state as a coloured sign and words (default: `phrase`)."""
    mark, _, colour = STATES[task.status]
    words = words or phrase(task)
    return Styled(f"{mark} {words}", Html(f"{sign(mark, colour).html}&nbsp;{tag('span', words)}"))


def details(task: Task, devices: Mapping[str, str], live: bool = True) -> list[str]:
    """Return further facts about the task, most important first. `devices` maps ids to names.

    `live` False omits the run time so far, which would be wrong in a view that is not updated.
    """
    parts: list[str | None] = []
    if task.status is TaskState.PENDING:
        parts += _waiting(task)
    progress = None if task.status.terminal else task.progress
    if progress is not None:
        parts += [_share(progress), f"about {rough(progress.remaining)} left" if progress.remaining else None]
    if live and task.status is TaskState.RUNNING and task.execution_time is not None:
        parts.append(duration(task.execution_time))
    parts.append(memory(task))
    if progress is not None and progress.message:
        parts.append(shortened(progress.message, LONGEST_MESSAGE))
    if task.session_name:
        parts.append(f"session {task.session_name}")
    if task.attempt > 1:
        parts.append(f"attempt {task.attempt}")
    if task.device_used:
        parts.append(devices.get(task.device_used, task.device_used))
    return [part for part in parts if part]


def _waiting(task: Task) -> list[str | None]:
    starts = epoch(task.estimated_start)
    left = starts - time.time() if starts is not None else None
    return [
        ordinal(task.position) if task.position else None,
        f"for {task.waiting_for.removeprefix('for ')}" if task.waiting_for else None,
        f"starts in about {rough(left)}" if left is not None and left > 0.5 else None,
        f"priority {task.priority}" if task.priority != DEFAULT_PRIORITY else None,
    ]


def _share(progress: Progress) -> str:
    if progress.total:
        return f"{progress.n / progress.total:.0%} ({number(progress.n)} of {number(progress.total)})"
    return f"{number(progress.n)} done"


def progress_bar(share: float | None, colour: str | None = None) -> Styled:
    """Return a bar filled from 0 to 1. None: the progress is unknown, and only the colour of an ended task fills the bar."""
    colour = colour if colour in ("ok", "no") else None
    if share is None:
        return Styled("", tag("div", tag("div", class_=colour, style="width:100%") if colour else "", class_="ort-b", aria_hidden="true"))
    share = min(1.0, max(0.0, share))
    measured = {"aria_label": "progress", "aria_valuemin": 0, "aria_valuemax": 100, "aria_valuenow": round(share * 100)}
    return Styled("", tag("div", tag("div", class_=colour, style=f"width:{share:.1%}"), class_="ort-b", role="progressbar", **measured))


def read_at(task: Task, seen_at: float | None = None) -> str | None:
    """Return when the state of `task` was read (default: now), or None for a final state."""
    return None if task.status.terminal else as_of(seen_at)


TASK_MIME = "application/vnd.openruntime.task+json"
"""MIME type of a task in the output of a cell. In pages with the extension, `labextension/src/output.ts` shows it as it is now."""
PROMPT_OPERATIONS = ("generate", "chat")
"""Operations whose output is an answer in Markdown."""
SHOWN_BY_PAGES = {"task_id", "status", "operation", "name", "progress", "started_at", "execution_time", "error"}


def for_pages(task: Task, facts: Iterable[str], seen_at: float | None, **more: Any) -> dict[str, Any]:
    """Return a task for pages with the extension. `facts` are further facts that this kernel knows."""
    record = task.model_dump(mode="json", include=SHOWN_BY_PAGES, exclude_none=True)
    return {TASK_MIME: {**record, "phrase": phrase(task), "facts": list(facts), "seen_at": round(seen_at or time.time(), 3), **more}}


class TaskLine(View):
    """One-line view of a task with a progress bar, shown by running cells.

    `seen_at` is the time of the record (default: now), and `shown` the position in the output up to which the cell shows it.
    """

    kind = "ort-w"

    def __init__(
        self, task: Task, devices: Mapping[str, str], note: str | None = None, seen_at: float | None = None, shown: int = 0
    ) -> None:
        self.task = task
        self._for_pages = for_pages(task, [part for part in (note, *details(task, devices)) if part], seen_at, shown=shown)
        self._read_at = read_at(task, seen_at)
        self.label = f"OpenRuntime task {title(task)}: {phrase(task)}"
        self._facts = joined([note, *details(task, devices)])

    def content(self) -> Iterable[Styled]:
        """Return the line and the bar."""
        task = self.task
        facts = tag("span", self._facts, class_="m s", title=str(self._facts))
        parts = [*_head(task), facts, " ", _reference(task, self._read_at)]
        html = tag("div", *parts, class_="ort-h ort-l")
        progress = task.progress
        share = 1.0 if task.status is TaskState.COMPLETED else progress.n / progress.total if progress and progress.total else None
        return [
            Styled(str(joined([state(task), shortened(title(task), LONGEST_NAME), self._facts, self._read_at, task.task_id])), html),
            progress_bar(share, STATES[task.status][2]),
        ]

    def bundle(self) -> Bundle:
        """Return all forms as a MIME bundle."""
        return {**super().bundle(), **self._for_pages}


MAP_STATES: dict[MapState, tuple[str, str]] = {
    "running": ("●", "go"),
    "completed": ("✓", "ok"),
    "cancelled": ("■", "m"),
    "failed": ("✕", "no"),
    "no longer watched": ("!", "wa"),
}
"""Sign and colour by state."""


class MapLine(View):
    """One-line view of a map with a progress bar."""

    kind = "ort-w"

    def __init__(self, progress: MapProgress) -> None:
        self.progress = progress
        self.label = f"OpenRuntime {progress.title}: {progress.state}"

    def content(self) -> Iterable[Styled]:
        """Return the line and the bar."""
        progress = self.progress
        mark, colour = MAP_STATES[progress.state]
        if progress.state == "completed" and progress.failed:
            mark, colour = "!", "wa"
        facts = joined(
            [
                f"{progress.done:,} of {progress.total:,} items",
                f"{progress.failed:,} failed" if progress.failed else None,
                duration(progress.seconds),
                f"about {rough(progress.remaining)} left" if progress.remaining else None,
            ]
        )
        words = tag("span", sign(mark, colour), " ", progress.state)
        html = tag("div", words, " ", tag("strong", progress.title), " ", tag("span", facts, class_="m"), class_="ort-h")
        return [
            Styled(f"{mark} {progress.state} · {progress.title} · {facts}", html),
            progress_bar(progress.done / progress.total, colour),
        ]


def _head(task: Task) -> tuple[Html | str, ...]:
    name = title(task)
    return tag("span", state(task)), " ", tag("strong", name, class_="t", title=name if len(name) > LONGEST_NAME else None), " "


def _reference(task: Task, read_at: str | None) -> Html:
    """Return the right end of a headline: the id, after the time of a state that is not final."""
    return tag("span", tag("small", f"{read_at} ") if read_at else "", task_id(task.task_id), class_="m r")


class TaskCard(View):
    """Display of a handle: the task's state and the next commands. `seen` False marks the last known state of an unreachable runtime.

    `seen_at` is the time of the record (default: now). `work` adds the code and the parameters of `TaskHandle.described()`.
    """

    kind = "ort-c"

    def __init__(self, task: Task, devices: Mapping[str, str], seen: bool = True, seen_at: float | None = None, work: bool = False) -> None:
        self.task = task
        self._read_at = read_at(task, seen_at)
        self._work = work_of(task) if work else []
        self.label = f"OpenRuntime task {title(task)}: {phrase(task)}"
        facts = [None if seen else "unreachable, last known state", *details(task, devices, live=False)]
        self._details = joined([*facts, _from(task)])
        answer = task.operation in PROMPT_OPERATIONS
        self._for_pages = {} if work else for_pages(task, filter(None, facts), seen_at, shown=0, card=True, answer=answer)

    def bundle(self) -> Bundle:
        """Return all forms as a MIME bundle. Pages have none for a card with code and parameters."""
        return {**super().bundle(), **self._for_pages}

    def content(self) -> Iterable[Styled]:
        """Return the state, the details, the error, and the next commands."""
        task = self.task
        head = tag("div", *_head(task), _reference(task, self._read_at), class_="ort-h")
        yield Styled(str(joined([state(task), title(task), self._details, self._read_at, task.task_id])), head)
        if self._details:
            yield Styled("", line(self._details, class_="m").html)
        if task.error:
            yield line(task.error, class_="m")
        yield from self._work
        yield line(joined(code(f"%openruntime {verb} {task.task_id}") for verb in self._next()), class_="m")

    def _next(self) -> tuple[str, ...]:
        if self.task.status in (TaskState.COMPLETED, TaskState.FAILED):
            return "result", "output"
        return ("output",) if self.task.status.terminal else ("wait", "output", "cancel")


class LeftTasks(View):
    """Tasks that an earlier kernel left behind, with the commands for what is left to do. `head` says what became of them."""

    MOST = 10
    """Maximum number of listed tasks. A map leaves many."""

    def __init__(self, tasks: Sequence[Task], head: str) -> None:
        self.tasks = tasks
        self.label = self._head = head

    def content(self) -> Iterable[Styled]:
        """Return the head and a line for each task."""
        yield line(self._head, ":")
        for task in self.tasks[: self.MOST]:
            mark, _, colour = STATES[task.status]
            next_step = prose(_next_step(task))
            html = tag("div", sign(mark, colour), " ", tag("strong", title(task)), f" {phrase(task)}: ", next_step)
            yield Styled(f"  {title(task)} ({phrase(task)}): {next_step}", html)
        if len(self.tasks) > self.MOST:
            yield line(prose(f"and {len(self.tasks) - self.MOST} more: `%openruntime tasks notebook=this` lists them"))


def _next_step(task: Task) -> str:
    """Return the commands for what is left to do with a task, with their effects."""
    if not task.status.terminal:
        return f"`%openruntime wait {task.task_id}` follows it"
    if task.status is not TaskState.COMPLETED:
        return f"`%openruntime result {task.task_id}` shows its error"
    if task.operation != "python":
        return f"`%openruntime result {task.task_id}` shows its result"
    output = f"`%openruntime output {task.task_id}` shows its output"
    has_variables = task.result is not None and task.result.payload is not None
    return f"`%openruntime result {task.task_id} --set` sets its variables here, {output}" if has_variables else output


def _from(task: Task) -> Styled | None:
    """Return the notebook of a task, with its path as a tooltip."""
    if task.notebook is None:
        return None
    name = file_name(task.notebook)
    return Styled(f"from {name}", tag("span", f"from {name}", title=task.notebook))


TEXT_LINES = 20
"""Maximum number of lines of code in a card's plain text."""
FOLDED = ("code", "sources")
"""Parameters that are code."""
HIDDEN = ("isolate", "burst", "filename", "about", "world")
"""Parameters that say nothing about the work. The environment of the caller may have secrets."""


def work_of(task: Task) -> list[Styled]:
    """Return the code and the parameters of a task, from a record with the summary of its parameters."""
    given = task.parameters or {}
    parts = []
    for name in FOLDED:
        text = given.get(name)
        if isinstance(text, str) and text.strip():
            lines = text.rstrip().splitlines()
            shown = "".join(f"\n    {each}" for each in lines[:TEXT_LINES])
            more = f"\n    … ({len(lines) - TEXT_LINES:,} more lines)" if len(lines) > TEXT_LINES else ""
            parts.append(Styled(f"Code:{shown}{more}", collapsed("Code", text.rstrip())))
    values = [(name, value) for name, value in given.items() if name not in (*FOLDED, *HIDDEN) and value not in (None, "", [], {})]
    if values:
        parts.append(pairs([(_spaced(name), _parameter(value)) for name, value in values]))
    return parts


def _parameter(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return _short(", ".join(value))
    if isinstance(value, dict):
        return _short(", ".join(f"{name} = {_parameter(each)}" for name, each in value.items()))
    return _short(value)


class TaskTable(RecordTable[Task]):
    """Tasks, newest first.

    A device, an owner and a notebook that all tasks share are shown in the caption. The default priority is omitted. `filters` are shown
    when no task matches.
    """

    label = "OpenRuntime tasks"

    def __init__(self, page: TaskPage, devices: Mapping[str, str], filters: Mapping[str, str] | None = None) -> None:
        super().__init__(page.tasks)
        self.total_count = page.total_count

        def device(task: Task) -> str:
            wanted = "" if task.device_preference == "auto" else task.device_preference
            return devices.get(task.device_used or wanted, task.device_used or wanted)

        given = ", ".join(f"{name} {value}" for name, value in (filters or {}).items())
        self.empty = f"No tasks with {given}" if given else "No tasks"
        one_device, one_owner = len(self._distinct(device)) < 2, len({_owner(task) for task in self}) < 2
        one_notebook = len({task.notebook for task in self}) < 2
        one_priority = all(task.priority == DEFAULT_PRIORITY for task in self)
        self.columns = (
            Column("state", lambda each: state(each, STATES[each.status][1]), labelled=False),
            Column("task", title, "wrap", labelled=False),
            Column("notebook", lambda each: "" if one_notebook else _notebook(each), "wrap"),
            Column("session", lambda each: each.session_name or "", "wrap"),
            Column("ran", lambda each: duration(each.execution_time), "number"),
            Column("submitted", lambda each: clock(each.submitted_at)),
            Column("device", lambda each: "" if one_device else device(each), "wrap"),
            Column("priority", lambda each: "" if one_priority else each.priority, "number"),
            Column("owner", lambda each: "" if one_owner else _owner(each), "wrap"),
            Column("id", lambda each: task_id(each.task_id), labelled=False),
        )
        count = f"{len(self):,} of {page.total_count:,}" if page.total_count > len(self) else f"{len(self):,}"
        parts = [f"{count} {'task' if page.total_count == 1 else 'tasks'}, newest first"]
        parts += [f"on {name}" for name in self._distinct(device) if one_device]
        parts += [f"of {name}" for name in self._distinct(_owner) if one_owner]
        parts += [f"from {name}" for name in self._distinct(_notebook) if one_notebook]
        parts += [as_of()] if any(not task.status.terminal for task in self) else []
        self.caption = " · ".join(parts)

    def _distinct(self, value: Callable[[Task], str]) -> set[str]:
        return {value(task) for task in self} - {""}


def _notebook(task: Task) -> Styled | str:
    return Styled(file_name(task.notebook), tag("span", file_name(task.notebook), title=task.notebook)) if task.notebook else ""


def _owner(task: Task) -> str:
    return ", ".join(part for part in (task.owner, None if task.here else "another runtime") if part)


class ResultCard(View, dict[str, Any]):
    """Output of an operation: a dict that is displayed as a card. `task` is the record; `work` adds its parameters."""

    kind = "ort-c"

    def __init__(self, task: Task, output: dict[str, Any], work: bool = False) -> None:
        super().__init__(output)
        self.task = task
        self._work = work_of(task) if work else []
        self.label = f"Result of {title(task)}"

    def content(self) -> Iterable[Styled]:
        """Return the plain values, followed by a table for each dict of records."""
        task = self.task
        metrics = tag("span", joined([duration(task.execution_time), memory(task)]), class_="m")
        yield Styled(f"{title(task)}: {phrase(task)}", tag("div", styled("strong", title(task)), " ", metrics, class_="ort-h"))
        yield pairs([(_spaced(name), _value(name, value)) for name, value in self.items() if not _is_table(value)])
        for name, value in self.items():
            if _is_table(value):
                yield _records(_spaced(name), value)
        if self._work:
            text = "\n".join(map(str, self._work))
            yield Styled(f"Parameters:\n{text}", tag("details", tag("summary", "Parameters"), *self._work))


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _is_table(value: Any) -> bool:
    """Return whether a value is a dict of records."""
    return isinstance(value, dict) and len(value) > 1 and all(isinstance(entry, dict) for entry in value.values())


def _records(caption: str, records: dict[str, dict[str, Any]]) -> Styled:
    """Return a table of a dict of records, without values that are nested deeper."""
    names = list(dict.fromkeys(name for entry in records.values() for name, value in entry.items() if not isinstance(value, dict)))

    def column(name: str) -> Column[tuple[str, dict[str, Any]]]:
        numeric = all(_short(entry.get(name))[:1] in "0123456789-—" for entry in records.values())
        return Column(unit_head(name), lambda record: _short(record[1].get(name)), "number" if numeric else "")

    return table(caption, [Column("", lambda record: record[0]), *map(column, names)], records.items())


def _value(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return " · ".join(f"{_spaced(inner)} {with_unit(name, each) or _short(each)}" for inner, each in value.items()) or "—"
    return with_unit(name, value) or _short(value)


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(entry, (int, float)) for entry in value):
        shown = ", ".join(number(entry) for entry in value[:20])
        text = f"[{shown}, … {len(value):,} in total]" if len(value) > 20 else f"[{shown}]"
    else:
        text = "—" if value is None else number(value)
    return text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]} … ({len(text):,} characters)"
