"""Relay of output: a runtime shows the same as for a local task, from far fewer characters."""

from __future__ import annotations

import random
from typing import Any, Literal

import pytest

from openruntime_jupyter.agent.relay import Relay
from openruntime_jupyter.engines.hosts.messages import Displayed, Generated, Message, Printed
from openruntime_jupyter.runtime.tasks.entry import OutputBuffer
from openruntime_jupyter.schemas.values import ResponsePiece
from tests.runtimes import until

MOST = 10_000
STREAMS: tuple[Literal["stdout", "stderr"], ...] = ("stdout", "stderr")


def shown(buffer: OutputBuffer) -> list[tuple[str | None, str | None]]:
    buffer.finish()
    return [(item.name, item.text) for item in buffer.items]


@pytest.mark.parametrize("seed", range(20))
async def test_limited_output_is_the_same_as_unlimited(seed: int) -> None:
    choice = random.Random(seed)
    sent: list[Message] = []
    relay = Relay(1, sent.append, MOST)
    near, far = OutputBuffer(MOST), OutputBuffer(MOST)
    for number in range(choice.randint(1, 40)):
        text = f"{number} " * choice.choice([1, 50, 3_000, 40_000])
        stream = choice.choice(STREAMS)
        near.print(stream, text)
        relay.printed(stream, text)
        if choice.random() < 0.2:
            relay.flush()
    relay.flush()
    for message in sent:
        assert isinstance(message, Printed)
        far.print(message.stream, message.text, message.omitted)
    assert shown(far) == shown(near)


async def test_flood_is_limited_and_counted() -> None:
    sent: list[Message] = []
    relay = Relay(1, sent.append, MOST)
    for _ in range(100):
        relay.printed("stdout", "x" * 100_000)
    relay.flush()
    texts = [message for message in sent if isinstance(message, Printed)]
    assert sum(len(message.text) for message in texts) < 100_000
    assert sum(len(message.text) + message.omitted for message in texts) == 100 * 100_000


async def test_text_of_a_model_is_never_left_out() -> None:
    sent: list[Message] = []
    relay = Relay(1, sent.append, MOST)
    for _ in range(10):
        relay.generated(ResponsePiece("word " * 10_000))
    relay.flush()
    assert sum(len(message.text) for message in sent if isinstance(message, Generated)) == 500_000


async def test_first_text_is_sent_at_once_and_later_ones_together() -> None:
    sent: list[Message] = []
    relay = Relay(1, sent.append, MOST)
    relay.printed("stdout", "first\n")
    for number in range(5):
        relay.printed("stdout", f"{number}\n")
    assert sent == [Printed(1, "stdout", "first\n")]
    await until(lambda: len(sent) > 1, 5, "the later text")
    assert sent[1:] == [Printed(1, "stdout", "0\n1\n2\n3\n4\n")]


def plot(kind: str, text: str, display_id: str = "a") -> dict[str, Any]:
    return {"output_type": kind, "data": {"text/plain": text}, "metadata": {}, "display_id": display_id}


async def test_only_newest_update_of_a_display_is_sent() -> None:
    sent: list[Message] = []
    relay = Relay(1, sent.append, MOST)
    near, far = OutputBuffer(MOST), OutputBuffer(MOST)
    items = [
        plot("display_data", "0"),
        plot("display_data", "0", "b"),
        *(plot("update_display_data", f"{number}") for number in range(100)),
    ]
    for item in (*items, plot("update_display_data", "1", "b"), plot("display_data", "new", "c"), plot("update_display_data", "2", "b")):
        near.apply(item)
        relay.displayed(item)
    relay.flush()
    for message in sent:
        assert isinstance(message, Displayed)
        far.apply(message.item)
    assert [(item.display_id, item.data) for item in far.items] == [(item.display_id, item.data) for item in near.items]
    assert len(sent) <= 8
