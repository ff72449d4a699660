"""What a worker does for `map`: a function on each item of a chunk, where an item that fails spoils no other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from openruntime_jupyter.worker.context import progress
from openruntime_jupyter.worker.tracebacks import describe

Outcome = tuple[bool, Any]
"""Whether the item worked, and its value; else what `describe` says of the exception."""


def apply(function: Callable[[Any], Any], items: Sequence[Any], first: int) -> list[Outcome]:
    """`function(item)` for each of `items`, in order; `first` is the place of the first among all."""
    outcomes: list[Outcome] = []
    for index, item in enumerate(items):
        try:
            outcomes.append((True, function(item)))
        except (Exception, SystemExit) as problem:  # the caller's function may raise anything, but what stops the task stops it
            told = describe(problem)
            print(f"Item {first + index} failed:\n{told['traceback']}", file=sys.stderr, flush=True)  # noqa: T201 - it is the task's output
            outcomes.append((False, told))
        progress(index + 1, len(items))
    return outcomes
