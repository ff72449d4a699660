"""Remote provider with two independent servers, mlx-lm and llama.cpp, on the same tiny model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from openruntime_jupyter.errors import OpenRuntimeError, ProviderBroken
from openruntime_jupyter.schemas.ai import Answer
from tests.ai.providers.support import Question, ask
from tests.gguf_twin import write_twin
from tests.llama_cpp import llama_cpp
from tests.scripted_model import TOOL_TEMPLATE, make_scripted_model
from tests.support import free_port, wait_until
from tests.tiny_model import make_tiny_model

CONTEXT = 512


@dataclass(frozen=True)
class Peer:
    """Server with its URL and model name."""

    name: str
    url: str
    model: str


@contextmanager
def mlx_lm_server(model: Path, folder: Path) -> Iterator[str]:
    """Run `python -m mlx_lm server`."""
    port = free_port()
    (folder / "hub").mkdir(parents=True)  # without it the list of its models is empty
    environment = {**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        assert process.poll() is None, "mlx_lm's server ended"
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, 60.0, "mlx_lm's server")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", params=["mlx_lm", "llama.cpp"])
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    folder = tmp_path_factory.mktemp("peer")
    model = make_tiny_model(folder / "tiny", context=CONTEXT)
    if request.param == "mlx_lm":
        with mlx_lm_server(model, folder / "home") as url:
            yield Peer("mlx_lm", url, str(model))
    else:
        with llama_cpp(write_twin(model, folder / "tiny.gguf")) as client:
            yield Peer("llama.cpp", f"{str(client.base_url).rstrip('/')}/v1", "tiny")


async def answered(peer: Peer, prompt: str = "the queue is", **parameters: Any) -> dict[str, Any]:
    """Return the response after comparing it with its pieces."""
    return await ask(peer.url, fields={"model": peer.model}, prompt=prompt, parameters=parameters)


async def test_answer_has_figures(peer: Peer) -> None:
    answer = Answer(**await answered(peer, max_tokens=12, temperature=0.0, seed=1))
    assert answer.text
    assert answer.finish_reason in ("length", "stop")
    assert answer.model_used
    assert answer.completion_tokens is not None
    assert 0 < answer.completion_tokens <= 12
    assert answer.prompt_tokens is not None
    assert answer.tokens_used == answer.prompt_tokens + answer.completion_tokens
    assert answer.time_to_first_token_s is not None
    assert answer.time_to_first_token_s > 0


async def test_stop_ends_the_answer(peer: Peer) -> None:
    whole = (await answered(peer, max_tokens=20, temperature=0.0))["text"]
    stop = next(character for character in whole[1:] if character.isascii() and character.isalnum())  # half a character does not stop
    cut = await answered(peer, max_tokens=20, temperature=0.0, stop=[stop])
    assert cut["finish_reason"] == "stop"
    assert len(cut["text"]) < len(whole)


async def test_rejected_parameter_is_reported(peer: Peer) -> None:
    with pytest.raises(OpenRuntimeError, match=r"127\.0\.0\.1") as caught:
        await answered(peer, max_tokens=4, temperature="hot")
    assert "temperature" in str(caught.value) or "type" in str(caught.value), "what the server said of it"


async def test_cancel_leaves_the_server_free(peer: Peer) -> None:
    asked = Question(peer.url, model=peer.model)
    asking = asyncio.ensure_future(asked.run("x", parameters={"max_tokens": CONTEXT - 100, "temperature": 1.0}))
    while not asked.listener.pieces and not asking.done():
        await asyncio.sleep(0.002)
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):  # a tiny model may have finished by then
        await asking
    await asked.provider.close()
    assert (await answered(peer, max_tokens=4, temperature=0.0))["text"]


FLAG = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}


async def test_json_schema_is_kept_or_its_loss_is_reported(peer: Peer) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "flag", "schema": FLAG}}
    if peer.name == "llama.cpp":
        for seed in range(3):
            answer = await answered(peer, max_tokens=64, temperature=1.0, seed=seed, response_format=form)
            assert answer["finish_reason"] == "stop"
            assert list(json.loads(answer["text"])) == ["ok"]
        return
    whole = (await answered(peer, max_tokens=20, temperature=0.0))["text"]
    stop = next(character for character in whole[1:] if character.isascii() and character.isalnum())
    with pytest.raises(ProviderBroken, match="ignored response_format: the text is not JSON"):  # this server has no schemas
        await answered(peer, max_tokens=20, temperature=0.0, stop=[stop], response_format=form)


async def test_ignored_tools_are_reported(peer: Peer) -> None:
    """Both servers ignore tools without an error if the chat template of the model has none."""
    tool = {"type": "function", "function": {"name": "set_flag", "parameters": FLAG}}
    with pytest.raises(ProviderBroken, match="called no tool, although tool_choice requires it"):
        await answered(peer, max_tokens=20, temperature=0.0, tools=[tool], tool_choice="required")


CALL = 'I look.\n<tool_call>\n{"name": "f", "arguments": {"a": 5}}\n</tool_call>'


async def test_tools_are_called_and_their_results_accepted(peer: Peer, tmp_path: Path) -> None:
    model = make_scripted_model(tmp_path / "scripted", CALL, TOOL_TEMPLATE)
    with contextlib.ExitStack() as stack:
        url, name = peer.url, str(model)  # mlx_lm's server loads the model of a request
        if peer.name == "llama.cpp":
            client = stack.enter_context(llama_cpp(write_twin(model, tmp_path / "scripted.gguf")))
            url, name = f"{str(client.base_url).rstrip('/')}/v1", "scripted"
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}  # short: the context has 512 bytes
        asked = Question(url, model=name)
        messages: list[dict[str, Any]] = [{"role": "user", "content": "go"}]
        for _ in range(2):
            answer = Answer(**await asked.run(messages=messages, parameters={"tools": [tool], "max_tokens": 100, "temperature": 0.0}))
            assert answer.tool_calls is not None
            (call,) = answer.tool_calls
            assert (call.function.name, json.loads(call.function.arguments)) == ("f", {"a": 5})
            assert (answer.text.strip(), answer.finish_reason) == ("I look.", "tool_calls")
            called = {"role": "assistant", "content": answer.text, "tool_calls": [call.model_dump()]}
            messages += [called, {"role": "tool", "content": "done", "tool_call_id": call.id}]
        await asked.provider.close()
