"""Views of tasks and results. Each is also a value to compute with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from openruntime_jupyter.notebook.display.format import clock, duration, memory, number, unit_head, with_unit
from openruntime_jupyter.notebook.display.html import Html, View, block, joined, pairs, places, table, tag, text_pairs, text_table
from openruntime_jupyter.notebook.display.states import DEFAULT_PRIORITY, WORDS, details, fraction, phrase, title
from openruntime_jupyter.schemas.tasks import Task, TaskPage, TaskState

LONGEST_CELL = 500
"""Maximum length of a value in a card, in characters."""


def state_mark(task: Task, words: str | None = None) -> Html:
    """Return the state as a coloured sign and words."""
    sign, _, colour = WORDS[task.status]
    return Html(f"{tag('span', sign, class_=colour, aria_hidden='true')}&nbsp;{tag('span', words or phrase(task))}")


def state_text(task: Task) -> str:
    """Return the state as plain text."""
    return f"{WORDS[task.status][0]} {phrase(task)}"


def _head(task: Task) -> tuple[Html | str, ...]:
    return tag("span", state_mark(task)), " ", tag("strong", title(task)), " "


class TaskLine(View):
    """One-line view of a task with a progress bar, shown by running cells."""

    def __init__(self, task: Task, devices: Mapping[str, str], note: str | None = None) -> None:
        self.task = task
        self._parts = [*([note] if note else []), *details(task, devices)]

    def html(self) -> str:
        """Return the view as HTML."""
        task = self.task
        parts = tag("span", joined(self._parts), class_="m s", title=" · ".join(self._parts))
        line = tag("div", *_head(task), parts, " ", tag("code", task.task_id, class_="m r"), class_="ort-h ort-l")
        return block(f"OpenRuntime task {title(task)}: {phrase(task)}", line, self._bar())

    def _bar(self) -> Html:
        done = fraction(self.task)
        colour = {"ok": "ok", "no": "no"}.get(WORDS[self.task.status][2])
        if done is None:
            # Without progress, a finished task fills the bar with the colour of its state.
            return tag("div", tag("div", class_=colour, style="width:100%") if colour else "", class_="ort-b", aria_hidden="true")
        return tag(
            "div",
            tag("div", class_=colour, style=f"width:{done:.1%}"),
            class_="ort-b",
            role="progressbar",
            aria_label="progress",
            aria_valuemin=0,
            aria_valuemax=100,
            aria_valuenow=round(done * 100),
        )

    def text(self) -> str:
        """Return the view as plain text."""
        return " · ".join([state_text(self.task), title(self.task), *self._parts, self.task.task_id])


class TaskCard(View):
    """Display of a handle: the task's state and the next commands. `seen` False marks the last known state of an unreachable runtime."""

    def __init__(self, task: Task, devices: Mapping[str, str], seen: bool = True) -> None:
        self.task = task
        self._details = [*([] if seen else ["unreachable, last known state"]), *details(task, devices, live=False)]

    @property
    def _next(self) -> list[str]:
        if self.task.status in (TaskState.COMPLETED, TaskState.FAILED):
            verbs = ["result", "output"]
        else:
            verbs = ["output"] if self.task.status.terminal else ["wait", "output", "cancel"]
        return [f"%openruntime {verb} {self.task.task_id}" for verb in verbs]

    def html(self) -> str:
        """Return the view as HTML."""
        task = self.task
        head = tag("div", *_head(task), tag("code", task.task_id, class_="m r"), class_="ort-h")
        rest = [part for part in (joined(self._details), task.error) if part]
        lines = [tag("div", part, class_="m") for part in rest]
        advice = tag("div", joined([tag("code", command) for command in self._next]), class_="m")
        return block(f"OpenRuntime task {title(task)}: {phrase(task)}", head, *lines, advice, kind="ort-c")

    def text(self) -> str:
        """Return the view as plain text."""
        known = [state_text(self.task), title(self.task), *self._details, self.task.task_id]
        lines = [" · ".join(known), self.task.error or "", " · ".join(self._next)]
        return "\n".join(line for line in lines if line)


