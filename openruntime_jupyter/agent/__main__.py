"""`python -m openruntime_jupyter.agent -`: serves one runtime over standard input and output, for example as a command of `ssh`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys

from openruntime_jupyter.agent.session import serve
from openruntime_jupyter.engines.hosts.link import PipeStream
from openruntime_jupyter.environment import default_data_dir

USAGE = "usage: python -m openruntime_jupyter.agent -\n\nServes a runtime over standard input and output until they are closed.\n"


async def open_standard_streams() -> PipeStream:
    """Return the byte stream over standard input and output. What else is printed goes to standard error from now on."""
    loop = asyncio.get_running_loop()
    received, sent = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(received, "rb", 0))
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), os.fdopen(sent, "wb", 0)
    )
    return PipeStream(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


async def main() -> None:
    """Serve until the connection ends or a signal asks to end."""
    serving = asyncio.ensure_future(serve(await open_standard_streams(), default_data_dir(), dict(os.environ)))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


if __name__ == "__main__":
    if sys.argv[1:] != ["-"]:
        sys.exit(USAGE)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    asyncio.run(main())
