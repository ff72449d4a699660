from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from openruntime_jupyter.worker.control import InterruptGuard


@pytest.fixture
def guard() -> Iterator[InterruptGuard]:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield InterruptGuard()
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


def ask(guard: InterruptGuard, task_id: str) -> None:
    """Request an interrupt like the control thread, and wait for its signal."""
    thread = threading.Thread(target=guard.request, args=(task_id,))
    thread.start()
    thread.join()
    time.sleep(0)


def test_interrupt_is_raised_in_requested_task(guard: InterruptGuard) -> None:
    guard.enter("task_1")
    with pytest.raises(KeyboardInterrupt):
        ask(guard, "task_1")
    guard.leave()
    assert guard.delivered


def test_interrupt_is_not_raised_outside_requested_task(guard: InterruptGuard) -> None:
    guard.enter("task_2")
    ask(guard, "task_1")
    guard.leave()
    ask(guard, "task_2")
    signal.raise_signal(signal.SIGINT)
    guard.enter("task_3")
    signal.raise_signal(signal.SIGINT)
    guard.leave()
    assert not guard.delivered


def test_early_interrupt_is_raised_when_task_begins(guard: InterruptGuard) -> None:
    ask(guard, "task_1")
    with pytest.raises(KeyboardInterrupt):
        guard.enter("task_1")


def test_interrupt_is_delayed_while_frame_is_written(guard: InterruptGuard) -> None:
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


def test_interrupt_is_raised_only_once(guard: InterruptGuard) -> None:
    guard.enter("task_1")
    with pytest.raises(KeyboardInterrupt):
        ask(guard, "task_1")
    ask(guard, "task_1")
    signal.raise_signal(signal.SIGINT)
    guard.leave()


def test_signal_handlers_are_restored(guard: InterruptGuard) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    guard.install()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    guard.enter("task_1")
    with pytest.raises(KeyboardInterrupt):
        ask(guard, "task_1")
    guard.leave()
