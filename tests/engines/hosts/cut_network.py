"""Program for a separate network namespace: it cuts the network between a runtime and an agent while a task runs there.

`python -m tests.engines.hosts.cut_network FOLDER` prints JSON with the times of the loss and of what the task wrote.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import struct
import sys
import time
from pathlib import Path

from openruntime_jupyter.engines.hosts.finder import HostsSetup
from openruntime_jupyter.engines.hosts.link import ByteStream, PipeStream
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtimes import busy, ended, runtime_in, until

AGENT = """
import asyncio, os, sys
from pathlib import Path
from openruntime_jupyter.agent.session import serve
from openruntime_jupyter.engines.hosts.link import PipeStream
async def one(reader, writer):
    await serve(PipeStream(reader, writer), Path(os.environ["OPENRUNTIME_DATA_DIR"]), dict(os.environ))
async def main():
    server = await asyncio.start_server(one, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""

WRITES = """
import time
file = open({file!r}, 'a', 1)
print('begin', time.time(), file=file)
print('in', flush=True)
for _ in range(120):
    print('runs', time.time(), file=file)
    time.sleep(0.02)
print('end', time.time(), file=file)
"""

SILENCE, LOST = 1.0, 1.5


class TcpWay(PipeWay):
    """Way to an agent that listens on a port of the loopback interface."""

    async def connect(self) -> ByteStream:
        """Start the agent and connect to it."""
        if not self.agents:
            await super().connect()
        assert self.agent.stdout is not None
        port = int(await self.agent.stdout.readline())
        return PipeStream(*await asyncio.open_connection("127.0.0.1", port))


def switch_loopback(up: bool) -> None:
    """Switch the loopback interface of this network namespace on or off."""
    get_flags, set_flags, flag = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(control, get_flags, request), 16)
        fcntl.ioctl(control, set_flags, struct.pack("16sh14x", b"lo", flags | flag if up else flags & ~flag))


async def main(folder: Path) -> None:
    """Cut the network under a task with a retry, and report when what ran."""
    switch_loopback(True)
    file = folder / "file"
    way = TcpWay("far", folder / "far", arguments=("-c", AGENT))
    async with runtime_in(folder / "near", hosts=HostsSetup(PipeFinder(way), True, SILENCE, LOST)) as runtime:
        await until(lambda: len(runtime.lanes.devices) == 2, 30, "both lanes")
        blocker = await busy(runtime, device_preference="device_0")
        task_id = await busy(runtime, WRITES.format(file=os.fspath(file)), retries=1)
        switch_loopback(False)
        cut = time.time()
        await until(lambda: runtime.hosts()[0].state == "lost", 20, "the loss")
        lost = time.time()
        await runtime.cancel(blocker)
        task = await ended(runtime, task_id)
        lines = [line.split() for line in file.read_text().splitlines()]
        written = [(what, float(when)) for what, when in lines]
        way.agent.kill()
        await way.agent.wait()
    sys.stdout.write(json.dumps({"cut": cut, "lost": lost, "written": written, "status": task.status, "device": task.device_used}))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
