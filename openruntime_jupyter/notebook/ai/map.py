"""The option `--map`: one prompt for each row of a list or data frame. Rows answered by an earlier run are skipped."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from IPython.core.error import UsageError
from IPython.display import display

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.errors import TaskError
from openruntime_jupyter.notebook.ai.batch import Batch, watch_batch
from openruntime_jupyter.notebook.ai.cards import Sent
from openruntime_jupyter.notebook.ai.options import AiArguments
from openruntime_jupyter.notebook.ai.template import NAME, fill
from openruntime_jupyter.notebook.display.errors import one_line
from openruntime_jupyter.notebook.display.html import View, block, table, tag, text_table
from openruntime_jupyter.notebook.run.notifications import Notification
from openruntime_jupyter.notebook.session import Session

ANSWER, TASK, ERROR = "answer", "task_id", "error"
"""Columns added to a data frame."""
ATTRIBUTE = "openruntime"
"""Key in `DataFrame.attrs` that maps task ids to prompt keys."""
SHOWN = 10
"""Maximum number of displayed rows."""
LONGEST = 120
"""Maximum length of a displayed row or answer, in characters."""


class Answers(View, list[Any]):
    """Answers in the order of the rows, None for missing ones: a list that is displayed as a table.

    `failures` maps a row's index to its error message, and `task_ids` has the task of each row.
    """

    COLUMNS = ("", "row", "answer")

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

    def earlier(self) -> dict[str, tuple[str, str]]:
        """Return the answers and task ids by prompt key."""
        known = zip(self.keys, self, self.task_ids, strict=True)
        return {key: (answer, task) for key, answer, task in known if answer is not None and task is not None}

    @property
    def _caption(self) -> str:
        left = len(self.missing)
        return f"{len(self) - left:,} of {len(self):,} rows answered" + (
            f"; {len(self.failures):,} failed (.failures)" if self.failures else ""
        )

    def _table(self) -> list[list[Any]]:
        places = [*list(self.failures)[:SHOWN], *(place for place in range(len(self)) if place not in self.failures)][:SHOWN]
        errors = {place: f"✕ {_cut(why)}" for place, why in self.failures.items()}
        return [[place, self._rows[place], errors.get(place) or _cut(self[place] or "—")] for place in sorted(places)]

    def html(self) -> str:
        """Return the view as HTML."""
        more = tag("div", f"and {len(self) - SHOWN:,} more", class_="m") if len(self) > SHOWN else ""
        return block("Answers", table(self._caption, self.COLUMNS, self._table(), numeric=(0,), wide=(1, 2), plain=(1, 2)), more)

    def text(self) -> str:
        """Return the view as plain text."""
        return f"{self._caption}\n{text_table(self.COLUMNS, self._table())}"


def ask_rows(
    session: Session, client: Client, arguments: AiArguments, parameters: dict[str, Any], prompt: str, variables: Mapping[str, Any]
) -> Any:
    """Submit a prompt for each row without an answer. The result is stored in the `--out` variable, even after Ctrl-C."""
    assert arguments.rows is not None
    assert arguments.out is not None
    if arguments.rows not in session.namespace:
        raise UsageError(f"--map: undefined variable {arguments.rows!r}: run the cell that defines it first")
    source, out = session.namespace[arguments.rows], arguments.out
    rows = rows_of(source, arguments.rows)
    prompts = [fill(prompt, {**variables, **row}) for row in rows]
    _require_a_name(prompt, rows)
    keys = [_key(arguments.workflow, text, parameters) for text in prompts]
    earlier = _earlier(session.namespace.get(out))
    batch = Batch(
        client, arguments.workflow, parameters, prompts, {place: earlier[key] for place, key in enumerate(keys) if key in earlier}
    )

    def keep() -> Any:
        answers = Answers(batch, rows, keys)
        session.namespace[out] = found = answers if not _is_frame(source) else _frame(source, answers)
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
    if _is_frame(source):
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


def _earlier(kept: Any) -> dict[str, tuple[str, str]]:
    """Return the answers and task ids of an earlier run by prompt key."""
    if isinstance(kept, Answers):
        return kept.earlier()
    if not _is_frame(kept) or not {ANSWER, TASK} <= set(kept.columns):
        return {}
    keys = kept.attrs.get(ATTRIBUTE, {})
    return {
        keys[task]: (answer, task) for answer, task in zip(kept[ANSWER], kept[TASK], strict=True) if task in keys and answer is not None
    }


def _is_frame(value: Any) -> bool:
    pandas = sys.modules.get("pandas")  # if the value is a data frame, pandas has been imported
    return pandas is not None and isinstance(value, pandas.DataFrame)


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
