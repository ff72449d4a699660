"""What the default model reads and writes a second, beside a plain mlx-lm loop on the same weights, and beside stock mlx-lm."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.rows import Missing, Row, at_least, median
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.models import TaskRequest
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.runtime.settings import Settings

ROUNDS = 3
TOKENS = 24
PROMPT = "A queue is what a runtime has where several notebooks share one device. " * 6

PLAIN = """
import json, sys
from openruntime_jupyter.worker.blas import choose
path, form, kept, blas, prompt, tokens, rounds = sys.argv[1:]
choose(blas)
import mlx_lm
from openruntime_jupyter.worker.gguf.loading import load_gguf
model, tokenizer = load_gguf(path, form, kept or None)
found = []
for _ in mlx_lm.stream_generate(model, tokenizer, "to compile", max_tokens=2):
    pass
for _ in range(int(rounds)):
    *_, last = mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=int(tokens))
    found.append((last.prompt_tps, last.generation_tps))
print(json.dumps(found))
"""


def plain(path: str, form: str, kept: str, blas: str, rounds: int) -> tuple[float, float]:
    """Tokens a second of the prompt and of the answer, of mlx-lm's own loop in a process of its own."""
    arguments = [path, form, kept, blas, PROMPT, str(TOKENS), str(rounds)]
    answer = subprocess.run([sys.executable, "-c", PLAIN, *arguments], capture_output=True, check=True)
    read, written = zip(*json.loads(answer.stdout), strict=True)
    return median(read), median(written)


async def ours(runtime: Runtime) -> tuple[float, float]:
    """The same of one task."""
    request = TaskRequest(operation="generate", parameters={"prompt": PROMPT, "max_tokens": TOKENS})
    task = await runtime.wait((await runtime.submit(request, Caller())).task_id)
    assert task.result is not None, task.failure
    return task.result.output["prompt_tokens_per_second"], task.result.output["tokens_per_second"]


async def _compare(folder: Path, models: Path) -> list[Row]:
    runtime = Runtime(Settings(data_dir=folder, cpu_slots=1, models_dir=models))
    await runtime.start()
    try:
        try:
            source = runtime.catalog.resolve(None, Caller())
        except OpenRuntimeError as problem:
            raise Missing(problem) from None
        await ours(runtime)  # loads the model
        tasks, loops = [], []
        for _ in range(ROUNDS):  # in turns, so that both meet the same machine
            tasks.append(await ours(runtime))
            loops.append(await asyncio.to_thread(plain, source.path, "float32", source.converted or "", "", 1))
        blas = runtime.devices()[-1].blas
        stock_read, stock_written = await asyncio.to_thread(plain, source.path, "stored", "", "none", 1)
    finally:
        await runtime.stop()
    read, written = map(median, zip(*tasks, strict=True))
    loop_read, loop_written = map(median, zip(*loops, strict=True))
    what = f"{source.name}, {blas}"
    return [
        at_least(f"{what}: prompt, beside a plain loop", read, loop_read, 0.97, "tokens/s"),
        at_least(f"{what}: answer, beside a plain loop", written, loop_written, 0.97, "tokens/s"),
        at_least(f"{what}: prompt, beside stock mlx-lm as quantised", read, stock_read, 8.0, "tokens/s"),
        at_least(f"{what}: answer, beside stock mlx-lm as quantised", written, stock_written, 1.8, "tokens/s"),
    ]


def rows() -> list[Row]:
    """On the models of this user; `jupyter openruntime pull` fetches the default one."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_compare(Path(folder), Settings().models))
