"""`call`: one call of a function that the caller pickled by value."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterable
from typing import Any

from pydantic import Field

from openruntime_jupyter.operations.base import ArrayRef, Operation, Parameters, Result, World
from openruntime_jupyter.operations.code.values import Packed, Pickled, dump, load, summary
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.python import shell

_shown: set[str] = set()
"""Files whose lines `show` has replaced."""


class Source(Parameters):
    """Lines of a file."""

    file: str = Field("", description="File name in tracebacks.", max_length=4096)
    first: int = Field(1, description="Number of the first line.", ge=1, le=1_000_000)
    text: str = Field("", description="The lines.")


class Params(Parameters):
    """A function and its arguments."""

    pickled: Pickled = Field(
        "",
        description="base64 of `cloudpickle.dumps((function, args, kwargs))`, or an array of its bytes; empty: no call, the value is None.",
    )
    arrays: list[ArrayRef] = Field(default_factory=list, description="The out-of-band buffers of `pickled`, in order.", max_length=1000)
    sources: list[Source] = Field(default_factory=list, description="Lines of the functions, for tracebacks.", max_length=1000)
    function: str | None = Field(None, description="Name of the function, for display.", max_length=200)
    location: str | None = Field(None, description="File and line of the function, for display.", max_length=4096)
    world: World | None = Field(None, description="Interpreter, folder, import path and variables of the caller; null for the server's.")
    isolate: bool = Field(False, description="Has no effect: each task with the caller's code runs in a new process.")
    burst: str | None = Field(
        None, description="Tasks of one owner with the same value may run one after the other in one process.", max_length=100
    )


def run(params: Params, context: TaskContext) -> Result:
    """Call the function; return its value as payload, and its type and a bounded repr as `output`."""
    show(params.sources)
    try:
        value = _call(params, context) if params.pickled else None
    finally:
        if context.session:
            shell().end_task()
    if isinstance(value, Packed):
        return value
    return Result(summary(value), *dump(value, "The function's result", context))


def _call(params: Params, context: TaskContext) -> Any:
    if context.session:
        shell().prepare_call(context)
    function, arguments, keywords = load(params.pickled, params.arrays, "The function or an argument", context)
    if context.session:
        for each in (function, *arguments):  # an executor's `map` passes the caller's function as an argument
            offer_variables(each)
    context.code_began = True
    return function(*arguments, **keywords)


def show(sources: Iterable[Source]) -> None:
    """Replace the lines shown in tracebacks by those of `sources`."""
    while _shown:
        linecache.cache.pop(_shown.pop(), None)
    for source in sources:
        if source.file not in _shown and linecache.getlines(source.file):
            continue  # the file exists here too
        known = linecache.getlines(source.file)
        lines = [f"{line}\n" for line in source.text.removesuffix("\n").split("\n")]
        before, after = known[: source.first - 1], known[source.first - 1 + len(lines) :]
        full = [*before, *["\n"] * (source.first - 1 - len(before)), *lines, *after]
        # Entries without a modification time are not checked against the disk.
        linecache.cache[source.file] = (sum(map(len, full)), None, full, source.file)
        _shown.add(source.file)


def offer_variables(function: Any) -> None:
    """Add variables of the session to the globals of a function pickled by value, unless its notebook sets them."""
    space = getattr(function, "__globals__", None)
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if space is not None and space is not getattr(module, "__dict__", None):
        for name, value in shell().user_ns.items():
            space.setdefault(name, value)


def warm() -> None:
    """Import what the first call needs."""
    import cloudpickle  # noqa: F401

    Params.model_validate({})


operation = Operation(
    name="call", summary="Call a Python function that was pickled by value.", params=Params, run=run, needs_execute=True, warm=warm
)
