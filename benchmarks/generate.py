"""Speed, processor time, memory and load time of the default model through the runtime, with both engines.

It is compared with a loop of mlx-lm in float32 on the same weights, which is the fastest way of MLX on a CPU, with llama.cpp in a separate
process, with itself while another program keeps a core busy, with a thread for each core, and with itself without a key-value cache of
earlier prompts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.rows import Missing, Row, at_least, at_most, median, within
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import TaskRequest

ROUNDS = 5
TOKENS = 48
MLX_ROUNDS, MLX_TOKENS = 3, 24
"""Rounds and tokens of the slower engine."""
TALKS, TURNS_OF_TALK, TOKENS_OF_TURN = 3, 5, 8
CANCELS = 7
TEXT = "A queue is what a runtime has where several notebooks share one device. " * 6
LONG = 20
"""Repetitions of the text in a prompt that is still being read when it is cancelled."""

TURNS = """
for line in sys.stdin:
    before = sum(os.times()[:2])
    print(json.dumps([*turn(json.loads(line)), sum(os.times()[:2]) - before]), flush=True)
"""
"""End of the program of a peer, whose `turn` takes the prompt and returns its tokens per second and those of the answer."""

FLOAT32 = """
import json, os, sys, time
path, tokens = sys.argv[1], int(sys.argv[2])
began = time.perf_counter()
from openruntime_jupyter.worker.blas import choose
blas = choose("")
if blas is not None:
    blas.set_threads(int(sys.argv[3]))
import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.llama import Model, ModelArgs
from benchmarks.mlx_twin import GgufModel
stored = GgufModel(path)
model = Model(ModelArgs.from_dict(stored.config()))
model.load_weights(list(stored.take_weights(mx.float32).items()))

def turn(prompt):
    asked, came = mx.arange(prompt["tokens"]) % 1000 + 100, []
    began = time.perf_counter()
    for _ in generate_step(asked, model, max_tokens=tokens):
        came.append(time.perf_counter())
    return prompt["tokens"] / (came[0] - began), (len(came) - 1) / (came[-1] - came[0])

turn({"tokens": 2})
print(time.perf_counter() - began, flush=True)
"""
"""Loop of mlx-lm. The tokens of the prompt do not matter for its speed."""

LLAMA_CPP = """
import json, os, sys, time
path, tokens = sys.argv[1], int(sys.argv[2])
began = time.perf_counter()
from pathlib import Path
from openruntime_jupyter.local_models.llama_cpp import open_server
server = open_server(Path(path), 8192, int(sys.argv[3]))

def turn(prompt):
    came, last = [], {}
    began = time.perf_counter()
    def receive(chunk):
        if chunk["choices"] and chunk["choices"][0]["text"]:
            came.append(time.perf_counter())
        last.update(chunk)
    server.handle_completions({"prompt": prompt["text"], "max_tokens": tokens, "temperature": 0, "stream": True}, receive)
    return last["timings"]["prompt_n"] / (came[0] - began), (len(came) - 1) / (came[-1] - came[0])