class TaskTable(View, list[Task]):
    """Tasks, newest first: a list of records that is displayed as a table.

    Columns in which all tasks agree are omitted. A common device and owner are shown in the caption, the default priority is not.
    """

    COLUMNS = ("state", "task", "session", "ran", "submitted", "device", "priority", "owner", "id")
    WIDE = ("task", "session", "device", "owner", "id")
    PLAIN = ("state", "task", "id")
    """Columns without a label in cards."""

    def __init__(self, page: TaskPage, devices: Mapping[str, str], filters: Mapping[str, str] | None = None) -> None:
        super().__init__(page.tasks)
        self._filters = filters or {}
        """Filters by name, shown when no task matches."""
        self.total_count = page.total_count
        self._devices = devices

    def _device(self, task: Task) -> str:
        wanted = "" if task.device_preference == "auto" else task.device_preference
        return self._devices.get(task.device_used or wanted, task.device_used or wanted)

    @staticmethod
    def _owner(task: Task) -> str:
        return ", ".join(part for part in (task.owner, None if task.here else "another runtime") if part)

    @property
    def _kept(self) -> list[int]:
        """Indices of the columns in which tasks differ."""
        common = {"device": len(self._distinct(self._device)) < 2, "owner": len({self._owner(task) for task in self}) < 2}
        common["session"] = not any(task.session_name for task in self)
        common["priority"] = all(task.priority == DEFAULT_PRIORITY for task in self)
        return [index for index, name in enumerate(self.COLUMNS) if not common.get(name)]

    def _distinct(self, of: Callable[[Task], str]) -> list[str]:
        return sorted({of(task) for task in self} - {""})

    def _rows(self, mark: Any, code: Any) -> tuple[list[str], list[list[Any]]]:
        kept = self._kept
        rows = [
            [
                mark(task),
                title(task),
                task.session_name or "",
                duration(task.execution_time),
                clock(task.submitted_at),
                self._device(task),
                task.priority,
                self._owner(task),
                code(task.task_id),
            ]
            for task in self
        ]
        return [self.COLUMNS[index] for index in kept], [[row[index] for index in kept] for row in rows]

    @property
    def _caption(self) -> str:
        if not self:
            filters = ", ".join(f"{name} {value}" for name, value in self._filters.items())
            return f"No tasks with {filters}" if filters else "No tasks"
        number = f"{len(self):,} of {self.total_count:,}" if self.total_count > len(self) else f"{len(self):,}"
        shared = [
            f"{before} {words[0]}"
            for name, before, of in (("device", "on", self._device), ("owner", "of", self._owner))
            if self.COLUMNS.index(name) not in self._kept and (words := self._distinct(of))
        ]
        return " · ".join([f"{number} {'task' if self.total_count == 1 else 'tasks'}, newest first", *shared])

    def html(self) -> str:
        """Return the view as HTML."""
        if not self:
            return block("OpenRuntime tasks", tag("div", self._caption, class_="m"))
        columns, rows = self._rows(lambda task: state_mark(task, WORDS[task.status][1]), lambda text: tag("code", text))
        numeric, wide, plain = (places(columns, names) for names in (("ran", "priority"), self.WIDE, self.PLAIN))
        return block("OpenRuntime tasks", table(self._caption, columns, rows, numeric, wide, plain))

    def text(self) -> str:
        """Return the view as plain text."""
        columns, rows = self._rows(lambda task: f"{WORDS[task.status][0]} {WORDS[task.status][1]}", str)
        return f"{self._caption}\n{text_table(columns, rows)}" if self else self._caption


class ResultCard(View, dict[str, Any]):
    """Output of an operation: a dict that is displayed as a card. `task` is the record."""

    def __init__(self, task: Task, output: dict[str, Any]) -> None:
        super().__init__(output)
        self.task = task

    @property
    def _plain(self) -> list[tuple[str, str]]:
        return [(_spaced(name), _value(name, value)) for name, value in self.items() if not _is_table(value)]

    @property
    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        return [(_spaced(name), *_rows_of(value)) for name, value in self.items() if _is_table(value)]

    def html(self) -> str:
        """Return the view as HTML."""
        metrics = joined([duration(self.task.execution_time), memory(self.task)])
        head = tag("div", tag("strong", title(self.task)), " ", tag("span", metrics, class_="m"), class_="ort-h")
        tables = [table(name, columns, rows, numeric=_numeric(rows)) for name, columns, rows in self._tables]
        return block(f"Result of {title(self.task)}", head, pairs("", self._plain), *tables, kind="ort-c")

    def text(self) -> str:
        """Return the view as plain text."""
        tables = [f"{name}\n{text_table(columns, rows)}" for name, columns, rows in self._tables]
        return "\n".join([f"{title(self.task)}: {phrase(self.task)}", text_pairs(self._plain), *tables])


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _is_table(value: Any) -> bool:
    """Return whether a value is a dict of records."""
    return isinstance(value, dict) and len(value) > 1 and all(isinstance(entry, dict) for entry in value.values())


def _rows_of(records: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a dict of records, without values that are nested deeper."""
    names = list(dict.fromkeys(name for entry in records.values() for name, value in entry.items() if not isinstance(value, dict)))
    rows = [[key, *(_short(entry.get(name)) for name in names)] for key, entry in records.items()]
    return ["", *map(unit_head, names)], rows


def _numeric(rows: list[list[str]]) -> list[int]:
    """Return the indices of the columns that contain only numbers."""
    return [index for index, column in enumerate(zip(*rows, strict=True)) if all(cell[:1] in "0123456789-—" for cell in column)]


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
