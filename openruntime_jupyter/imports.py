"""Serialized imports on several threads, which never overlap with a fork."""

from __future__ import annotations

import os
import threading
from importlib import import_module
from types import ModuleType

PATIENCE = 10.0
"""Maximum seconds that a fork waits for an import on another thread."""

# An importing thread holds one interpreter lock for each module. A fork copies these locks, and the child never releases those of the
# parent's other threads, so the child's next import of that module would hang. A fork therefore waits until no import runs.
_lock = threading.RLock()
_held_by_fork = False


def load(module: str) -> ModuleType:
    """Import and return `module`.

    Other packages have import cycles, which fail if two threads enter them at different modules. This package therefore makes all
    imports on threads, and all lazy imports, through this function.
    """
    with _lock:
        return import_module(module)


def _before_fork() -> None:
    global _held_by_fork
    _held_by_fork = _lock.acquire(timeout=PATIENCE)


def _after_in_parent() -> None:
    global _held_by_fork
    if _held_by_fork:
        _held_by_fork = False
        _lock.release()


def _after_in_child() -> None:
    global _held_by_fork, _lock
    _held_by_fork, _lock = False, threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
