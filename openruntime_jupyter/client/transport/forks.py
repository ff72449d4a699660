"""State of the client in a forked child: new locks, and nothing of the parent's threads and connections."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """An object with locks, threads or connections."""

    def after_fork(self) -> None:
        """Reset the state in a forked child.

        The child has the forking thread alone. A lock may be held by a thread that it lacks, and what it writes to a socket, or
        an orderly close of it, would reach the parent's peer. So locks are replaced and connections forgotten, not closed.
        """


_all: weakref.WeakSet[Forkable] = weakref.WeakSet()


def reset_in_child(thing: Forkable) -> None:
    """Have `thing.after_fork()` called in each forked child, as long as `thing` exists."""
    _all.add(thing)


def _reset() -> None:
    for thing in tuple(_all):
        thing.after_fork()


os.register_at_fork(after_in_child=_reset)
