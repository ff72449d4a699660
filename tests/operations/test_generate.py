from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from openruntime_jupyter.errors import InvalidRequest, MemoryRefused
from openruntime_jupyter.operations.generate import Params, memory
from openruntime_jupyter.operations.registry import operation
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.schemas.ai import Answer
from openruntime_jupyter.schemas.tasks import Task
from openruntime_jupyter.schemas.values import ModelSource
from openruntime_jupyter.worker.context import TaskContext
from tests.runtimes import ended, printed, runtime_in, submit, until
from tests.tiny_model import make_tiny_model

Value = TypeVar("Value")

ENDLESS = {"max_tokens": 500_000, "repetition_penalty": 1.1}
LONG = 1_000_000
"""Tokens of context, for what must not end by itself."""


class Stage:
    """A runtime on a loop of its own, for all tests here: a model that one has loaded serves the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._around = runtime_in(folder, cancel_grace=30.0)  # the interrupt alone is to do it, however busy the machine is
        self.runtime = self._run(self._around.__aenter__())

    def _run(self, body: Coroutine[Any, Any, Value]) -> Value:
        return asyncio.run_coroutine_threadsafe(body, self._loop).result(300)

    def play(self, body: Callable[[Runtime], Coroutine[Any, Any, None]]) -> None:
        """Run `body(runtime)`."""
        self._run(body(self.runtime))

    def close(self) -> None:
        """Stop it all."""
        self._run(self._around.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """With models."""
    folder = tmp_path_factory.mktemp("home")
    models = folder / "models"
    make_tiny_model(models / "tiny", context=LONG)
    make_tiny_model(models / "other", seed=1)
    make_tiny_model(models / "short", context=300)
    make_tiny_model(models / "plain", template=False)
    make_tiny_model(models / "strange", model_type="no such kind")
    code = make_tiny_model(models / "code", model_file="evil.py")
    (code / "evil.py").write_text(f"open({str(folder / 'run')!r}, 'w')")
    stage = Stage(folder)
    try:
        yield stage
    finally:
        stage.close()


async def prompt(runtime: Runtime, **parameters: Any) -> str:
    """Queue a prompt; its id."""
    return await submit(runtime, "generate", {"model": "tiny", "prompt": "the queue", **parameters})


async def answer(runtime: Runtime, **parameters: Any) -> Answer:
    """Of a task that must complete."""
    task = await ended(runtime, await prompt(runtime, **parameters), 60)
    assert task.status == "completed", task.failure
    assert task.result is not None
    return Answer.model_validate(task.result.output)


def worker_of(runtime: Runtime) -> psutil.Process:
    """The process that has the model: the one with most memory."""
    children = psutil.Process().children()
    return max((each for each in children if "openruntime_jupyter.worker" in each.cmdline()), key=lambda each: each.memory_info().rss)


def test_greedy_text_is_that_of_mlx_lm_itself_and_the_figures_add_up(stage: Stage) -> None:
    stage.play(same_as_mlx_lm)


PLAIN = """
import json, sys, mlx_lm
model, tokenizer = mlx_lm.load(sys.argv[1])
print(json.dumps([mlx_lm.generate(model, tokenizer, prompt, max_tokens=40) for prompt in json.loads(sys.argv[2])]))
"""


async def same_as_mlx_lm(runtime: Runtime) -> None:
    await runtime.unload()
    prompts = ["the queue", "a", "0123456789 " * 20, "0123456789 " * 120]  # the last one is read in pieces
    model = str(runtime.settings.models / "tiny")
    plain = subprocess.run([sys.executable, "-c", PLAIN, model, json.dumps(prompts)], capture_output=True, text=True, check=True)
    for number, (asked, text) in enumerate(zip(prompts, json.loads(plain.stdout), strict=True)):
        said = await answer(runtime, prompt=asked, max_tokens=40)
        assert said.text == text
        assert (said.model_used, said.provider, said.finish_reason) == ("tiny", "local", "length")
        assert said.completion_tokens == 40
        assert said.prompt_tokens is not None
        assert said.tokens_used == said.prompt_tokens + 40
        assert said.tokens_per_second is not None
        assert said.tokens_per_second > 0
        assert (said.load_time_s is None) == (number > 0), "only the first one loads it"


def test_tokens_come_as_they_are_written_and_are_the_answer_together(stage: Stage) -> None:
    async def body(runtime: Runtime) -> None:
        task_id = await prompt(runtime, max_tokens=100)
        told = "".join([piece.text async for piece in runtime.tasks.tokens(task_id)])
        task = await ended(runtime, task_id)
        assert task.result is not None
        assert told == task.result.output["text"] == await printed(runtime, task_id)
        endless = await prompt(runtime, **ENDLESS)
        async for _ in runtime.tasks.tokens(endless):
            break
        assert (await runtime.tasks.get(endless)).status == "running", "the first of them came before the last was written"
        await runtime.cancel(endless)

    stage.play(body)


def test_a_seed_repeats_its_text_and_none_gives_another_each_time(stage: Stage) -> None:
    async def body(runtime: Runtime) -> None:
        hot = {"temperature": 1.5, "top_p": 0.95, "top_k": 10_000, "min_p": 0.001, "repetition_penalty": 1.2, "max_tokens": 30}
        first, again = [await answer(runtime, seed=7, **hot) for _ in range(2)]
        other, another = [await answer(runtime, **hot) for _ in range(2)]
        assert first.text == again.text
        assert len({first.text, other.text, another.text}) == 3

    stage.play(body)


def test_a_stop_text_ends_the_answer_before_it_and_was_never_told(stage: Stage) -> None:
    async def body(runtime: Runtime) -> None:
        whole = (await answer(runtime, max_tokens=60)).text
        stop = whole[20:24]
        task_id = await prompt(runtime, max_tokens=60, stop=["no such text", stop])
        told = "".join([piece.text async for piece in runtime.tasks.tokens(task_id)])
        task = await ended(runtime, task_id)
        assert task.result is not None
        assert told == task.result.output["text"] == whole[: whole.index(stop)]
        assert task.result.output["finish_reason"] == "stop"

    stage.play(body)


def test_a_prompt_too_long_for_the_model_is_refused_with_figures_before_it_is_read(stage: Stage) -> None:
    async def body(runtime: Runtime) -> None:
        task = await ended(runtime, await prompt(runtime, model="short", prompt="ab " * 400), 60)
        assert task.status == "failed"
        assert "tokens, and short takes 300 with its answer" in str(task.error)
        assert (await answer(runtime, model="short", max_tokens=10_000)).tokens_used == 300, "an answer ends where the context does"

    stage.play(body)


def test_a_prompt_too_long_for_the_memory_is_refused_with_figures_by_the_server_and_by_the_worker(stage: Stage) -> None:
    source = ModelSource("tiny", str(stage.folder / "models" / "tiny"), "mlx", 100_000, LONG, cache_numbers=2**24)
    params = Params(prompt="a b c", max_tokens=100_000)
    params.use(source)
    assert memory(params) == 100_000 + (1 + 100_000) * 2**24 * 2
    context = TaskContext(model=source)
    with pytest.raises(MemoryRefused, match=r"A prompt of \d tokens with 100,000 to be written .* needs .* TB") as refused:
        operation("generate").run(params, context)
    assert refused.value.needed > refused.value.available


async def frees_within_a_second(runtime: Runtime, begin: Callable[[], Coroutine[Any, Any, str]]) -> None:
    """A cancel of what `begin` gives leaves the model in memory each time, and takes less than a second.

    A machine that has more to do than cores may keep any one attempt waiting: the time is that of the best of a few.
    """
    took: list[float] = []
    while not took or (min(took) >= 1.0 and len(took) < 5):
        task_id = await begin()
        asked = time.monotonic()
        task = await runtime.cancel(task_id)
        took.append(time.monotonic() - asked)
        assert (task.status, task.cancel_stage) == ("cancelled", "interrupt")
        assert [model.state for model in runtime.engine.models() if model.name == "tiny"] == ["idle"]
        assert (await answer(runtime, max_tokens=5)).load_time_s is None, "the model is still in memory"
    assert min(took) < 1.0, took


def test_a_prompt_cancelled_as_it_is_answered_leaves_the_model_in_memory_from_the_first_one_on(stage: Stage) -> None:
    async def body(runtime: Runtime) -> None:
        await runtime.unload()

        async def begin() -> str:
            task_id = await prompt(runtime, **ENDLESS)
            await until(lambda: says_more_than(runtime, task_id, 100), 60)
            return task_id

        await frees_within_a_second(runtime, begin)

    stage.play(body)


async def says_more_than(runtime: Runtime, task_id: str, characters: int) -> bool:
    assert not (task := await runtime.tasks.get(task_id)).status.terminal, task.failure
    return len(await printed(runtime, task_id)) > characters


def test_a_prompt_cancelled_as_it_is_read_leaves_the_model_in_memory(stage: Stage) -> None:
    async def body(runtime: Runtime) -> None:
        await answer(runtime, max_tokens=1)

        async def begin() -> str:
            task_id = await prompt(runtime, prompt="0123456789" * 20_000, **ENDLESS)
            await until(lambda: reading(runtime, task_id), 60)
            assert not await printed(runtime, task_id)
            return task_id

        await frees_within_a_second(runtime, begin)

    stage.play(body)


async def reading(runtime: Runtime, task_id: str) -> bool:
    task = await runtime.tasks.get(task_id)
    assert not task.status.terminal, task.failure
    return task.progress is not None and task.progress.message == "reading the prompt" and task.progress.n > 0


def test_a_killed_worker_fails_its_own_task_alone_and_the_next_one_loads_the_model_again(stage: Stage) -> None:
    async def body(runtime: Runtime) -> None:
        await runtime.unload()
        task_id = await prompt(runtime, **ENDLESS)
        await until(lambda: says_more_than(runtime, task_id, 100), 60)
        following = await prompt(runtime, max_tokens=5)
        os.kill(worker_of(runtime).pid, signal.SIGKILL)
        task: Task = await ended(runtime, task_id)
        assert task.failure is not None
        assert (task.status, task.failure.kind, task.failure.signal) == ("failed", "worker_died", signal.SIGKILL)
        task = await ended(runtime, following, 60)
        assert task.result is not None, task.failure
        assert task.result.output["load_time_s"] > 0

    stage.play(body)


def test_prompts_of_other_models_and_other_tasks_do_not_disturb_each_other(stage: Stage) -> None:
    async def body(runtime: Runtime) -> None:
        one, other = [(await answer(runtime, model=name, max_tokens=20)).text for name in ("tiny", "other")]
        assert one != other
        names = ("tiny", "other", "tiny", "other")
        assert [said.text for said in await asyncio.gather(*(answer(runtime, model=name, max_tokens=20) for name in names))] == [
            one,
            other,
        ] * 2
        assert {model.name for model in runtime.engine.models()} == {"tiny", "other"}

    stage.play(body)


def test_messages_go_through_the_template_of_the_model_or_are_refused_where_it_has_none(stage: Stage) -> None:
    async def body(runtime: Runtime) -> None:
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the queue"}]
        templated = "system: be brief<|end|>user: the queue<|end|>assistant:"
        said = await answer(runtime, prompt=None, messages=messages, max_tokens=20)
        assert said.text == (await answer(runtime, prompt=templated, max_tokens=20)).text
        task = await ended(runtime, await prompt(runtime, model="plain", prompt=None, messages=messages), 60)
        assert "plain has no chat template" in str(task.error)
        assert (await answer(runtime, model="plain", max_tokens=5)).completion_tokens == 5

    stage.play(body)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
        {"prompt": ""},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": 0},
        {"max_tokens": 0},
        {"stop": ""},
        {"stop": ["a"] * 17},
        {"seed": -1},
        {"unknown": 1},
    ],
)
def test_wrong_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        operation("generate").validate(wrong)


def test_what_can_not_be_loaded_says_so_and_leaves_no_worker_behind(stage: Stage) -> None:
    async def body(runtime: Runtime) -> None:
        for name, said in (("strange", "no such kind"), ("code", "custom module")):
            task = await ended(runtime, await prompt(runtime, model=name), 60)
            assert task.status == "failed"
            assert f"{name} can't be loaded" in str(task.error)
            assert said in str(task.error)
        assert not {"strange", "code"} & {model.name for model in runtime.engine.models()}
        assert not (stage.folder / "run").exists(), "a model's own code is never run"

    stage.play(body)


def test_a_model_on_the_cpu_computes_in_float32_and_as_it_is_without_a_blas(tmp_path: Path) -> None:
    program = (
        "import sys, json, mlx.core as mx\n"
        "from openruntime_jupyter.local_models import loading\n"
        "from openruntime_jupyter.local_models.language_model import weights_of\n"
        "from openruntime_jupyter.worker.context import TaskContext\n"
        "from openruntime_jupyter.local_models.catalog import ModelCatalog\n"
        "from openruntime_jupyter.runtime.settings import Settings\n"
        "from pathlib import Path\n"
        "[source] = ModelCatalog(Settings(data_dir=Path(sys.argv[1]))).known()\n"
        "said = []\n"
        "for fast in (True, True, False):\n"
        "    model = loading.load(source, TaskContext(model=source, fast_float32=fast))\n"
        "    weights = weights_of(model.model)\n"
        "    said.append([sorted({str(w.dtype) for w in weights.values()}), sum(w.nbytes for w in weights.values()), "
        "model.tokens_of('the queue', []), float(weights['model.embed_tokens.weight'][7, 3])])\n"
        "print(json.dumps([said, source.float32_bytes]))\n"
    )
    packed(make_tiny_model(tmp_path / "models" / "tiny"))
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    (first, second, as_it_is), expected = json.loads(done.stdout)
    assert first == second, "the second is read from the kept file"
    assert first[:2] == [["mlx.core.float32"], expected]
    assert "mlx.core.uint32" in as_it_is[0]
    kept = list((tmp_path / "models" / ".converted").iterdir())
    assert [file.suffix for file in kept] == [".safetensors"]


def packed(folder: Path) -> None:
    """Quantise the weights of a tiny model in place."""
    import mlx.core as mx

    weights: Any = mx.load(str(folder / "model.safetensors"))
    changed: dict[str, Any] = {}
    for name, weight in weights.items():
        if weight.ndim == 2:
            base = name.removesuffix(".weight")
            changed |= dict(zip((name, f"{base}.scales", f"{base}.biases"), mx.quantize(weight.astype(mx.float16), 32, 4), strict=True))
        else:
            changed[name] = weight
    mx.save_safetensors(str(folder / "model.safetensors"), changed)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "quantization": {"group_size": 32, "bits": 4}}))


def in_a_process(program: str) -> str:
    """What it prints: for what must not happen to the process of the tests."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_importing_mlx_lm_leaves_the_bounds_of_open_files_alone() -> None:
    program = (
        "import resource\n"
        "from openruntime_jupyter.local_models.mlx_lm_import import import_mlx_lm\n"
        "import_mlx_lm(offline=True)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert in_a_process(program) == str(resource.getrlimit(resource.RLIMIT_NOFILE))


def test_a_missing_mlx_lm_names_the_command_that_installs_it() -> None:
    program = (
        "import sys\n"
        "sys.modules['mlx_lm'] = None\n"
        "from openruntime_jupyter.errors import EngineError\n"
        "from openruntime_jupyter.local_models.mlx_lm_import import import_mlx_lm\n"
        "try:\n"
        "    import_mlx_lm(offline=True)\n"
        "except EngineError as problem:\n"
        "    print(problem)"
    )
    assert "python -m pip install 'openruntime-jupyter[local]'" in in_a_process(program)
