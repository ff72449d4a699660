"""A task's parameters for people: a summary, and the text of a search. Neither has environment variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from pydantic_core import to_json

from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.schemas.arrays import ArrayReference
from openruntime_jupyter.schemas.tasks import Task

LONGEST_VALUE = 500
"""Maximum characters of a value as JSON; longer ones are described."""
LONGEST_CODE = 20_000
"""Maximum characters of code."""
MOST_ITEMS = 20
"""Maximum number of arrays, and of items of a dict, that are described one by one."""
WORLD = ("interpreter", "directory")
"""Fields of the caller's environment in a summary. Its variables may be secret, and its import path is long."""

LONGEST_TEXT = 10_000
"""Maximum characters of the text of a search."""
MOST_VALUES = 200
"""Maximum number of values in it."""
DEEPEST = 4
"""Maximum depth of nested values in it."""
NOT_SEARCHED = frozenset(("world", "pickled", "arrays", "isolate", "burst", "filename", "about"))
"""Parameters that say nothing about the work, or may be secret."""


def search_text(parameters: Mapping[str, Any] | None) -> str:
    """Return the text in which a search looks: code and sources, and other values as `name=value`, all with their case folded.

    It has no environment variables, pickles, array ids or long lists, so that tasks with the same work have the same text.
    """
    if not parameters:
        return ""
    given = {name: value for name, value in parameters.items() if name not in NOT_SEARCHED}
    text = "\n".join(islice(_values(given, DEEPEST), MOST_VALUES))[:LONGEST_TEXT].casefold()
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def contains(title: str, parameters: Mapping[str, Any] | None, search: str) -> bool:
    """Return whether the casefolded title, or the text of the parameters, contains `search`, ignoring case."""
    part = search.casefold()
    return part in title or part in search_text(parameters)


def _values(given: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, value in given.items():
        if isinstance(value, str):
            if len(value) <= LONGEST_VALUE or " " in value[:LONGEST_VALUE]:  # otherwise encoded data
                yield value[:LONGEST_TEXT] if name in ("code", "text") else f"{name}={value[:LONGEST_TEXT]}"
        elif isinstance(value, dict):
            if depth and not (len(value) == 1 and "array" in value):
                yield from _values(value, depth - 1)
        elif isinstance(value, list):
            yield from _items(name, value, depth)
        elif value is not None:
            yield f"{name}={value}"


def _items(name: str, items: list[Any], depth: int) -> Iterator[str]:
    if any(isinstance(each, (dict, list)) for each in items[:MOST_ITEMS]):
        for each in items[:MOST_ITEMS] if depth else ():
            yield from _values(each if isinstance(each, dict) else {name: each}, depth - 1)
    elif items and len(items) <= MOST_ITEMS:
        yield f"{name}={', '.join(str(each)[:LONGEST_VALUE] for each in items)}"


def summarized(task: Task) -> Task:
    """Return the task with the summary of its parameters."""
    if task.parameters is None:
        return task
    arrays = {each.id: each for each in task.inputs}
    return task.model_copy(update={"parameters": {name: _summary(name, value, arrays) for name, value in task.parameters.items()}})


def _summary(name: str, value: Any, arrays: Mapping[str, ArrayReference]) -> Any:
    if name == "world" and isinstance(value, dict):
        return {field: value[field] for field in WORLD if value.get(field) is not None}
    if name == "code" and isinstance(value, str):
        return _shortened(value, LONGEST_CODE)
    if name == "sources" and isinstance(value, list):
        return _shortened("\n".join(str(each.get("text", "")).rstrip() for each in value if isinstance(each, dict)), LONGEST_CODE)
    if name == "pickled" and value:
        size = len(value) * 3 // 4 if isinstance(value, str) else arrays[value["array"]].bytes if _is_known(value, arrays) else None
        return "pickle" if size is None else f"pickle of {gigabytes(size)}"
    return _described(value, arrays)


def _described(value: Any, arrays: Mapping[str, ArrayReference]) -> Any:
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("array"), str):
        return _array(value["array"], arrays)
    if isinstance(value, str):
        return _shortened(value, LONGEST_VALUE)
    if not isinstance(value, (dict, list)):
        return value
    items = value.values() if isinstance(value, dict) else value
    if len(value) <= MOST_ITEMS and any(isinstance(each, (dict, list, str)) for each in items):
        inner = {key: _described(each, arrays) for key, each in value.items()} if isinstance(value, dict) else None
        value = inner if inner is not None else [_described(each, arrays) for each in items]
    size = len(to_json(value, inf_nan_mode="constants"))
    if size <= LONGEST_VALUE * (MOST_ITEMS if isinstance(value, dict) else 1):
        return value
    return f"{'dict' if isinstance(value, dict) else 'list'} of {len(value):,} items, {gigabytes(size)} as JSON"


def _array(array_id: str, arrays: Mapping[str, ArrayReference]) -> str:
    if array_id not in arrays:
        return f"array {array_id}"
    known = arrays[array_id]
    shape = " by ".join(f"{side:,}" for side in known.shape) or "scalar"
    return f"array {array_id}: {known.dtype}, {shape}, {gigabytes(known.bytes)}"


def _is_known(value: Any, arrays: Mapping[str, ArrayReference]) -> bool:
    return isinstance(value, dict) and value.get("array") in arrays


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"
