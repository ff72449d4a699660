"""Replay of a task's output in the cell, in the original order."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

from IPython.display import publish_display_data

from openruntime_jupyter.schemas.tasks import OutputItem


class Replay:
    """Writer of a task's output to the kernel's streams and displays, so that progress bars and pictures work as usual."""

    def __init__(self) -> None:
        self._last: TextIO | None = None

    def show(self, items: Iterable[OutputItem]) -> None:
        """Show `items` after the earlier output."""
        for item in items:
            if item.output_type == "stream":
                self._write(sys.stderr if item.name == "stderr" else sys.stdout, item.text or "")
            elif item.data:
                self.flush()
                publish_display_data(item.data, item.metadata or {})
        self.flush()

    def flush(self) -> None:
        """Flush the stream used last."""
        if self._last is not None:
            self._last.flush()

    def _write(self, stream: TextIO, text: str) -> None:
        if self._last is not stream:
            # The streams are sent independently, so flush to preserve the order.
            self.flush()
            self._last = stream
        stream.write(text)
