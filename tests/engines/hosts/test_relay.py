"""Relay of output: a runtime shows the same as for a local task, from far fewer characters, and a slow link holds little memory."""

from __future__ import annotations

import random
from typing import Any, Literal

import pytest

from openruntime_jupyter.agent.relay import Relay
from openruntime_jupyter.engines.hosts.messages import Displayed, Generated, Message, Printed, decode, encode
from openruntime_jupyter.runtime.tasks.entry import OutputBuffer
from openruntime_jupyter.schemas.values import ResponsePiece, ToolCallPiece
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


def state(buffer: OutputBuffer) -> list[tuple[Any, ...]]:
    """Return the output with adjacent texts of one stream together, because readers split them at any time."""
    found: list[tuple[Any, ...]] = []
    buffer.finish()
    for item in buffer.items:
        if found and item.data is None and found[-1][:2] == (item.output_type, item.name):
            found[-1] = (item.output_type, item.name, found[-1][2] + (item.text or ""))
        elif item.data is None:
            found.append((item.output_type, item.name, item.text))
        else:
            found.append((item.output_type, item.display_id, item.data, item.metadata))
    return found


def random_output(choice: random.Random) -> dict[str, Any] | tuple[Literal["stdout", "stderr"], str]:
    """Return a text, or a display message; the sizes are around the limits."""
    kind = choice.choice(["text", "text", "display", "display", "update", "update", "update", "clear", "capture"])
    if kind == "text":
        return choice.choice(STREAMS), f"{choice.random()} " * choice.choice([1, 30, 600])
    if kind == "clear":
        return {"output_type": "clear_output", "wait": choice.random() < 0.7}
    if kind == "capture":
        return {"output_type": "capture", "region": choice.choice([None, None, "w"])}
    size = choice.choice([1, 1_000, 20_000, 50_000, 120_000])
    name = choice.choice(["a", "b", "c", "d"])
    return plot("update_display_data" if kind == "update" else "display_data", f"{choice.random()}" + "x" * size, name)


@pytest.mark.parametrize("seed", range(60))
async def test_any_output_is_the_same_as_that_of_a_local_task(seed: int) -> None:
    choice = random.Random(seed)
    sent: list[Message] = []
    slow = choice.random() < 0.5
    relay = Relay(1, sent.append, MOST, lambda: slow)
    near, far = OutputBuffer(MOST), OutputBuffer(MOST)
    for _ in range(choice.randint(1, 120)):
        output = random_output(choice)
        if isinstance(output, tuple):
            near.print(*output)
            relay.printed(*output)
        else:
            near.apply(output)
            relay.displayed(output)
        if choice.random() < 0.1:
            relay.flush()
    relay.flush()
    for message in sent:
        if isinstance(message, Printed):
            far.print(message.stream, message.text, message.omitted)
        else:
            assert isinstance(message, Displayed)
            far.apply(message.item)
    assert state(far) == state(near)
    assert far.truncated == near.truncated


async def test_displays_after_the_limit_are_not_sent() -> None:
    sent: list[Message] = []
    relay = Relay(1, sent.append, MOST)
    for number in range(1_000):
        relay.displayed(plot("display_data", "x" * 30_000, f"{number}"))
    assert sum(len(encode(message)[0]) for message in sent) < 11 * MOST
    assert len(sent) == 4, "three pictures within the limit of 100,000, and the size of the next one"
    relay.displayed({"output_type": "clear_output", "wait": False})
    relay.displayed(plot("display_data", "again"))
    assert len(sent) == 6


async def test_slow_link_collects_updates_and_text_in_little_memory() -> None:
    sent: list[Message] = []
    held: list[bool] = []
    full = True
    relay = Relay(1, sent.append, MOST, lambda: full, lambda: held.append(True))
    relay.displayed(plot("display_data", "0"))
    assert held == [True], "the task waits before its next display"
    for number in range(500):
        relay.displayed(plot("update_display_data", f"{number} " + "x" * 50_000))
        relay.printed("stdout" if number % 2 else "stderr", "y" * 1_000)
    assert len(sent) == 1
    full = False
    await until(lambda: len(sent) > 1, 5, "the rest")
    texts = [message for message in sent if isinstance(message, Printed)]
    assert sum(len(message.text) for message in texts) < 60_000
    assert sum(len(message.text) + message.omitted for message in texts) == 500_000
    (update,) = (message for message in sent[1:] if isinstance(message, Displayed))
    assert update.item["data"]["text/plain"].startswith("499 ")


async def test_reasoning_and_calls_of_a_model_are_joined_by_their_parts() -> None:
    sent: list[Message] = []
    relay = Relay(1, sent.append, MOST)
    relay.generated(ResponsePiece(reasoning="So"))
    sent.clear()
    for piece in (
        *(ResponsePiece(reasoning=" it"), ResponsePiece(reasoning=" is."), ResponsePiece("Look: "), ResponsePiece("here")),
        *(ResponsePiece(call=ToolCallPiece(0, id="a", name="add")), ResponsePiece(call=ToolCallPiece(0, "{"))),
        *(ResponsePiece(call=ToolCallPiece(0, "}")), ResponsePiece(call=ToolCallPiece(1, id="b", name="add"))),
    ):
        relay.generated(piece)
    relay.flush()
    assert [decode(*encode(message)) for message in sent] == [
        Generated(1, reasoning=" it is."),
        Generated(1, "Look: here"),
        Generated(1, call=ToolCallPiece(0, "{}", "a", "add")),
        Generated(1, call=ToolCallPiece(1, "", "b", "add")),
    ]
