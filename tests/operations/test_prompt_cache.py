"""Reuse of the key-value cache between prompts, in both engines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from openruntime_jupyter.local_models.gguf import CONTEXT
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.schemas.ai import Answer
from tests.gguf_twin import write_twin
from tests.runtimes import completed, printed, runtime_in, submit, until
from tests.tiny_model import make_tiny_model

SHARED = "the queue is shared by every notebook, and a task waits for its turn; " * 8
"""Beginning that conversations have in common."""

both_engines = pytest.mark.parametrize("model", ["tiny", "twin"], ids=["mlx", "gguf"])


@pytest.fixture(scope="module")
def runtime(jp_asyncio_loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Runtime with a model for each engine."""
    folder = tmp_path_factory.mktemp("home")
    write_twin(make_tiny_model(folder / "models" / "tiny", context=1_000_000), folder / "models" / "twin.gguf")
    context = runtime_in(folder, cancel_grace=30.0)
    yield jp_asyncio_loop.run_until_complete(context.__aenter__())
    jp_asyncio_loop.run_until_complete(context.__aexit__(None, None, None))


async def answer(runtime: Runtime, model: str, asked: str | list[dict[str, str]], max_tokens: int = 12) -> Answer:
    """Return the response to a plain prompt or to messages."""
    given = {"prompt": asked} if isinstance(asked, str) else {"messages": asked}
    task = await completed(runtime, await submit(runtime, "generate", {"model": model, "max_tokens": max_tokens, **given}), 60)
    assert task.result is not None
    return Answer.model_validate(task.result.output)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@both_engines
async def test_conversations_in_turns_reuse_their_caches_and_give_the_same_texts(runtime: Runtime, model: str) -> None:
    talks: dict[str, list[dict[str, str]]] = {name: [said("user", f"{name}: {SHARED * 2}")] for name in ("first", "second")}
    for turn in range(1, 6):
        for name, messages in talks.items():
            response = await answer(runtime, model, messages)
            if turn == 5:
                assert response.cached_tokens is not None
                assert response.prompt_tokens is not None
                assert 0.8 * response.prompt_tokens < response.cached_tokens < response.prompt_tokens
            messages += [said("assistant", response.text), said("user", f"and what runs on the device in turn {turn}, {name}?")]
    await runtime.unload()
    for messages in talks.values():
        again = await answer(runtime, model, messages[:-2])
        assert again.text == messages[-2]["content"]
        assert again.cached_tokens is not None
        assert again.cached_tokens < 40, "only the template and the name are the same"


@both_engines
async def test_prompts_with_the_same_beginning_reuse_it(runtime: Runtime, model: str) -> None:
    asked = [f"1: {SHARED}{question}" for question in ("what waits?", "who may stop it?", "what waits?")]
    responses = [await answer(runtime, model, prompt) for prompt in asked]
    assert responses[0].text == responses[2].text != responses[1].text
    first, *others = [response.cached_tokens or 0 for response in responses]
    assert first < 40
    assert min(others) > 100


@both_engines
async def test_oldest_caches_are_deleted(runtime: Runtime, model: str) -> None:
    prompts = [f"{number:02}: {SHARED}" for number in range(40)]  # more tokens than the caches of all prompts hold together
    for prompt in prompts:
        tokens = (await answer(runtime, model, prompt, max_tokens=1)).prompt_tokens or 0
    assert tokens * len(prompts) > 1.5 * CONTEXT
    newest, oldest = [(await answer(runtime, model, prompts[place], max_tokens=1)).cached_tokens or 0 for place in (-2, 0)]
    assert newest > 100
    assert oldest < 40


@both_engines
async def test_cancelled_response_does_not_change_later_ones(runtime: Runtime, model: str) -> None:
    expected = await answer(runtime, model, SHARED, max_tokens=30)
    for characters in (1, 100):
        given = {"model": model, "prompt": SHARED, "max_tokens": 500_000, "repetition_penalty": 1.1}
        task_id = await submit(runtime, "generate", given)

        async def writes(task_id: str = task_id, characters: int = characters) -> bool:
            return len(await printed(runtime, task_id)) > characters

        await until(writes, 60)
        await runtime.cancel(task_id)
        response = await answer(runtime, model, SHARED, max_tokens=30)
        assert response.load_time_s is None
        assert response.text == expected.text
        assert response.cached_tokens is not None
        assert response.cached_tokens > 100
