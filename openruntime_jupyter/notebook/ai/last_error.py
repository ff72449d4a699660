"""The last cell of this kernel that raised. Loaded with the extension, so it imports little."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

from IPython.core.error import UsageError

from openruntime_jupyter.errors import TaskError

LONGEST = 8_000
"""Maximum length of a stored traceback, in characters. The end is kept."""
COMMANDS = ("fix", "ai", "result", "output", "wait", "retry", "again")
IGNORED = ("%%openruntime ai", *(f"%openruntime {name}" for name in COMMANDS))
"""Cells whose errors are ignored: those of prompts, and commands that show the error of another cell."""


@dataclass(frozen=True)
class Failed:
    """Source and traceback of a cell that raised."""

    source: str
    traceback: str


class LastError:
    """Storage for the last cell that raised."""

    def __init__(self) -> None:
        self.failed: Failed | None = None

    def record(self, result: Any) -> None:
        """Store the error of a finished cell. `result` is IPython's `ExecutionResult`."""
        error = result.error_in_exec or result.error_before_exec
        source = str(getattr(result.info, "raw_cell", "") or "")
        if isinstance(error, Exception) and not isinstance(error, UsageError) and not source.lstrip().startswith(IGNORED):
            self.failed = Failed(source, format_error(error))


def format_error(error: BaseException) -> str:
    """Return the traceback without IPython's frames, or for a failed task the error of the task alone."""
    if isinstance(error, TaskError):
        text = f"{type(error).__name__}: {error}"
    else:
        exception = traceback.TracebackException.from_exception(error)
        exception.stack = traceback.StackSummary.from_list(
            [frame for frame in exception.stack if "/IPython/" not in frame.filename.replace("\\", "/")]
        )
        text = "".join(exception.format())
    text = text.rstrip()
    return text if len(text) <= LONGEST else f"…{text[-LONGEST:]}"


last_failure = LastError()
"""The last error of this kernel."""
