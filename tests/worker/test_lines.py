from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

CODE = (
    "import sys\n"
    "from openruntime_jupyter.worker.stdio import write_whole_lines\n"
    "write_whole_lines()\n"
    "print('a', 1, 'line')\n"
    "print('an', 2, 'error', file=sys.stderr)\n"
    "print('no end', end='')\n"
)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_printed_line_is_one_write_for_any_buffering(unbuffered: str) -> None:
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with reader, writer:
        reader.settimeout(60)
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        end = writer.fileno()
        subprocess.run([sys.executable, "-c", CODE], stdout=end, stderr=end, env=environment, check=True, timeout=60)
        assert [reader.recv(100) for _ in range(3)] == [b"a 1 line\n", b"an 2 error\n", b"no end"]
