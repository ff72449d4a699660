"""Fake provider controlled by the prompt, and a reader of server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from openruntime_jupyter.client.transport.http import events
from tests.ai.provider_server import Connection, Request, usage
from tests.support import Server

KEY = "sk-test-0123456789abcdef-very-secret"
HOLD_SECONDS = 120.0


def steered(connection: Connection, request: Request) -> None:
    """Repeat the last message in two chunks.

    The prompt can contain `hold` (no second chunk until the client disconnects), `fail` (an error), `slow` (a delay of 0.5 s) and
    `make up` (an additional number).
    """
    prompt = request.json["messages"][-1]["content"]
    if "fail" in prompt:
        connection.answer('{"error": {"message": "no such thing"}}', "400 Bad Request")
        return
    connection.begin()
    connection.text("You said: ", finish=None)
    if "hold" in prompt:
        assert connection.gone(HOLD_SECONDS), "the client did not close the stream"
        return
    if "slow" in prompt:
        time.sleep(0.5)
    connection.text(prompt, *([" 98765.4"] if "make up" in prompt else []))
    connection.event(usage(10, 5))
    connection.event("[DONE]")


def profile(url: str) -> dict[str, Any]:
    """Return the configuration of a server with the provider at `url`."""
    cloud = {"base_url": url, "model": "tiny", "api_key": "env:THE_KEY", "max_retries": 0}
    return {"OpenRuntimeApp": {"profiles": {"cloud": cloud}, "default_profile": "cloud"}}


def ask(server: Server, prompt: str, workflow: str = "model_inference", **fields: Any) -> Any:
    """Return the AiTask from `POST /ai/tasks`; `fields` may include `headers`."""
    response = post(server, prompt, workflow, **fields)
    assert response.status_code in (200, 202), f"{response.status_code}: {response.text}\n{server.tail()}"
    return response.json()


def post(server: Server, prompt: str, workflow: str = "model_inference", **fields: Any) -> httpx.Response:
    """Return the response of `POST /ai/tasks`, including errors."""
    headers = {**server.headers, **fields.pop("headers", {})}
    body = {"workflow_type": workflow, "prompt": prompt, **fields}
    return server.client.post(f"{server.url}/ai/tasks", json=body, headers=headers, timeout=180)


def told(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """Yield the events of a stream as (name, data)."""
    assert response.headers["Content-Type"].startswith("text/event-stream")
    for name, data in events(response.iter_lines()):
        yield name, json.loads(data)
