"""What a worker does for `map`: a function on each item of a chunk, where an item that fails spoils no other."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from openruntime_jupyter.current_task import current, progress
from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.operations.arrays import ArrayRef
from openruntime_jupyter.operations.code.values import Packed, load, no_room, stuck, summary
from openruntime_jupyter.worker.context import PROGRESS_INTERVAL, TaskContext
from openruntime_jupyter.worker.tracebacks import describe

Outcomes = tuple[list[Any], dict[int, Any]]
"""The values of a chunk, None for an item that failed, and the descriptions of the failures by the index among all items."""


def apply(function: str | dict[str, str], arrays: Sequence[str], items: Sequence[Any], first: int) -> Packed:
    """Call a function on each of `items`, in order, and pack the `Outcomes`.

    `function` is a pickled call without arguments, as base64 or as the reference of an array of bytes, and `arrays` the ids of its
    out-of-band buffers: it is pickled once for all chunks. `first` is the index of the first item among all.
    """
    context = current()
    assert context is not None
    source = function if isinstance(function, str) else ArrayRef(**function)
    call, *_ = load(source, [ArrayRef(array=each) for each in arrays], "The function", context)
    if context.session:
        from openruntime_jupyter.operations.call import offer_variables

        offer_variables(call)
    values: list[Any] = []
    failures: dict[int, Any] = {}
    shown = time.monotonic()
    for index, item in enumerate(items):
        try:
            values.append(call(item))
        except (Exception, SystemExit) as problem:  # the caller's function may raise anything, but what stops the task stops it
            values.append(None)
            failures[first + index] = _failed(first + index, problem)
        # `progress` itself costs several times a small call: for 10,000 of them it was a fifth of the time.
        if (now := time.monotonic()) - shown >= PROGRESS_INTERVAL:
            shown = now
            progress(index + 1, len(items))
    payload, encoding = _pack((values, failures), first, context)
    return Packed(_described(values, failures), payload, encoding)


def _described(values: list[Any], failures: dict[int, Any]) -> dict[str, Any]:
    """Return the task's output: the repr of the first values, and how many there are."""
    return {"type": "list", "repr": summary(values[:7])["repr"], "items": len(values), "failed": len(failures)}


def _pack(outcomes: Outcomes, first: int, context: TaskContext) -> tuple[bytes, str]:
    """Pickle all in one; only where that fails each value is tried by itself, and those that can't be pickled become failures."""
    try:
        return context.pack(outcomes)
    except StorageUnavailable as problem:
        raise no_room(outcomes, "The results of a chunk", problem, context) from problem
    except Exception:  # pickling runs the values' own code, which may raise anything
        values, failures = outcomes
        for index, value in enumerate(values):
            try:
                context.measure(value)
            except Exception as problem:
                values[index] = None
                failures[first + index] = _failed(first + index, stuck(value, "The function's result", problem))
        return context.pack(outcomes)


def _failed(index: int, problem: BaseException) -> dict[str, Any]:
    described = describe(problem)
    print(f"Item {index} failed:\n{described['traceback']}", file=sys.stderr, flush=True)  # noqa: T201 - it is the task's output
    return described
