"""Which lines of this process's code go with a function, so that a traceback in the worker can show them."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from types import CodeType
from typing import Any

MOST = 50_000
"""Characters of one function that go with it."""


def sources_of(codes: Iterable[CodeType], local: bool) -> list[dict[str, Any]]:
    """The lines of functions that travel by value, as `call` takes them; `local`: a file that is here is there too."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for code in codes:
        first, last = code.co_firstlineno, _last_line(code)
        known = spans.setdefault(code.co_filename, [])
        if not any(start <= first and last <= end for start, end in known):  # as a function within a function is
            known.append((first, last))
    return [
        {"file": file, "first": first, "text": text}
        for file, found in spans.items()
        if not (local and os.access(file, os.R_OK)) and (lines := linecache.getlines(file))
        for first, last in found
        if 0 < len(text := "".join(lines[first - 1 : last])) <= MOST
    ]


@lru_cache(maxsize=1000)
def _last_line(code: CodeType) -> int:
    if sys.version_info >= (3, 11):
        return max((end for _, end, _, _ in code.co_positions() if end), default=code.co_firstlineno)
    return max((line for _, _, line in code.co_lines() if line), default=code.co_firstlineno)
