"""Whether a text keeps to the figures of another: a model may make up what it was not told."""

from __future__ import annotations

import re

from openruntime_jupyter.ai.workflows import SYSTEM_ANALYSIS
from openruntime_jupyter.schemas.tasks import Task

LONGEST = 4.0
"""How many times as long as the computed text a wording may be."""

# Times and ids whole, then numbers; what stands in a word, as in `float32`, is part of the word.
_TOKEN = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?|\d\d:\d\d(?::\d\d)?Z?|\b(?:ai_)?task_\w+|(?<![\w.])\d[\d,]*(?:\.\d+)?"
)
_ORDINAL = re.compile(r"^\s*\d+[.)]\s", re.MULTILINE)


def figures_of(text: str) -> list[str]:
    """Each number, time and task id of a text once, as they are compared: without thousands' commas and the points' own numbers."""
    found = (token.replace(",", "").rstrip("Z") for token in _TOKEN.findall(_ORDINAL.sub("", text)))
    return list(dict.fromkeys(found))


def faithful(worded: str, computed: str) -> bool:
    """Whether a wording has every figure of the computed text, and none that is not there."""
    return set(figures_of(worded)) == set(figures_of(computed)) and len(worded) <= LONGEST * len(computed)


def untold(answer: str, told: str) -> list[str]:
    """The figures of an answer that are not among those that its model was told, rounded or not, in the order in which they come."""
    known = figures_of(told)
    numbers = [number for each in known if (number := _number(each)) is not None]
    # A part of a time, as 14:30 of 2026-01-01T14:30:10, was told with it.
    times = [each for each in known if ":" in each]
    return [
        each
        for each in figures_of(answer)
        if each not in known and not any(each in time for time in times) and not _is_one_of(each, numbers)
    ]


def untold_of(task: Task) -> list[str]:
    """Those of a task's answer, by its record with the parameters; none where it is no analysis, or did not complete."""
    given = task.parameters or {}
    if task.result is None or (given.get("about") or {}).get("workflow") != SYSTEM_ANALYSIS:
        return []
    return untold(task.result.output.get("text") or "", "\n".join(message["content"] for message in given.get("messages") or []))


def _is_one_of(figure: str, numbers: list[float]) -> bool:
    number, places = _number(figure), len(figure.partition(".")[2])
    return number is not None and any(number == round(each, places) for each in numbers)


def _number(figure: str) -> float | None:
    try:
        return float(figure)
    except ValueError:
        return None
