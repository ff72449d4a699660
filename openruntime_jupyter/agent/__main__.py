"""`python -m openruntime_jupyter.agent -`: serves one runtime over standard input and output, for example as a command of `ssh`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys

from openruntime_jupyter.agent.arrays import hand_over
from openruntime_jupyter.agent.session import serve
from openruntime_jupyter.engines.hosts.link import PipeStream, pipe_stream
from openruntime_jupyter.environment import default_data_dir

USAGE = """usage: python -m openruntime_jupyter.agent -
       python -m openruntime_jupyter.agent --arrays FOLDER

Serves a runtime over standard input and output until they are closed. With --arrays they carry the arrays of the agent with that folder.
"""


async def open_standard_streams() -> PipeStream:
    """Return the byte stream over standard input and output. What else is printed goes to standard error from now on."""
    received, sent = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return await pipe_stream(received, sent)


async def main() -> None:
    """Serve until the connection ends or a signal asks to end."""
    serving = asyncio.ensure_future(serve(await open_standard_streams(), default_data_dir(), dict(os.environ), listen=True))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    if sys.argv[1:] == ["-"]:
        asyncio.run(main())
    elif len(sys.argv) == 3 and sys.argv[1] == "--arrays":
        try:
            hand_over(sys.argv[2])
        except OSError as problem:
            sys.exit(f"No agent serves {sys.argv[2]}: {problem.strerror}")
    else:
        sys.exit(USAGE)
