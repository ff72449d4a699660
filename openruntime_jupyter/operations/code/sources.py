"""The lines of a caller's functions, so that a traceback in a worker shows them where their file is the caller's alone, as a cell is."""

from __future__ import annotations

import linecache
from collections.abc import Iterable

from pydantic import Field

from openruntime_jupyter.operations.base import Parameters

_shown: set[str] = set()


class Source(Parameters):
    """Some lines of a file."""

    file: str = Field("", description="What tracebacks call the file.", max_length=4096)
    first: int = Field(1, description="The number of the first of the lines.", ge=1, le=1_000_000)
    text: str = Field("", description="The lines.")


def show(sources: Iterable[Source]) -> None:
    """Have tracebacks show these lines until the next call, and those of the one before no more."""
    while _shown:
        linecache.cache.pop(_shown.pop(), None)
    for source in sources:
        if source.file not in _shown and linecache.getlines(source.file):
            continue  # it is a file here too
        known = linecache.getlines(source.file)
        lines = [f"{line}\n" for line in source.text.removesuffix("\n").split("\n")]
        before, after = known[: source.first - 1], known[source.first - 1 + len(lines) :]
        full = [*before, *["\n"] * (source.first - 1 - len(before)), *lines, *after]
        # Without a time of change it is not looked for on the disk.
        linecache.cache[source.file] = (sum(map(len, full)), None, full, source.file)
        _shown.add(source.file)
