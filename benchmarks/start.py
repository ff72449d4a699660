"""Additional start time and memory of Jupyter Server with the extension."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from benchmarks.rows import Row, median, within
from tests.support import JUPYTER, Home, free_port

ROUNDS = 7
PATIENCE = 60.0


def start(folder: Path, enabled: bool, bytecode: Path) -> tuple[float, float]:
    """Measure the milliseconds to the first response of `/api`, and the resident MB two seconds later.

    Bytecode is cached in `bytecode`, because an installed package has it and a source tree may not.
    """
    port, home = free_port(), Home(folder)
    extensions = f"--ServerApp.jpserver_extensions={{'openruntime_jupyter': {enabled}}}"
    words = [*JUPYTER, f"--port={port}", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}", extensions]
    environment = home.environment({"PYTHONPYCACHEPREFIX": str(bytecode)})
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = time.perf_counter()
    process = subprocess.Popen(words, env=environment, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/api", trust_env=False)
                break
            except httpx.TransportError:
                if time.perf_counter() - before > PATIENCE:
                    raise
                time.sleep(0.002)
        took = 1000 * (time.perf_counter() - before)
        time.sleep(2.0)
        return took, psutil.Process(process.pid).memory_info().rss / 1e6
    finally:
        process.terminate()
        process.wait(20)


def rows() -> list[Row]:
    """Measure time and memory with and without the extension, alternating."""
    with_ours, without = [], []
    with tempfile.TemporaryDirectory() as name:
        for number in range(ROUNDS + 1):
            folders = [Path(name) / f"{kind}-{number}" for kind in ("with", "without")]
            for folder in folders:
                folder.mkdir()
            pair = tuple(start(folder, not index, Path(name) / "bytecode") for index, folder in enumerate(folders))
            if number:  # the first round warms the caches
                with_ours.append(pair[0])
                without.append(pair[1])
    (bare, milliseconds), (_, megabytes) = (
        (plain := median([pair[i] for pair in without]), median([pair[i] for pair in with_ours]) - plain) for i in (0, 1)
    )
    return [
        within(f"additional start time of Jupyter Server, which takes {bare:,.0f} ms without the extension", milliseconds, 150.0, "ms"),
        within("additional resident memory", megabytes, 30.0, "MB"),
    ]
