"""What a task showed, shown again in the cell, in the order in which it came."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

from IPython.display import publish_display_data

from openruntime_jupyter.schemas.tasks import OutputItem


class Replay:
    """Writes a task's output to this process's own streams and displays, so that progress bars and pictures work as ever."""

    def __init__(self) -> None:
        self._last: TextIO | None = None

    def show(self, items: Iterable[OutputItem]) -> None:
        """Show `items` after what was shown before."""
        for item in items:
            if item.output_type == "stream":
                self._write(sys.stderr if item.name == "stderr" else sys.stdout, item.text or "")
            elif item.data:
                self.flush()
                publish_display_data(item.data, item.metadata or {})
        self.flush()

    def flush(self) -> None:
        """Send off what a stream still holds."""
        if self._last is not None:
            self._last.flush()

    def _write(self, stream: TextIO, text: str) -> None:
        if self._last is not stream:
            # Each stream is sent on its own: without this, what was written first could arrive second.
            self.flush()
            self._last = stream
        stream.write(text)
