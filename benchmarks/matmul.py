"""GFLOP/s of `matrix_multiply`, compared with a plain MLX loop with the same BLAS and with stock MLX."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Missing, Row, at_least, median
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import TaskRequest

SIZE = 2000
ITERATIONS = 10
ROUNDS = 5

PLAIN = """
import json, sys, time
from openruntime_jupyter.worker.blas import choose
choose(sys.argv[1])
import mlx.core as mx
size, iterations = int(sys.argv[2]), int(sys.argv[3])
a, b = mx.random.normal((size, size)), mx.random.normal((size, size))
mx.eval(a, b, a @ b)
found = []
for _ in range(iterations):
    before = time.perf_counter()
    mx.eval(a @ b)
    found.append(time.perf_counter() - before)
found.sort()
print(json.dumps(2 * size**3 / found[len(found) // 2] / 1e9))
"""


def plain(blas: str, iterations: int = ITERATIONS) -> float:
    """Return the GFLOP/s of a plain loop in a separate process."""
    answer = subprocess.run([sys.executable, "-c", PLAIN, blas, str(SIZE), str(iterations)], capture_output=True, check=True)
    return float(json.loads(answer.stdout))


async def _rounds(folder: Path) -> tuple[list[float], list[float], str | None]:
    runtime = Runtime(Settings(data_dir=folder, cpu_slots=1))
    await runtime.start()
    ours, loops = [], []
    request = TaskRequest(operation="matrix_multiply", parameters={"size": SIZE, "iterations": ITERATIONS})
    for _ in range(ROUNDS):
        task = await runtime.tasks.wait((await runtime.submit(request, Caller())).task_id)
        assert task.result is not None, task.failure
        ours.append(float(task.result.output["gflops"]))
        loops.append(await asyncio.to_thread(plain, ""))
    blas = runtime.devices()[-1].blas
    await runtime.stop()
    return ours, loops, blas


def rows() -> Iterator[Row]:
    """Yield the row of the plain loop and, with a fast BLAS, that of stock MLX."""
    with tempfile.TemporaryDirectory() as folder:
        ours, loops, blas = asyncio.run(_rounds(Path(folder)))
    yield at_least(f"matrix_multiply of {SIZE}, compared with a plain loop", median(ours), median(loops), 0.97, "GFLOP/s")
    if blas is None or "reference" in blas:
        raise Missing(f"matrix_multiply compared with stock MLX needs a fast BLAS, not that of stock MLX ({blas}): run tools/install-blas")
    stock = median([plain("none", 2) for _ in range(3)])
    yield at_least("… compared with stock mlx[cpu]", median(ours), stock, 20.0, "GFLOP/s")
