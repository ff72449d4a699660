"""Which task a thread belongs to, so that what one prints that its task has left behind does not stand in the next task's output.

Python tells a thread nothing of who started it: here it inherits the task of that thread, and a pool's has that of whoever handed in
what it does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

MAIN = threading.get_ident()
"""The thread that runs tasks: it imports this first."""
POOL = "concurrent.futures.thread"
OTHER_POOL = "multiprocessing.pool"
"""Whose threads belong to no task: who hands in their work can't be told."""
MARK = "_openruntime_turn"


class Turns:
    """Counts the tasks of this worker. `None` is the turn of a thread that belongs to no task."""

    def __init__(self) -> None:
        self._turn = 0
        self._runs = False
        self._printing: set[threading.Thread] = set()
        # Held while a thread writes, so that nothing of an ended task's is on its way. Reentrant: a signal handler may print too.
        self.speaking = threading.RLock()

    def begin(self) -> None:
        """A task begins."""
        self._turn += 1
        self._runs = True

    def end(self) -> list[str]:
        """It is over: what its threads still print reaches nobody. Returns the names of those that have printed, and live."""
        with self.speaking:
            self._runs = False
            printing = [each for each in self._printing if _module(each) != POOL]  # which may only wait for work
            left = [each.name for each in printing if each.is_alive() and _mark(each) == self._turn]
            self._printing.clear()
            return left

    def belongs(self) -> bool:
        """Whether what this thread does is the running task's, or nobody's."""
        if threading.get_ident() == MAIN:
            return True
        mark = _mark(threading.current_thread())
        return mark is None or (self._runs and mark == self._turn)

    def heard(self) -> bool:
        """`belongs`, for one that is `speaking` and wants to print."""
        self._printing.add(threading.current_thread())
        return self.belongs()

    def mine(self) -> int | None:
        """The turn that this thread belongs to."""
        return self._turn if threading.get_ident() == MAIN else _mark(threading.current_thread())

    def forked(self) -> None:
        """In a child process the threads that may have been speaking are gone."""
        self.speaking = threading.RLock()


def _mark(thread: threading.Thread) -> int | None:
    found: int | None = vars(thread).get(MARK)
    return found


turns = Turns()


def follow() -> None:
    """From now on, see which task each thread belongs to."""
    start = threading.Thread.start

    def starting(self: threading.Thread) -> None:
        module = _module(self)
        if module == POOL:  # whose import is left to those who need it
            _follow_pools()
        if module != OTHER_POOL:
            vars(self)[MARK] = turns.mine()
        start(self)

    threading.Thread.start = starting  # type: ignore[method-assign]
    os.register_at_fork(after_in_child=turns.forked)


@cache
def _follow_pools() -> None:
    """The piece of work that a pool's first thread is started for has the task of that thread, those that come after it their own."""
    from concurrent.futures import ThreadPoolExecutor

    submit = ThreadPoolExecutor.submit

    def submitting(self: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return submit(self, _work, turns.mine(), function, *args, **kwargs)

    ThreadPoolExecutor.submit = submitting  # type: ignore[method-assign, assignment]


def _module(thread: threading.Thread) -> str | None:
    """Where the function of a thread comes from."""
    found: str | None = getattr(getattr(thread, "_target", None), "__module__", None)
    return found


def _work(turn: int | None, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    thread = vars(threading.current_thread())
    before, thread[MARK] = thread.get(MARK), turn
    try:
        return function(*args, **kwargs)
    finally:
        thread[MARK] = before
