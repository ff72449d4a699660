"""Agent that sends prepared bytes after the greeting of a runtime. It starts in some milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openruntime_jupyter import __version__
from openruntime_jupyter.engines.hosts.link import HEADER
from tests.pipe_finder import PipeWay

DEVICE: dict[str, Any] = {"type": "cpu", "index": 0, "name": "CPU", "memory": 1 << 30, "capabilities": [], "mlx_version": "0.32"}
WELCOME: dict[str, Any] = {
    "type": "Welcome",
    "version": __version__,
    "python": "3.11.7",
    "platform": "Linux",
    "boot_id": "1",
    "cores": 2,
    "memory": 1 << 30,
    "devices": [DEVICE],
    "folder": "/nowhere",
}

SPEAKS = """
import os, sys
os.read(0, 1 << 16)
sys.stdout.buffer.write(bytes.fromhex(sys.argv[1]))
sys.stdout.flush()
if sys.argv[2] == 'stay':
    while os.read(0, 1 << 16): pass
"""


def frame(*messages: dict[str, Any]) -> bytes:
    """Return the frames of messages."""
    return b"".join(HEADER.pack(len(body), 0) + body for body in (json.dumps(each).encode() for each in messages))


def scripted_way(name: str, folder: Path, sent: bytes, *, stay: bool = True) -> PipeWay:
    """Return the way to an agent that sends these bytes, and then ends or stays until the connection does."""
    return PipeWay(name, folder, arguments=("-I", "-S", "-c", SPEAKS, sent.hex(), "stay" if stay else "end"))
