"""Agent without workers, whose jobs write `TOKENS` words a second until they are halted: `python -m benchmarks.writers`.

Relay, messages and link are those of an agent, so that a runtime reads what as many models on a host would write.
"""

from __future__ import annotations

import asyncio

from openruntime_jupyter import __version__
from openruntime_jupyter.agent.__main__ import open_standard_streams
from openruntime_jupyter.agent.relay import Relay
from openruntime_jupyter.engines.hosts.link import Link, LinkClosed
from openruntime_jupyter.engines.hosts.messages import Ended, Halt, Message, Ping, Pong, Run, Welcome, decode, encode
from openruntime_jupyter.engines.protocol import DeviceReport, Measurements, Stage, Stopped
from openruntime_jupyter.schemas.values import ResponsePiece

TOKENS = 20
STEPS = 10
"""Shares of the jobs that write one after the other, because models don't write at once."""


async def _write(relays: dict[int, Relay]) -> None:
    loop, step = asyncio.get_running_loop(), 0
    due = loop.time()
    while True:
        for number, relay in relays.items():
            if number % STEPS == step:
                relay.generated(ResponsePiece("token "))
        step = (step + 1) % STEPS
        due += 1 / (TOKENS * STEPS)
        await asyncio.sleep(max(0.0, due - loop.time()))


async def main() -> None:
    """Serve one runtime until it closes the connection."""
    link = Link(await open_standard_streams())
    relays: dict[int, Relay] = {}

    def send(message: Message) -> None:
        link.send(*encode(message))

    await link.receive()
    device = DeviceReport("cpu", 0, "CPU", None, (), "0")
    send(Welcome(__version__, "3.11.0", "Linux", "-", 1, 1 << 30, (device,), "/"))
    writing = asyncio.ensure_future(_write(relays))
    try:
        while True:
            message = decode(*await link.receive())
            if isinstance(message, Run):
                relays[message.number] = Relay(message.number, send, 1_000_000)
            elif isinstance(message, Halt):
                relays.pop(message.number).flush()
                send(Ended(message.number, Stopped(message.reason, Stage.INTERRUPT, Measurements())))
            elif isinstance(message, Ping):
                send(Pong())
    except LinkClosed:
        writing.cancel()
        await link.close()


if __name__ == "__main__":
    asyncio.run(main())
