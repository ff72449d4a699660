"""Messages of a task, which are dropped after its end."""

from __future__ import annotations

import threading
from typing import Any

from openruntime_jupyter.operations.context import TaskContext


def test_end_waits_for_message_of_thread() -> None:
    sent: list[str] = []
    entered, go_on = threading.Event(), threading.Event()

    def send(kind: str, body: dict[str, Any]) -> None:
        entered.set()
        assert go_on.wait(10)
        sent.append(kind)

    context = TaskContext(send=send)
    speaker = threading.Thread(target=context.display, args=({"text/plain": "late"},))
    speaker.start()
    assert entered.wait(10)
    end = threading.Thread(target=lambda: (context.end(), sent.append("ended")))
    end.start()
    end.join(0.2)
    assert end.is_alive(), "it ended although a message was on its way"
    go_on.set()
    end.join(10)
    speaker.join(10)
    assert sent == ["display", "ended"]


def test_ended_task_sends_no_messages() -> None:
    sent: list[str] = []
    context = TaskContext(send=lambda kind, body: sent.append(kind))
    context.progress(1, 2)
    context.end()
    context.progress(2, 2)
    context.flush_progress()
    context.token("more")
    context.display({"text/plain": "more"})
    assert sent == ["progress"]


def test_progress_bar_never_waits_for_a_message_that_is_being_sent() -> None:
    sent: list[dict[str, Any]] = []

    def send(kind: str, body: dict[str, Any]) -> None:
        if kind == "display":
            context.bar_progress(1, 3, "of a finalizer")
            other = threading.Thread(target=context.bar_progress, args=(2, 3, "of another thread"))
            other.start()
            other.join(10)
            assert not other.is_alive()
        sent.append(body)

    context = TaskContext(send=send)
    context.display({"text/plain": "outer"})
    assert len(sent) == 1
    context.flush_progress()
    assert sent[1:] == [{"n": 2, "total": 3, "message": "of another thread"}]


def test_signal_handler_may_send_during_send() -> None:
    sent: list[str] = []

    def send(kind: str, body: dict[str, Any]) -> None:
        sent.append(kind)
        if kind == "display":
            context.token("from a handler that came in between")

    context = TaskContext(send=send)
    context.display({"text/plain": "outer"})
    assert sent == ["display", "token"]
