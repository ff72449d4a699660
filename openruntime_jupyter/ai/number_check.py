"""Comparison of the numbers in two texts, because models may invent numbers."""

from __future__ import annotations

import re

from openruntime_jupyter.ai.workflows import SYSTEM_ANALYSIS
from openruntime_jupyter.schemas.tasks import Task

LONGEST = 4.0
"""Maximum length of the rewritten text, relative to the computed text."""

# Complete times and ids, then numbers. Digits in a word, as in `float32`, are part of the word.
_TOKEN = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?|\d\d:\d\d(?::\d\d)?Z?|\b(?:ai_)?task_\w+|(?<![\w.])\d[\d,]*(?:\.\d+)?"
)
_ORDINAL = re.compile(r"^\s*\d+[.)]\s", re.MULTILINE)


def figures_of(text: str) -> list[str]:
    """Return the unique numbers, times and task ids of a text, without thousands separators and list ordinals."""
    found = (token.replace(",", "").rstrip("Z") for token in _TOKEN.findall(_ORDINAL.sub("", text)))
    return list(dict.fromkeys(found))


def faithful(rewritten: str, computed: str) -> bool:
    """Return whether the rewritten text has exactly the numbers of the computed text."""
    return set(figures_of(rewritten)) == set(figures_of(computed)) and len(rewritten) <= LONGEST * len(computed)


def unverified_numbers(answer: str, source: str) -> list[str]:
    """Return the numbers of a response that are not in the model's input, rounded or not, in order of appearance."""
    known = figures_of(source)
    numbers = [number for each in known if (number := _number(each)) is not None]
    # A part of a time, as 14:30 of 2026-01-01T14:30:10, counts as given.
    times = [each for each in known if ":" in each]
    return [
        each
        for each in figures_of(answer)
        if each not in known and not any(each in time for time in times) and not _is_one_of(each, numbers)
    ]


def unverified_numbers_of(task: Task) -> list[str]:
    """Return the unsupported numbers in the response of an analysis task; empty for other workflows and incomplete tasks."""
    given = task.parameters or {}
    if task.result is None or (given.get("about") or {}).get("workflow") != SYSTEM_ANALYSIS:
        return []
    return unverified_numbers(
        task.result.output.get("text") or "", "\n".join(message["content"] for message in given.get("messages") or [])
    )


def _is_one_of(figure: str, numbers: list[float]) -> bool:
    number, places = _number(figure), len(figure.partition(".")[2])
    return number is not None and any(number == round(each, places) for each in numbers)


def _number(figure: str) -> float | None:
    try:
        return float(figure)
    except ValueError:
        return None
