"""Registry of the built-in operations and those of other packages.

A package adds an operation with an entry point of the group `openruntime.operations` whose value is an `Operation`. Invalid ones are
excluded.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import EntryPoint
from threading import RLock

from openruntime_jupyter.errors import UnknownOperation
from openruntime_jupyter.operations.base import ModelParameters, Operation, Parameters
from openruntime_jupyter.schemas.system import OperationInfo

log = logging.getLogger(__name__)

BUILT_IN = ("compute", "matrix_multiply", "vector_operations", "memory_bandwidth", "mlx_operation", "python", "call", "generate", "chat")
GROUP = "openruntime.operations"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
"""Valid names: usable as one word in the line of a magic, in a URL and in a metric label."""

SETTLED = 3_000_000_000
"""Nanoseconds without changes after which an import path counts as complete."""

FolderTimes = tuple[tuple[str, int], ...]
"""Folders and their modification times in nanoseconds."""


class Plugins:
    """Operations from the entry points of this interpreter; `taken(name)` returns whether a name is in use. Thread-safe.

    Entry points are searched again when a folder of the import path has changed, so that packages installed while a server runs are found
    without a restart. Modules that were imported already are not reloaded.
    """

    def __init__(self, taken: Callable[[str], bool]) -> None:
        self._taken = taken
        self._lock = RLock()
        self._seen: FolderTimes | None = None
        self._searched = False
        self._found: dict[str, Operation] = {}
        self._left_out: dict[str, str] = {}

    @property
    def found(self) -> dict[str, Operation]:
        """Return the current valid operations by name."""
        with self._lock:
            times = _folder_times()
            if times != self._seen:
                # A running installer may still write into these folders: search again when they have settled.
                newest = max((changed for _, changed in times), default=0)
                self._seen = times if time.time_ns() - newest > SETTLED else None
                self._searched = True
                importlib.invalidate_caches()
                self._search(importlib.metadata.entry_points(group=GROUP))
            return self._found

    def known(self, name: str) -> Operation | None:
        """Return the operation with that name, after another search if it was unknown."""
        return self._found.get(name) or self.found.get(name)

    @property
    def left_out(self) -> dict[str, str]:
        """Return the reasons for excluded entry points by name, as of the last search."""
        if not self._searched:
            self.found  # noqa: B018 - first search
        return self._left_out

    def _search(self, points: Iterable[EntryPoint]) -> None:
        found: dict[str, Operation] = {}
        left_out: dict[str, str] = {}
        for point in points:
            try:
                operation = _load(point)
                if self._taken(operation.name) or found.get(operation.name, operation) is not operation:
                    raise ValueError(f"the name {operation.name!r} is already in use")
            except (Exception, SystemExit) as problem:  # a broken package must not prevent the start
                left_out[point.name] = f"Operation {point.name} of {_origin(point)} is excluded: {type(problem).__name__}: {problem}"
            else:
                found[operation.name] = operation
        # The log of a worker would appear in the output of its task, and its runtime logs the same message.
        level = logging.DEBUG if "OPENRUNTIME_WORKER" in os.environ else logging.WARNING
        for name, message in left_out.items():
            if self._left_out.get(name) != message:
                log.log(level, "%s", message)
        self._found, self._left_out = found, left_out


def _load(point: EntryPoint) -> Operation:
    operation = point.load()
    if not isinstance(operation, Operation):
        raise TypeError(f"{point.value} is {type(operation).__name__}, not an Operation")
    if not (isinstance(operation.name, str) and NAME.fullmatch(operation.name)):
        raise ValueError(f"{operation.name!r} is not a valid name: use letters, digits, '_', '.' and '-', beginning with a letter or '_'")
    if not (isinstance(operation.params, type) and issubclass(operation.params, Parameters)):
        raise TypeError(f"params is {operation.params!r}, not a subclass of openruntime_jupyter.operations.Parameters")
    if not isinstance(operation.summary, str):
        raise TypeError(f"summary is {operation.summary!r}, not a str")
    for flag in ("needs_execute", "inline", "resident", "shared"):
        if not isinstance(getattr(operation, flag), bool):
            raise TypeError(f"{flag} is {getattr(operation, flag)!r}, not a bool")
    if operation.inline:
        raise ValueError("inline is reserved for built-in operations")
    if operation.resident and not issubclass(operation.params, ModelParameters):
        raise TypeError(f"resident requires params to be a subclass of ModelParameters, which {operation.params.__name__} is not")
    hooks = {"run": operation.run, "memory": operation.memory, "seconds": operation.seconds}
    wrong = [name for name, hook in hooks.items() if not callable(hook)]
    if wrong or not (operation.warm is None or callable(operation.warm)):
        raise TypeError(f"{(*wrong, 'warm')[0]} is not callable")
    operation.params.model_json_schema()  # GET /operations returns it, so it must not raise
    return operation


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version} ({point.value})" if point.dist is not None else point.value


def _folder_times() -> FolderTimes:
    times = []
    for folder in dict.fromkeys(sys.path):
        try:
            times.append((folder, os.stat(folder or ".").st_mtime_ns))
        except OSError:
            times.append((folder, 0))  # does not exist yet
    return tuple(times)


_plugins = Plugins(BUILT_IN.__contains__)


@cache
def _built_in(name: str) -> Operation:
    loaded: Operation = importlib.import_module(f"openruntime_jupyter.operations.{name}").operation
    return loaded


def operations() -> dict[str, Operation]:
    """Return all operations by name, built-in ones first. Others that fail to load are logged and listed by `left_out`."""
    return {**{name: _built_in(name) for name in BUILT_IN}, **_plugins.found}


def left_out() -> list[str]:
    """Return a message for each excluded entry point with its origin and the reason."""
    return list(_plugins.left_out.values())


def operation(name: str) -> Operation:
    """Return the operation with that name; raise `UnknownOperation` with the known names, or the reason for its exclusion."""
    if name in BUILT_IN:  # loads only that operation in a worker
        return _built_in(name)
    plugin = _plugins.known(name)
    if plugin is None:
        reason = _plugins.left_out.get(name)
        advice = reason or f"available: {', '.join(operations())}; packages with other operations must be installed for {sys.executable}"
        problem = f"unknown operation {name!r}; {advice}"
        raise UnknownOperation(f"operation: {problem}", [{"field": "operation", "problem": problem}])
    return plugin


def describe_operations() -> list[OperationInfo]:
    """Return every operation with the JSON schema of its parameters."""
    return [
        OperationInfo(
            name=kind.name, summary=kind.summary, needs_execute=kind.needs_execute, parameters_schema=kind.params.model_json_schema()
        )
        for kind in operations().values()
    ]
