"""The last cell of this kernel that raised. It is loaded with the extension, so it imports little."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

from IPython.core.error import UsageError

from openruntime_jupyter.errors import TaskError

LONGEST = 8_000
"""Characters of a traceback that are kept: its end, which says most."""
OURS = ("%openruntime fix", "%%openruntime ai", "%openruntime ai")
"""Cells whose own errors nobody wants mended."""


@dataclass(frozen=True)
class Failed:
    """A cell that raised: its source, and the traceback as text."""

    source: str
    traceback: str


class LastError:
    """Remembers the last cell that raised; `heard` is called after each cell."""

    def __init__(self) -> None:
        self.failed: Failed | None = None

    def heard(self, result: Any) -> None:
        """`result` is IPython's, of a cell that ended."""
        error = result.error_in_exec or result.error_before_exec
        source = str(getattr(result.info, "raw_cell", "") or "")
        if isinstance(error, Exception) and not isinstance(error, UsageError) and not source.lstrip().startswith(OURS):
            self.failed = Failed(source, told(error))


def told(error: BaseException) -> str:
    """The traceback without IPython's own frames, and without ours around a task that failed elsewhere."""
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
"""Of this kernel."""
