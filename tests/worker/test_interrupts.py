from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from openruntime_jupyter.worker.interrupts import InterruptGuard


@pytest.fixture
def guard() -> Iterator[InterruptGuard]:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield InterruptGuard()
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


def ask(guard: InterruptGuard, task_id: str) -> None:
    """Request an interrupt as the control thread does, and let its signal arrive."""
    thread = threading.Thread(target=guard.request, args=(task_id,))
    thread.start()
    thread.join()
    time.sleep(0)


def test_it_is_raised_in_the_task_that_it_names(guard: InterruptGuard) -> None:
    guard.enter("task_1")
    with pytest.raises(KeyboardInterrupt):
        ask(guard, "task_1")
    guard.leave()
    assert guard.delivered


def test_it_is_not_raised_in_another_task_nor_between_two(guard: InterruptGuard) -> None:
    guard.enter("task_2")
    ask(guard, "task_1")
    guard.leave()
    ask(guard, "task_2")
    signal.raise_signal(signal.SIGINT)
    guard.enter("task_3")
    signal.raise_signal(signal.SIGINT)
    guard.leave()
    assert not guard.delivered


def test_a_request_that_comes_before_its_task_begins_meets_it_at_the_beginning(guard: InterruptGuard) -> None:
    ask(guard, "task_1")
    with pytest.raises(KeyboardInterrupt):
        guard.enter("task_1")


def test_it_waits_while_a_frame_is_written_and_comes_right_after(guard: InterruptGuard) -> None:
    guard.enter("task_1")
    written: list[str] = []

    def write() -> None:
        with guard.shielded():
            ask(guard, "task_1")
            written.append("whole")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert written == ["whole"]
    guard.leave()


def test_it_comes_once_so_that_who_swallows_it_is_left_to_the_next_stage(guard: InterruptGuard) -> None:
    guard.enter("task_1")
    with pytest.raises(KeyboardInterrupt):
        ask(guard, "task_1")
    ask(guard, "task_1")
    signal.raise_signal(signal.SIGINT)
    guard.leave()


def test_what_a_task_did_to_the_signals_is_undone(guard: InterruptGuard) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    guard.install()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    guard.enter("task_1")
    with pytest.raises(KeyboardInterrupt):
        ask(guard, "task_1")
    guard.leave()
