"""Source lines of a caller's functions, for tracebacks in a worker that lacks the file (for example a cell)."""

from __future__ import annotations

import linecache
from collections.abc import Iterable

from pydantic import Field

from openruntime_jupyter.operations.base import Parameters

_shown: set[str] = set()


class Source(Parameters):
    """Lines of a file."""

    file: str = Field("", description="File name in tracebacks.", max_length=4096)
    first: int = Field(1, description="Number of the first line.", ge=1, le=1_000_000)
    text: str = Field("", description="The lines.")


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
