"""Import time of the built `openruntime-sdk`."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.rows import Row, at_most, median

HOOK = Path(__file__).parents[1] / "sdks" / "python" / "hatch_build.py"
ROUNDS = 9
CODE = "import time; before = time.perf_counter(); import {module}; print(1000 * (time.perf_counter() - before))"


def milliseconds(module: str, folder: Path) -> float:
    """Measure an import in a new process that has `folder` in its import path."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", CODE.format(module=module)]
    return float(subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True, timeout=60).stdout)


def rows() -> list[Row]:
    """Measure both imports, alternating."""
    ours: list[float] = []
    peer: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runpy.run_path(str(HOOK))["build"](folder / "openruntime")
        for number in range(ROUNDS + 1):
            pair = milliseconds("openruntime", folder), milliseconds("openai", folder)
            if number:  # the first round writes bytecode
                ours.append(pair[0])
                peer.append(pair[1])
    return [at_most("`import openruntime` / `import openai`", median(ours), median(peer), 0.5, "ms")]
