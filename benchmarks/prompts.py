"""`POST /ai/tasks` of a real Jupyter Server, compared with a direct call of the `openai` package to the same provider."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai

from benchmarks.rows import Row, added, median
from tests.support import JUPYTER, Home, running_server

ROUNDS = 5
CALLS = 40
ANSWER = "All is well."

PROVIDER = """
import asyncio, json
from tornado import httpserver, netutil, web

def chunk(text, finish=None):
    delta = {"content": text} if text else {}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}

class Completions(web.RequestHandler):
    async def post(self):
        request = json.loads(self.request.body)
        if not request.get("stream"):
            message = {"role": "assistant", "content": ANSWER}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            self.finish({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": USAGE})
            return
        self.set_header("Content-Type", "text/event-stream")
        for word in ANSWER.split(" "):
            await self.send(chunk(word + " "))
            if "slowly" in request["messages"][-1]["content"]:
                await asyncio.sleep(0.02)
        await self.send(chunk("", "stop"))
        await self.send({**chunk(""), "choices": [], "usage": USAGE})
        self.finish("data: [DONE]\\n\\n")

    async def send(self, data):
        self.write(f"data: {json.dumps(data)}\\n\\n")
        await self.flush()

async def main():
    [socket] = netutil.bind_sockets(0, "127.0.0.1")
    server = httpserver.HTTPServer(web.Application([("/v1/chat/completions", Completions)]))
    server.add_sockets([socket])
    print(socket.getsockname()[1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def provider() -> Iterator[str]:
    """Start a provider that answers immediately, in a separate process, and yield its address."""
    program = f"ANSWER = {ANSWER!r}\n{PROVIDER}"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.communicate()


def timed(call: Callable[[], object]) -> float:
    """Return the milliseconds of a call."""
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def in_turns(ours: Callable[[], float], direct: Callable[[], float]) -> tuple[float, float]:
    """Return the median of each; both alternate, after a warm-up."""
    for _ in range(CALLS):
        ours()
        direct()
    found = [(median([ours() for _ in range(CALLS)]), median([direct() for _ in range(CALLS)])) for _ in range(ROUNDS)]
    mine, theirs = zip(*found, strict=True)
    return median(mine), median(theirs)


class Prompts:
    """Equal prompts to the server and to its provider, each on one keep-alive connection."""

    def __init__(self, server: httpx.Client, url: str, direct: openai.OpenAI) -> None:
        self._server = server
        self._url = url
        self._direct = direct
        self._number = itertools.count()

    def _body(self, prompt: str, stream: bool) -> dict[str, object]:
        return {"workflow_type": "model_inference", "prompt": f"{prompt} {next(self._number)}", "stream": stream}

    def whole(self) -> float:
        """Measure a complete answer of the server."""

        def call() -> None:
            answer = self._server.post(self._url, json=self._body("How are you?", stream=False)).raise_for_status().json()
            assert (answer["result"].strip(), answer["tokens_used"]) == (ANSWER, 13), answer

        return timed(call)

    def whole_direct(self) -> float:
        """Measure a complete answer of the provider with the `openai` package."""

        def call() -> None:
            answer = self._direct.chat.completions.create(model="m", messages=[{"role": "user", "content": "How are you?"}])
            assert answer.choices[0].message.content == ANSWER, answer

        return timed(call)

    def first(self) -> float:
        """Measure the time to the first token of a streamed answer of the server."""
        began = time.perf_counter()
        with self._server.stream("POST", self._url, json=self._body("Tell me slowly.", stream=True)) as response:
            lines = response.iter_lines()
            next(line for line in lines if line == "event: token")
            took = time.perf_counter() - began
            assert any(line == "event: task" for line in lines)
        return 1000 * took

    def first_direct(self) -> float:
        """Measure the time to the first token of a streamed answer of the provider."""
        began = time.perf_counter()
        messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me slowly."}]
        with self._direct.chat.completions.create(model="m", messages=messages, stream=True) as chunks:
            next(chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content)
            took = time.perf_counter() - began
            for _ in chunks:
                pass
        return 1000 * took


def rows() -> list[Row]:
    """Return the rows of a complete answer and of the first token of a streamed one."""
    with tempfile.TemporaryDirectory() as folder, provider() as url:
        config = {"OpenRuntimeApp": {"profiles": {"here": {"base_url": url, "model": "m"}}, "default_profile": "here"}}
        with (
            running_server(Home(Path(folder) / "home"), JUPYTER, config=config) as server,
            httpx.Client(trust_env=False, headers=server.headers, timeout=60.0) as client,
            openai.DefaultHttpxClient(trust_env=False) as transport,
        ):
            prompts = Prompts(client, f"{server.url}/ai/tasks", openai.OpenAI(api_key="none", base_url=url, http_client=transport))
            whole = in_turns(prompts.whole, prompts.whole_direct)
            first = in_turns(prompts.first, prompts.first_direct)
    return [
        added("POST /ai/tasks, p50, over a direct openai call", *whole, 5.0, "ms"),
        added("POST /ai/tasks, first streamed token, p50, over a direct openai call", *first, 5.0, "ms"),
    ]
