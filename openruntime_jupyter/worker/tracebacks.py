"""Descriptions of exceptions with tracebacks that start in the user's code."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

PACKAGE = Path(__file__).resolve().parent.parent
MACHINERY = (
    *(str(PACKAGE / name) for name in ("worker", "arrays", "local_models", "current_task.py")),
    *(str(PACKAGE / "operations" / name) for name in ("base.py", "call.py", "python.py", "code/shell.py")),
    "/IPython/core/",
)
MAX_CHARACTERS = 100_000
LONGEST_NAME = 500


def own_frame(tb: TracebackType) -> bool:
    """Return whether this frame belongs to the worker or IPython and not to the task."""
    name = tb.tb_frame.f_code.co_filename
    return any(part in name for part in MACHINERY)


def describe(error: BaseException) -> dict[str, str]:
    """Return `type`, `message` and `traceback` of `error`, without the frames above the task's code."""
    tb = error.__traceback__
    while tb is not None and own_frame(tb):
        tb = tb.tb_next
    try:
        lines = "".join(traceback.format_exception(type(error), error, tb))
        message = str(error)
    except Exception as problem:  # a task's exception may have a broken __str__
        lines, message = f"{type(error).__name__} (its __str__ failed: {problem!r})", ""
    if len(lines) > MAX_CHARACTERS:
        lines = f"{lines[: MAX_CHARACTERS // 2]}\n…\n{lines[-MAX_CHARACTERS // 2 :]}"
    return {"type": type(error).__qualname__[:LONGEST_NAME], "message": message[:10_000], "traceback": lines}
