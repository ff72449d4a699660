from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from openruntime_jupyter.errors import InvalidRequest, MemoryRefused
from openruntime_jupyter.local_models.gguf import CONTEXT, memory_for
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.generate import Params, memory
from openruntime_jupyter.operations.registry import operation
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.schemas.ai import Answer
from openruntime_jupyter.schemas.tasks import Task
from openruntime_jupyter.schemas.values import ModelSource, TokenPiece
from openruntime_jupyter.worker.runner import threads_for
from tests.gguf_twin import write_twin
from tests.runtimes import completed, ended, printed, runtime_in, submit, until
from tests.tiny_model import make_tiny_model, quantise

ENDLESS = {"max_tokens": 500_000, "repetition_penalty": 1.1}
LONG = 1_000_000
"""Context in tokens, for generations that must not end by themselves."""


@pytest.fixture(scope="module")
def runtime(jp_asyncio_loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Runtime with models, which all tests here share so that a model is loaded once."""
    folder = tmp_path_factory.mktemp("home")
    models = folder / "models"
    write_twin(make_tiny_model(models / "tiny", context=LONG), models / "twin.gguf")
    make_tiny_model(models / "other", seed=1)
    write_twin(make_tiny_model(models / "plain", context=300, template=False), models / "plain_twin.gguf")
    make_tiny_model(models / "strange", model_type="no such kind")
    code = make_tiny_model(models / "code", model_file="evil.py")
    (code / "evil.py").write_text(f"open({str(folder / 'run')!r}, 'w')")
    context = runtime_in(folder, cancel_grace=30.0)  # only the interrupt may stop the task, even on a busy machine
    yield jp_asyncio_loop.run_until_complete(context.__aenter__())
    jp_asyncio_loop.run_until_complete(context.__aexit__(None, None, None))


both_engines = pytest.mark.parametrize("model", ["tiny", "twin"], ids=["mlx", "gguf"])


async def prompt(runtime: Runtime, **parameters: Any) -> str:
    """Submit a prompt; return the task id."""
    return await submit(runtime, "generate", {"model": "tiny", "prompt": "the queue", **parameters})


async def answer(runtime: Runtime, **parameters: Any) -> Answer:
    """Return the output of a task that must complete."""
    task = await completed(runtime, await prompt(runtime, **parameters), 60)
    assert task.result is not None
    return Answer.model_validate(task.result.output)


def worker_of(runtime: Runtime) -> psutil.Process:
    """Return the process with the model: the one with the most memory."""
    children = psutil.Process().children()
    return max((each for each in children if "openruntime_jupyter.worker" in each.cmdline()), key=lambda each: each.memory_info().rss)


PLAIN = """
import json, sys, mlx_lm
model, tokenizer = mlx_lm.load(sys.argv[1])
print(json.dumps([mlx_lm.generate(model, tokenizer, prompt, max_tokens=40) for prompt in json.loads(sys.argv[2])]))
"""


async def test_greedy_text_equals_mlx_lm_with_consistent_statistics(runtime: Runtime) -> None:
    await runtime.unload()
    prompts = ["the queue", "a", "0123456789 " * 20, "0123456789 " * 120]  # the last one is processed in pieces
    model = str(runtime.settings.models / "tiny")
    plain = subprocess.run([sys.executable, "-c", PLAIN, model, json.dumps(prompts)], capture_output=True, text=True, check=True)
    for number, (asked, text) in enumerate(zip(prompts, json.loads(plain.stdout), strict=True)):
        response = await answer(runtime, prompt=asked, max_tokens=40)
        assert response.text == text.rstrip("\ufffd")  # parts of a character at the end are left out
        assert (response.model_used, response.provider, response.finish_reason) == ("tiny", "local", "length")
        assert response.completion_tokens == 40
        assert response.prompt_tokens is not None
        assert response.tokens_used == response.prompt_tokens + 40
        assert response.tokens_per_second is not None
        assert response.tokens_per_second > 0
        assert (response.load_time_s is None) == (number > 0), "only the first one loads it"


@both_engines
async def test_tokens_are_streamed_and_add_up_to_the_response(runtime: Runtime, model: str) -> None:
    task_id = await prompt(runtime, model=model, max_tokens=100)
    streamed = "".join([piece.text async for piece in runtime.tasks.tokens(task_id) if isinstance(piece, TokenPiece)])
    task = await ended(runtime, task_id)
    assert task.result is not None
    assert streamed == task.result.output["text"] == await printed(runtime, task_id)
    endless = await prompt(runtime, model=model, **ENDLESS)
    async for _ in runtime.tasks.tokens(endless):
        break
    assert (await runtime.tasks.get(endless)).status == "running", "the first token was not streamed immediately"
    await runtime.cancel(endless)


@both_engines
async def test_seed_makes_text_reproducible(runtime: Runtime, model: str) -> None:
    hot = {"model": model, "temperature": 1.5, "top_p": 0.95, "top_k": 10_000, "min_p": 0.001, "repetition_penalty": 1.2, "max_tokens": 30}
    first, again = [await answer(runtime, seed=7, **hot) for _ in range(2)]
    other, another = [await answer(runtime, **hot) for _ in range(2)]
    assert first.text == again.text
    assert len({first.text, other.text, another.text}) == 3


@both_engines
async def test_stop_text_ends_response_and_is_not_streamed(runtime: Runtime, model: str) -> None:
    whole = (await answer(runtime, model=model, max_tokens=60)).text
    stop = whole[20:24]
    task_id = await prompt(runtime, model=model, max_tokens=60, stop=["no such text", stop])
    streamed = "".join([piece.text async for piece in runtime.tasks.tokens(task_id) if isinstance(piece, TokenPiece)])
    task = await ended(runtime, task_id)
    assert task.result is not None
    assert streamed == task.result.output["text"] == whole[: whole.index(stop)]
    assert task.result.output["finish_reason"] == "stop"


@pytest.mark.parametrize("model", ["plain", "plain_twin"])
async def test_prompt_over_context_length_is_rejected_with_sizes(runtime: Runtime, model: str) -> None:
    task = await ended(runtime, await prompt(runtime, model=model, prompt="ab " * 400), 60)
    assert task.status == "failed"
    assert f"tokens, but {model} has a context of 300" in str(task.error)
    assert (await answer(runtime, model=model, max_tokens=10_000)).tokens_used == 300, "an answer ends where the context does"


def test_prompt_over_memory_is_rejected_by_server_and_worker(runtime: Runtime) -> None:
    source = ModelSource("tiny", str(runtime.settings.models / "tiny"), "mlx", 100_000, LONG, cache_numbers=2**24)
    params = Params(prompt="a b c", max_tokens=100_000)
    params.use(source)
    assert memory(params) == 100_000 + (1 + 100_000) * 2**24 * 2
    context = TaskContext(model=source)
    with pytest.raises(MemoryRefused, match=r"A prompt of \d tokens with up to 100,000 tokens to generate .* needs .* TB") as refused:
        operation("generate").run(params, context)
    assert refused.value.needed > refused.value.available


async def frees_within_a_second(runtime: Runtime, model: str, begin: Callable[[], Coroutine[Any, Any, str]]) -> None:
    """Check that cancelling the task of `begin` takes less than a second and keeps the model in memory.

    The best of a few attempts counts, because the machine may be busy.
    """
    took: list[float] = []
    while not took or (min(took) >= 1.0 and len(took) < 5):
        task_id = await begin()
        asked = time.monotonic()
        task = await runtime.cancel(task_id)
        took.append(time.monotonic() - asked)
        assert (task.status, task.cancel_stage) == ("cancelled", "interrupt")
        assert [report.state for report in runtime.engine.models.reports() if report.name == model] == ["idle"]
        assert (await answer(runtime, model=model, max_tokens=5)).load_time_s is None, "the model is still in memory"
    assert min(took) < 1.0, took


@both_engines
async def test_cancel_during_generation_keeps_model_in_memory(runtime: Runtime, model: str) -> None:
    async def begin() -> str:
        task_id = await prompt(runtime, model=model, **ENDLESS)
        await until(lambda: says_more_than(runtime, task_id, 100), 60)
        return task_id

    await frees_within_a_second(runtime, model, begin)


async def says_more_than(runtime: Runtime, task_id: str, characters: int) -> bool:
    assert not (task := await runtime.tasks.get(task_id)).status.terminal, task.failure
    return len(await printed(runtime, task_id)) > characters


@both_engines
async def test_cancel_during_prompt_processing_keeps_model_in_memory(runtime: Runtime, model: str) -> None:
    await answer(runtime, model=model, max_tokens=1)

    async def begin() -> str:
        task_id = await prompt(runtime, model=model, prompt="0123456789" * 20_000, **ENDLESS)
        await until(lambda: reading(runtime, task_id), 60)
        assert not await printed(runtime, task_id)
        return task_id

    await frees_within_a_second(runtime, model, begin)


async def reading(runtime: Runtime, task_id: str) -> bool:
    task = await runtime.tasks.get(task_id)
    assert not task.status.terminal, task.failure
    return task.progress is not None and task.progress.message == "reading the prompt" and task.progress.n > 0


@both_engines
async def test_killed_worker_fails_only_its_task_and_model_is_reloaded(runtime: Runtime, model: str) -> None:
    await runtime.unload()
    task_id = await prompt(runtime, model=model, **ENDLESS)
    await until(lambda: says_more_than(runtime, task_id, 100), 60)
    following = await prompt(runtime, model=model, max_tokens=5)
    os.kill(worker_of(runtime).pid, signal.SIGKILL)
    task: Task = await ended(runtime, task_id)
    assert task.failure is not None
    assert (task.status, task.failure.kind, task.failure.signal) == ("failed", "worker_died", signal.SIGKILL)
    task = await ended(runtime, following, 60)
    assert task.result is not None, task.failure
    assert task.result.output["load_time_s"] > 0


@both_engines
async def test_prompts_of_several_models_and_tasks_run_independently(runtime: Runtime, model: str) -> None:
    one, other = [(await answer(runtime, model=name, max_tokens=20)).text for name in (model, "other")]
    assert one != other
    names = (model, "other", model, "other")
    assert [response.text for response in await asyncio.gather(*(answer(runtime, model=name, max_tokens=20) for name in names))] == [
        one,
        other,
    ] * 2
    assert {report.name for report in runtime.engine.models.reports()} == {model, "other"}


async def test_both_engines_give_the_same_text(runtime: Runtime) -> None:
    messages = [{"role": "user", "content": "what runs on the device?"}]
    texts = [(await answer(runtime, model=model, prompt=None, messages=messages, max_tokens=30)).text for model in ("tiny", "twin")]
    assert texts[0] == texts[1]


async def test_gguf_model_is_loaded_again_for_a_larger_context_only(runtime: Runtime) -> None:
    await runtime.unload()
    before = await answer(runtime, model="twin", max_tokens=20)
    resident = worker_of(runtime).pid
    large = await answer(runtime, model="twin", prompt="0123456789" * 2000, max_tokens=5)
    assert large.prompt_tokens is not None
    assert large.prompt_tokens > CONTEXT
    assert large.time_to_first_token_s is not None
    assert large.time_to_first_token_s > 0
    assert (await answer(runtime, model="twin", max_tokens=20)).text == before.text
    assert worker_of(runtime).pid == resident


async def test_worker_of_gguf_model_opens_no_inet_socket(runtime: Runtime) -> None:
    await runtime.unload()
    await answer(runtime, model="twin", max_tokens=5)
    assert not worker_of(runtime).net_connections("inet")
    assert not list(runtime.settings.data_dir.rglob("*.sock")), "another program could connect"


async def test_cancel_while_loading_ends_the_task_and_its_worker(runtime: Runtime) -> None:
    await runtime.unload()
    task_id = await prompt(runtime, model="twin", prompt="0123456789" * 1000, max_tokens=900_000)
    await until(lambda: message_is(runtime, task_id, "loading twin"), 60)
    task = await runtime.cancel(task_id)
    assert task.status == "cancelled"
    assert (await answer(runtime, model="twin", max_tokens=5)).completion_tokens == 5


async def message_is(runtime: Runtime, task_id: str, message: str) -> bool:
    task = await runtime.tasks.get(task_id)
    assert not task.status.terminal, task.failure
    return task.progress is not None and task.progress.message == message


def test_gguf_model_over_memory_is_rejected_by_server_and_worker(runtime: Runtime) -> None:
    source = ModelSource("twin", str(runtime.settings.models / "twin.gguf"), "gguf", 100_000, LONG, cache_numbers=2**24)
    params = Params(prompt="a b c", max_tokens=100_000)
    params.use(source)
    assert memory(params) == memory_for(source, 13 * CONTEXT) > 13 * CONTEXT * 2**24 * 2
    with pytest.raises(MemoryRefused, match=r"Model twin with a context of 8,192 tokens needs .* GB"):
        operation("generate").run(params, TaskContext(model=source))


def test_threads_of_models_leave_one_core_of_the_slot() -> None:
    model = {"name": "tiny"}
    assert [threads_for({"threads": threads, "model": model}) for threads in (1, 2, 8)] == [1, 1, 7]
    assert threads_for({"threads": 8, "model": None}) == 8


async def test_messages_require_a_chat_template(runtime: Runtime) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the queue"}]
    templated = "system: be brief<|end|>user: the queue<|end|>assistant:"
    response = await answer(runtime, prompt=None, messages=messages, max_tokens=20)
    assert response.text == (await answer(runtime, prompt=templated, max_tokens=20)).text
    task = await ended(runtime, await prompt(runtime, model="plain", prompt=None, messages=messages), 60)
    assert "plain has no chat template" in str(task.error)
    assert (await answer(runtime, model="plain", max_tokens=5)).completion_tokens == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
        {"prompt": ""},
        {"messages": [{"role": "user"}]},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"max_tokens": 0},
        {"stop": ["a"] * 17},
        {"unknown": 1},
    ],
)
def test_invalid_parameters_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        operation("generate").validate(wrong)


async def test_load_error_is_reported_and_ends_the_worker(runtime: Runtime) -> None:
    for name, cause in (("strange", "no such kind"), ("code", "custom module")):
        task = await ended(runtime, await prompt(runtime, model=name), 60)
        assert task.status == "failed"
        assert f"{name} can't be loaded" in str(task.error)
        assert cause in str(task.error)
    assert not {"strange", "code"} & {model.name for model in runtime.engine.models.reports()}
    assert not (runtime.settings.data_dir / "run").exists(), "the code of a model was run"


def test_cpu_model_computes_in_float32_only_with_fast_blas_and_keeps_open_file_limits(tmp_path: Path) -> None:
    program = (
        "import json, resource, sys\n"
        "from openruntime_jupyter.local_models.language_model import load\n"
        "from openruntime_jupyter.local_models.mlx_model import weights_of\n"
        "from openruntime_jupyter.operations.context import TaskContext\n"
        "from openruntime_jupyter.local_models.catalog import ModelCatalog\n"
        "from openruntime_jupyter.runtime.settings import Settings\n"
        "from pathlib import Path\n"
        "[source] = ModelCatalog(Settings(data_dir=Path(sys.argv[1]))).known()\n"
        "rows = []\n"
        "for fast in (True, False):\n"
        "    model = load(source, TaskContext(model=source, fast_float32=fast))\n"
        "    weights = weights_of(model.model)\n"
        "    rows.append([sorted({str(w.dtype) for w in weights.values()}), sum(w.nbytes for w in weights.values()), "
        "model.tokens_of('the queue', []), float(weights['model.embed_tokens.weight'][7, 3])])\n"
        "print(json.dumps([rows, source.float32_bytes, resource.getrlimit(resource.RLIMIT_NOFILE)]))\n"
    )
    quantise(make_tiny_model(tmp_path / "models" / "tiny"), 4, "float16")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    (wide, as_it_is), expected, limits = json.loads(done.stdout)
    assert wide[:2] == [["mlx.core.float32"], expected]
    assert "mlx.core.uint32" in as_it_is[0]
    assert tuple(limits) == resource.getrlimit(resource.RLIMIT_NOFILE), "importing mlx_lm lowered them"


def test_missing_mlx_lm_names_install_command() -> None:
    program = (
        "import sys\n"
        "sys.modules['mlx_lm'] = None\n"
        "from openruntime_jupyter.errors import EngineError\n"
        "from openruntime_jupyter.local_models.mlx_loading import import_mlx_lm\n"
        "try:\n"
        "    import_mlx_lm(offline=True)\n"
        "except EngineError as problem:\n"
        "    print(problem)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "python -m pip install 'openruntime-jupyter[local]'" in done.stdout