print(time.perf_counter() - began, flush=True)
"""
"""llama.cpp in a separate process, as the worker calls it."""

BUSY = "while True: pass"


@dataclass(frozen=True)
class Turn:
    """Tokens per second of a prompt, up to the first token of the answer, and of the answer after that; processor seconds of both."""

    read: float
    written: float
    cpu: float


class Peer:
    """Program in a process that has its model loaded."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self.load = float(process.stdout.readline())

    def turn(self, prompt: dict[str, Any]) -> Turn:
        """Process one prompt."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(prompt)}\n")
        self._process.stdin.flush()
        return Turn(*json.loads(self._process.stdout.readline()))

    def megabytes(self) -> float:
        """Return the resident memory."""
        return psutil.Process(self._process.pid).memory_info().rss / 1e6


@contextlib.contextmanager
def peer(program: str, *arguments: str) -> Iterator[Peer]:
    """Start a program and yield it when it has loaded its model."""
    command = [sys.executable, "-c", program + TURNS, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Peer(process)
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Ours:
    """Runtime with one slot, and so one worker for the model. `model` is None for the default."""

    def __init__(self, runtime: Runtime, model: str | None = None) -> None:
        self._runtime = runtime
        self._model = model
        self.load = 0.0

    async def answer(self, **parameters: Any) -> dict[str, Any]:
        """Return the output of one task."""
        request = TaskRequest(operation="generate", parameters={"model": self._model, **parameters})
        task = await self._runtime.tasks.wait((await self._runtime.submit(request, Caller())).task_id)
        assert task.result is not None, task.failure
        return task.result.output

    async def turn(self, prompt: str, tokens: int = TOKENS) -> tuple[Turn, int]:
        """Measure one task; return also the number of tokens of its prompt."""
        before = _cpu_of_children()
        output = await self.answer(prompt=prompt, max_tokens=tokens)
        self.load = output["load_time_s"] or self.load
        turn = Turn(output["prompt_tokens_per_second"], output["tokens_per_second"], _cpu_of_children() - before)
        return turn, output["prompt_tokens"]

    async def beside_a_busy_core(self, rounds: int, tokens: int) -> tuple[list[float], list[float]]:
        """Return tokens per second of answers beside a busy core and without one, which alternate."""
        busy, quiet = [], []
        for number in range(rounds):
            quiet.append((await self.turn(_prompt(1000 + number), tokens))[0].written)
            with busy_core():
                busy.append((await self.turn(_prompt(2000 + number), tokens))[0].written)
        return busy, quiet

    async def talk(self, number: int) -> tuple[float, float, float]:
        """Return the seconds to the first token in the last turn of a conversation, those without a cache, and the share in the cache."""
        messages: list[dict[str, str]] = []
        output: dict[str, Any] = {}
        for turn in range(TURNS_OF_TALK):
            messages.append({"role": "user", "content": f"Talk {number}, question {turn}. {TEXT}What follows from that?"})
            output = await self.answer(messages=messages, max_tokens=TOKENS_OF_TURN)
            messages.append({"role": "assistant", "content": output["text"]})
        first = {"role": "user", "content": f"Another {messages[0]['content']}"}
        fresh = await self.answer(messages=[first, *messages[1:-1]], max_tokens=TOKENS_OF_TURN)
        return output["time_to_first_token_s"], fresh["time_to_first_token_s"], output["cached_tokens"] / output["prompt_tokens"]

    async def cancels(self, reading: bool) -> list[float]:
        """Return the milliseconds of cancels while the model reads long prompts, or while it generates. It stays loaded."""
        took = []
        for number in range(CANCELS):
            prompt = _prompt(5000 + number) * (LONG if reading else 1)
            parameters = {"model": self._model, "prompt": prompt, "max_tokens": 1000, "temperature": 1.0}
            task_id = (await self._runtime.submit(TaskRequest(operation="generate", parameters=parameters), Caller())).task_id
            if reading:
                await self._until_reading(task_id)
            else:
                async for _ in self._runtime.tasks.tokens(task_id):
                    break
            await asyncio.sleep(0.05 * number)  # at different moments of a step
            before = time.perf_counter()
            await self._runtime.cancel(task_id)
            took.append(1000 * (time.perf_counter() - before))
            assert self._runtime.engine.models.reports(), "the model was unloaded"
        return took

    async def _until_reading(self, task_id: str) -> None:
        while True:
            progress = (await self._runtime.tasks.get(task_id)).progress
            if progress is not None and progress.message == "reading the prompt" and progress.n:
                return
            await asyncio.sleep(0.01)

    def megabytes(self) -> float:
        """Return the resident memory of the worker with the model."""
        (report,) = self._runtime.engine.models.reports()
        return (report.resident or 0) / 1e6


def _cpu_of_children() -> float:
    """Return the processor seconds of the workers, of which only one has work."""
    total = 0.0
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "openruntime_jupyter.worker" in child.cmdline():
                total += sum(child.cpu_times()[:2])
    return total


def _prompt(number: int) -> str:
    """Return a prompt that begins differently each time, so that no key-value cache is reused."""
    return f"Case {number}. {TEXT}"


async def _gguf(ours: Ours, path: str, what: str) -> list[Row]:
    """Return the rows of the GGUF file and its peers, which alternate."""
    cores = os.cpu_count() or 1
    threads = str(max(1, cores - 1))
    await ours.turn("Load it.")
    found: list[tuple[Turn, Turn, Turn]] = []
    with peer(FLOAT32, path, str(TOKENS), str(cores)) as loop, peer(LLAMA_CPP, path, str(TOKENS), threads) as alone:
        for number in range(ROUNDS):
            mine, tokens = await ours.turn(_prompt(number))
            prompt = {"text": _prompt(number), "tokens": tokens}
            found.append((mine, await asyncio.to_thread(loop.turn, prompt), await asyncio.to_thread(alone.turn, prompt)))
        loads, sizes = (ours.load, loop.load), (ours.megabytes(), loop.megabytes())
    with peer(LLAMA_CPP, path, str(TOKENS), str(cores)) as spread:
        shared = await _both(ours, what, spread, ROUNDS, TOKENS)
    first, second, third = zip(*found, strict=True)

    def compared(field: str, peers: tuple[Turn, ...]) -> tuple[float, float]:
        return median([getattr(turn, field) for turn in first]), median([getattr(turn, field) for turn in peers])

    return [
        at_least(f"{what}: answer, compared with a float32 loop of mlx-lm", *compared("written", second), 3.0, "tokens/s"),
        at_least(f"{what}: prompt, compared with a float32 loop of mlx-lm", *compared("read", second), 0.8, "tokens/s"),
        at_most(f"{what}: processor time, compared with a float32 loop of mlx-lm", *compared("cpu", second), 0.5, "s"),
        at_most(f"{what}: memory, compared with a float32 loop of mlx-lm", *sizes, 0.65, "MB"),
        at_most(f"{what}: load, compared with a float32 loop of mlx-lm", *loads, 0.4, "s"),
        at_least(f"{what}: answer, compared with llama.cpp alone", *compared("written", third), 0.75, "tokens/s"),
        *shared,
    ]


async def _both(ours: Ours, what: str, spread: Peer, rounds: int, tokens: int) -> list[Row]:
    """Return the rows that each engine has: beside a busy core, turns of a conversation, and cancels. `spread` has a thread per core."""
    busy, quiet = await ours.beside_a_busy_core(rounds, tokens)
    crowded = []
    with busy_core():
        for number in range(3000, 3000 + rounds):
            mine, read = await ours.turn(_prompt(number), tokens)
            theirs = await asyncio.to_thread(spread.turn, {"text": _prompt(number), "tokens": read})
            crowded.append((mine.written, theirs.written))
    beside = [median(values) for values in zip(*crowded, strict=True)]
    talks = [await ours.talk(number) for number in range(TALKS)]
    reused, fresh, shares = (median(values) for values in zip(*talks, strict=True))
    writing, reading = await ours.cancels(reading=False), await ours.cancels(reading=True)
    return [
        at_least(f"{what}: answer beside a busy core, compared with an idle machine", median(busy), median(quiet), 0.6, "tokens/s"),
        at_least(f"{what}: answer beside a busy core, compared with a thread for each core", beside[0], beside[1], 1.0, "tokens/s"),
        at_most(f"{what}: first token in turn {TURNS_OF_TALK} of a conversation, compared with no cache", reused, fresh, 0.4, "s"),
        at_least(f"{what}: tokens of that turn's prompt from the cache", 100 * shares, 100, 0.8, "%"),
        within(f"{what}: cancel while it generates, with the model left in memory", median(writing), 100, "ms"),
        within(f"{what}: cancel while it reads a long prompt, with the model left in memory", median(reading), 100, "ms"),
    ]


async def _mlx(runtime: Runtime, path: str, folder: Path) -> list[Row]:
    """Return the rows of the same model as an MLX folder."""
    await asyncio.to_thread(subprocess.run, [sys.executable, "-m", "benchmarks.mlx_twin", path, str(folder)], check=True)
    await runtime.unload()
    ours = Ours(runtime, str(folder))
    await ours.turn("Load it.", 2)
    with peer(FLOAT32, path, str(MLX_TOKENS), str(os.cpu_count() or 1)) as spread:
        return await _both(ours, "as an MLX folder in float32", spread, MLX_ROUNDS, MLX_TOKENS)


async def _compare(folder: Path, models: Path) -> list[Row]:
    runtime = Runtime(Settings(data_dir=folder, cpu_slots=1, models_dir=models))
    await runtime.start()
    try:
        try:
            source = runtime.catalog.resolve(None, Caller())
        except OpenRuntimeError as problem:
            raise Missing(problem) from None
        return [*await _gguf(Ours(runtime), source.path, source.name), *await _mlx(runtime, source.path, folder / "mlx")]
    finally:
        await runtime.stop()


def rows() -> list[Row]:
    """Measure the default model, fetched by `jupyter openruntime pull` for this user, or by `make test`."""
    models = os.environ.get("OPENRUNTIME_TEST_MODELS")
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_compare(Path(folder), Path(models) if models else Settings().models))
