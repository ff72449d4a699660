"""Tokens per second of the default model, compared with a plain mlx-lm loop on the same weights and with stock mlx-lm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Missing, Row, at_least, median
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import TaskRequest
from openruntime_jupyter.schemas.values import ModelSource

ROUNDS = 5
TOKENS = 32
PROMPT = "A queue is what a runtime has where several notebooks share one device. " * 6

PLAIN = """
import json, sys, time
from openruntime_jupyter.worker.blas import choose
path, form, kept, blas, prompt, tokens = sys.argv[1:]
choose(blas)
import mlx_lm
from openruntime_jupyter.local_models.gguf_model import load_gguf
model, tokenizer = load_gguf(path, form, kept or None)
prompt = tokenizer.encode(prompt)

def turn():
    began, came = time.perf_counter(), []
    for _ in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=int(tokens)):
        came.append(time.perf_counter())
    return len(prompt) / (came[0] - began), (len(came) - 1) / (came[-1] - came[0])

for _ in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=2):
    pass
for _ in sys.stdin:
    print(json.dumps(turn()), flush=True)
"""

Speeds = tuple[float, float]
"""Tokens per second of the prompt, up to the first token of the answer, and of the answer after that."""


class Plain:
    """Loop of mlx-lm in a separate process, with its model loaded."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def turn(self) -> Speeds:
        """Process the prompt once. The loop measures its own time, because mlx-lm includes the first token in the rate of the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        read, written = json.loads(self._process.stdout.readline())
        return read, written


@contextlib.contextmanager
def plain(source: ModelSource, form: str, blas: str) -> Iterator[Plain]:
    """Start a loop and yield it when its process runs."""
    arguments = [source.path, form, source.converted or "", blas, PROMPT, str(TOKENS)]
    process = subprocess.Popen([sys.executable, "-c", PLAIN, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Plain(process)
    finally:
        process.kill()
        process.communicate()


async def ours(runtime: Runtime) -> Speeds:
    """Measure one task."""
    request = TaskRequest(operation="generate", parameters={"prompt": PROMPT, "max_tokens": TOKENS})
    task = await runtime.tasks.wait((await runtime.submit(request, Caller())).task_id)
    assert task.result is not None, task.failure
    return task.result.output["prompt_tokens_per_second"], task.result.output["tokens_per_second"]


async def _measure(runtime: Runtime, source: ModelSource) -> list[Speeds]:
    """Return the medians of the runtime, the plain loop and stock mlx-lm, which alternate."""
    await ours(runtime)  # loads the model, and writes the converted weights for the loop
    with plain(source, "float32", "") as loop, plain(source, "stored", "none") as stock:
        found = [[await ours(runtime), *[await asyncio.to_thread(peer.turn) for peer in (loop, stock)]] for _ in range(ROUNDS)]
    return [(median([read for read, _ in of]), median([written for _, written in of])) for of in zip(*found, strict=True)]


async def _compare(folder: Path, models: Path) -> list[Row]:
    runtime = Runtime(Settings(data_dir=folder, cpu_slots=1, models_dir=models))
    await runtime.start()
    try:
        try:
            source = runtime.catalog.resolve(None, Caller())
        except OpenRuntimeError as problem:
            raise Missing(problem) from None
        (read, written), (loop_read, loop_written), (stock_read, stock_written) = await _measure(runtime, source)
        what = f"{source.name}, {runtime.devices()[-1].blas}"
    finally:
        await runtime.stop()
    return [
        at_least(f"{what}: prompt, compared with a plain loop", read, loop_read, 0.97, "tokens/s"),
        at_least(f"{what}: answer, compared with a plain loop", written, loop_written, 0.97, "tokens/s"),
        at_least(f"{what}: prompt, compared with stock mlx-lm, quantised", read, stock_read, 8.0, "tokens/s"),
        at_least(f"{what}: answer, compared with stock mlx-lm, quantised", written, stock_written, 1.8, "tokens/s"),
    ]


def rows() -> list[Row]:
    """Measure the default model of this user, fetched by `jupyter openruntime pull`."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_compare(Path(folder), Settings().models))
