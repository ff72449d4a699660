"""Summary of a task's parameters for people: large values by kind and size, and no environment variables."""

from __future__ import annotations

from collections.abc import Mapping
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
