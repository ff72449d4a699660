"""Execution of a chunk of `map` in a worker; failed items do not affect the others."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from openruntime_jupyter.current_task import current, progress
from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.operations.base import ArrayRef
from openruntime_jupyter.operations.code.values import Packed, load, no_room, not_picklable, summary
from openruntime_jupyter.operations.context import PROGRESS_INTERVAL, TaskContext
from openruntime_jupyter.worker.runner import describe

Outcomes = tuple[list[Any], dict[int, Any]]
"""Values of a chunk, None for failed items, and descriptions of the failures by index among all items."""


def apply(function: str | dict[str, str], arrays: Sequence[str], items: Sequence[Any], first: int) -> Packed:
    """Call a function on each of `items`, in order, and pack the `Outcomes`.

    Parameters
    ----------
    function : call without arguments, pickled once for all chunks, as base64 or as a reference to an array of bytes
    arrays : ids of the out-of-band buffers of `function`
    first : index of the first item among all items
    """
    context = current()
    assert context is not None
    context.code_began = False  # not before the function is loaded
    source = function if isinstance(function, str) else ArrayRef(**function)
    call, *_ = load(source, [ArrayRef(array=each) for each in arrays], "The function", context)
    if context.session:
        from openruntime_jupyter.operations.call import offer_variables

        offer_variables(call)
    if len(items) > 1:
        context.claim_progress()  # not that of a progress bar within an item
    context.code_began = True
    values: list[Any] = []
    failures: dict[int, Any] = {}
    shown = time.monotonic()
    for index, item in enumerate(items):
        try:
            values.append(call(item))
        except (Exception, SystemExit) as problem:  # KeyboardInterrupt propagates and stops the task
            values.append(None)
            failures[first + index] = _failed(first + index, problem)
        # Calling `progress` for every item costs a fifth of the time of 10,000 small calls.
        if (now := time.monotonic()) - shown >= PROGRESS_INTERVAL:
            shown = now
            progress(index + 1, len(items))
    payload, encoding = _pack((values, failures), first, context)
    return Packed(_described(values, failures), payload, encoding)


def _described(values: list[Any], failures: dict[int, Any]) -> dict[str, Any]:
    """Return the task's output: the repr of the first values, and the numbers of values and failures."""
    return {"type": "list", "repr": summary(values[:7])["repr"], "items": len(values), "failed": len(failures)}


def _pack(outcomes: Outcomes, first: int, context: TaskContext) -> tuple[bytes, str]:
    """Pickle all values together; if that fails, test each value, and turn those that can't be pickled into failures."""
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
                failures[first + index] = _failed(first + index, not_picklable(value, "The function's result", problem))
        return context.pack(outcomes)


def _failed(index: int, problem: BaseException) -> dict[str, Any]:
    described = describe(problem, only_own=True)
    print(f"Item {index} failed:\n{described['traceback']}", file=sys.stderr, flush=True)  # noqa: T201 - output of the task
    return described
