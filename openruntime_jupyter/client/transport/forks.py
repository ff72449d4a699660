"""Reset of client state in a forked child: new locks, no threads or connections of the parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """Object with locks, threads or connections."""

    def after_fork(self) -> None:
        """Reset the state in a forked child.

        The child has only the forking thread. A lock may be held by a thread that does not exist in the child, and writing to or
        closing a socket would reach the parent's peer. So locks are replaced and connections dropped without closing.
        """


_all: weakref.WeakSet[Forkable] = weakref.WeakSet()


def reset_in_child(thing: Forkable) -> None:
    """Call `thing.after_fork()` in each forked child while `thing` exists."""
    _all.add(thing)


def _reset() -> None:
    for thing in tuple(_all):
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_reset)
