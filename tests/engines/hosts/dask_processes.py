"""Plain `dask scheduler` and `dask worker` processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support import wait_until

PRELOAD = ("--preload", "openruntime_jupyter.agent.dask")

NO_COMPILER = {"MLX_DISABLE_COMPILE": "1"}
"""Variables with which a first prompt takes half as long, because MLX does not run the compiler."""

HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "openruntime_jupyter":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""
"""Preloaded module that hides this package from a Dask worker."""


class DaskProcesses:
    """Scheduler and workers with their files in `folder`. `stop` kills all of them, because Dask takes seconds to end them."""

    def __init__(self, folder: Path, *options: str, variables: Mapping[str, str] | None = None, port: int = 0) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._environment = {**os.environ, **NO_COMPILER, "OPENRUNTIME_DATA_DIR": str(folder / "data"), **(variables or {})}
        self._started: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        file.unlink(missing_ok=True)
        arguments = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--scheduler-file", str(file), *options)
        self.scheduler = self._start("scheduler", "distributed.cli.dask_scheduler", arguments)
        self.address: str = wait_until(lambda: _address(file), 60, self.log)

    def worker(self, name: str, *options: str, nanny: bool = False) -> subprocess.Popen[bytes]:
        """Start a worker of one thread, by default without a nanny."""
        fixed = ("--name", name, "--nthreads", "1", "--memory-limit", "0", "--no-dashboard", "--local-directory", str(self.folder))
        how = "--nanny" if nanny else "--no-nanny"
        return self._start(name, "distributed.cli.dask_worker", (self.address, *fixed, how, *options))

    def _start(self, name: str, module: str, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = (sys.executable, "-m", module, *arguments)
            process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment, cwd=self.folder, start_new_session=True)
        self._started.append(process)
        return process

    def log(self) -> str:
        """Return what all processes have written."""
        return "\n".join(f"--- {file.name}\n{file.read_text()[-2000:]}" for file in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        """Kill all processes with their children."""
        for process in reversed(self._started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _address(file: Path) -> str | None:
    try:
        return json.loads(file.read_text())["address"]
    except (FileNotFoundError, json.JSONDecodeError):  # not yet, or half written
        return None
