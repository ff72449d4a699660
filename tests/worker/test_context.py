"""What a task says reaches its watchers, and nobody once it has ended."""

from __future__ import annotations

import threading
from typing import Any

from openruntime_jupyter.worker.context import TaskContext


def test_a_task_does_not_end_while_a_thread_of_its_is_still_saying_something() -> None:
    told: list[str] = []
    entered, go_on = threading.Event(), threading.Event()

    def send(kind: str, body: dict[str, Any]) -> None:
        entered.set()
        assert go_on.wait(10)
        told.append(kind)

    context = TaskContext(send=send)
    speaker = threading.Thread(target=context.display, args=({"text/plain": "late"},))
    speaker.start()
    assert entered.wait(10)
    end = threading.Thread(target=lambda: (context.end(), told.append("ended")))
    end.start()
    end.join(0.2)
    assert end.is_alive(), "it ended although a message was on its way"
    go_on.set()
    end.join(10)
    speaker.join(10)
    assert told == ["display", "ended"]


def test_an_ended_task_says_nothing_more() -> None:
    told: list[str] = []
    context = TaskContext(send=lambda kind, body: told.append(kind))
    context.progress(1, 2)
    context.end()
    context.progress(2, 2)
    context.flush_progress()
    context.token("more")
    context.display({"text/plain": "more"})
    assert told == ["progress"]


def test_a_signal_handler_may_speak_while_its_task_speaks() -> None:
    told: list[str] = []

    def send(kind: str, body: dict[str, Any]) -> None:
        told.append(kind)
        if kind == "display":
            context.token("from a handler that came in between")

    context = TaskContext(send=send)
    context.display({"text/plain": "outer"})
    assert told == ["display", "token"]
