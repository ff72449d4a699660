"""Errors that end a cell in one line: what happened stands above it, and none of it happened in these files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from openruntime_jupyter.errors import OpenRuntimeError

Error = TypeVar("Error", bound=BaseException)

RED, PLAIN = "\x1b[31m", "\x1b[0m"


def short(error: Error, line: str | None = None) -> Error:
    """`error`, which IPython then shows as `line` (default: its type and message) instead of a traceback.

    Its message stays whole for programs that read it, such as nbclient's.
    """
    said = line or f"{error}"
    # IPython asks the exception itself for its traceback, if it has this.
    setattr(error, "_render_traceback_", lambda: [f"{RED}{type(error).__name__}{PLAIN}: {said}"])  # noqa: B010  no exception declares it
    return error


@contextmanager
def shortened() -> Iterator[None]:
    """Errors of ours that come out of this block are shown without the way they took through our files."""
    try:
        yield
    except OpenRuntimeError as problem:
        if not hasattr(problem, "_render_traceback_"):
            short(problem)
        raise
