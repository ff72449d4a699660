"""What a worker does for `map`: a function on each item of a chunk, where an item that fails spoils no other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.operations._values import Packed, no_room, stuck, summary
from openruntime_jupyter.worker.context import TaskContext, current, progress
from openruntime_jupyter.worker.tracebacks import describe

Outcome = tuple[bool, Any]
"""Whether the item worked, and its value; else what `describe` says of the exception."""


def apply(function: Callable[[Any], Any], items: Sequence[Any], first: int) -> Packed:
    """`function(item)` for each of `items`, in order, as a list of `Outcome`; `first` is the place of the first among all."""
    outcomes: list[Outcome] = []
    for index, item in enumerate(items):
        try:
            outcomes.append((True, function(item)))
        except (Exception, SystemExit) as problem:  # the caller's function may raise anything, but what stops the task stops it
            outcomes.append(_failed(first + index, problem))
        progress(index + 1, len(items))
    context = current()
    assert context is not None
    payload, encoding = _pack(outcomes, first, context)
    return Packed(summary(outcomes), payload, encoding)


def _pack(outcomes: list[Outcome], first: int, context: TaskContext) -> tuple[bytes, str]:
    """All in one pickle; only where that fails each value is tried by itself, and those that can't travel become failures."""
    try:
        return context.pack(outcomes)
    except StorageUnavailable as problem:
        raise no_room(outcomes, "The results of a chunk", problem, context) from problem
    except Exception:  # pickling runs the values' own code, which may raise anything
        for index, (worked, value) in enumerate(outcomes):
            try:
                context.measure(value if worked else None)
            except Exception as problem:
                outcomes[index] = _failed(first + index, stuck(value, "The function's result", problem))
        return context.pack(outcomes)


def _failed(index: int, problem: BaseException) -> Outcome:
    told = describe(problem)
    print(f"Item {index} failed:\n{told['traceback']}", file=sys.stderr, flush=True)  # noqa: T201 - it is the task's output
    return False, told
