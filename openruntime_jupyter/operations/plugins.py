"""Operations of other packages: found by their entry points, looked at before they are offered, left out where they don't fit."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from threading import RLock
from typing import TYPE_CHECKING

from openruntime_jupyter.operations.base import ModelParameters, Operation, Parameters

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "openruntime.operations"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
"""What an operation may be called: one word on the line of a magic, in a URL and in a label of a metric."""

SETTLED = 3_000_000_000
"""Nanoseconds without a change after which an import path is taken to be complete."""

log = logging.getLogger(__name__)

Places = tuple[tuple[str, int], ...]


class Plugins:
    """What the entry points of this interpreter bring. `taken(name)` tells whether a name is no longer free.

    They are looked for again once a folder of the import path has changed, so that what is installed while a server runs is found
    without a restart. A module that was imported once stays as it is, as in any Python process. Safe to use from several threads.
    """

    def __init__(self, taken: Callable[[str], bool]) -> None:
        self._taken = taken
        self._lock = RLock()
        self._seen: Places | None = None
        self._looked = False
        self._found: dict[str, Operation] = {}
        self._left_out: dict[str, str] = {}

    @property
    def found(self) -> dict[str, Operation]:
        """Every operation that fits, by name, as of now."""
        with self._lock:
            places = _places()
            if places != self._seen:
                # An installer that is still at work writes into folders that are there by now: look once more when it has ended.
                newest = max((changed for _, changed in places), default=0)
                self._seen = places if time.time_ns() - newest > SETTLED else None
                self._looked = True
                from importlib.metadata import entry_points  # a fifth of what a worker's start imports, for what few need

                importlib.invalidate_caches()
                self._look(entry_points(group=GROUP))
            return self._found

    def known(self, name: str) -> Operation | None:
        """The operation of that name; looks for it where it was not there the last time."""
        return self._found.get(name) or self.found.get(name)

    @property
    def left_out(self) -> dict[str, str]:
        """Why an entry point is not offered, in a sentence, by the entry point's name; as of the last look."""
        if not self._looked:
            self.found  # noqa: B018 - nobody has looked yet
        return self._left_out

    def _look(self, points: Iterable[EntryPoint]) -> None:
        found: dict[str, Operation] = {}
        left_out: dict[str, str] = {}
        for point in points:
            try:
                operation = _load(point)
                if self._taken(operation.name) or found.get(operation.name, operation) is not operation:
                    raise ValueError(f"the name {operation.name!r} is taken")
            except (Exception, SystemExit) as problem:  # somebody else's package must not keep ours from starting
                left_out[point.name] = f"The operation {point.name} of {_whose(point)} was left out: {type(problem).__name__}: {problem}"
            else:
                found[operation.name] = operation
        # What a worker logs would stand in the output of whatever task it runs; its runtime has said the same.
        level = logging.DEBUG if "OPENRUNTIME_WORKER" in os.environ else logging.WARNING
        for name, sentence in left_out.items():
            if self._left_out.get(name) != sentence:
                log.log(level, "%s", sentence)
        self._found, self._left_out = found, left_out


def _load(point: EntryPoint) -> Operation:
    operation = point.load()
    if not isinstance(operation, Operation):
        raise TypeError(f"{point.value} is {type(operation).__name__}, no Operation")
    if not (isinstance(operation.name, str) and NAME.fullmatch(operation.name)):
        raise ValueError(f"{operation.name!r} is no name: letters, digits, '_', '.' and '-', and a letter or '_' first")
    if not (isinstance(operation.params, type) and issubclass(operation.params, Parameters)):
        raise TypeError(f"params is {operation.params!r}, no subclass of openruntime_jupyter.operations.Parameters")
    if not isinstance(operation.summary, str):
        raise TypeError(f"summary is {operation.summary!r}, no text")
    for flag in ("needs_execute", "inline", "resident", "shared"):
        if not isinstance(getattr(operation, flag), bool):
            raise TypeError(f"{flag} is {getattr(operation, flag)!r}, neither True nor False")
    if operation.inline:
        raise ValueError("inline is for the runtime's own prompts: nothing would run it")
    if operation.resident and not issubclass(operation.params, ModelParameters):
        raise TypeError(f"resident needs params that are a subclass of ModelParameters, and {operation.params.__name__} is none")
    hooks = {"run": operation.run, "memory": operation.memory, "seconds": operation.seconds}
    wrong = [name for name, hook in hooks.items() if not callable(hook)]
    if wrong or not (operation.warm is None or callable(operation.warm)):
        raise TypeError(f"{(*wrong, 'warm')[0]} is no function")
    operation.params.model_json_schema()  # GET /operations shows it, so it must be there to show
    return operation


def _whose(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version} ({point.value})" if point.dist is not None else point.value


def _places() -> Places:
    places = []
    for folder in dict.fromkeys(sys.path):
        try:
            places.append((folder, os.stat(folder or ".").st_mtime_ns))
        except OSError:
            places.append((folder, 0))  # not there yet
    return tuple(places)
