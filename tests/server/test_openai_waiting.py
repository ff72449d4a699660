"""A chat completion that waits in the queue, on a server in this process."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from jupyter_server.serverapp import ServerApp

from openruntime_jupyter.server.handlers import chat_completions
from tests.gguf_twin import write_twin
from tests.server.conftest import prepared
from tests.tiny_model import make_tiny_model

SLEEP = {"operation": "python", "parameters": {"code": "import time; time.sleep(60)"}, "wait": False}


@pytest.mark.usefixtures("http_server")
async def test_waiting_stream_has_comments_with_its_position(
    jp_serverapp: ServerApp, jp_http_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_completions, "HEARTBEAT_SECONDS", 0.05)
    (tmp_path / "models").mkdir()
    write_twin(make_tiny_model(tmp_path / "tiny"), tmp_path / "models" / "tiny.gguf")
    app = prepared(jp_serverapp, tmp_path / "data")
    app.cpu_slots, app.max_pending, app.models_dir = 1, 1, str(tmp_path / "models")
    await jp_serverapp.extension_manager.start_all_extensions()
    await app.ready()
    # As in a notebook, by the variables that kernels inherit. The server of this test has another port than the announced one.
    headers = {"Authorization": f"Bearer {os.environ['OPENRUNTIME_TOKEN']}"}
    url = f"http://127.0.0.1:{jp_http_port}{urlsplit(os.environ['OPENRUNTIME_URL']).path}"
    body = {"messages": [{"role": "user", "content": "Who waits?"}], "stream": True, "max_tokens": 4}
    try:
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=60) as client:
            running = (await client.post("/tasks", json=SLEEP)).json()["task_id"]
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                lines = response.aiter_lines()
                assert await asyncio.wait_for(anext(lines), 30) == ": waiting, position 1"
                full = await client.post("/v1/chat/completions", json=body)
                await client.delete(f"/tasks/{running}")
                chunks = [line.removeprefix("data: ") async for line in lines if line.startswith("data: ")]
    finally:
        await app.stop_extension()
    assert (full.status_code, full.json()["error"]["code"]) == (503, "queue_full")
    assert int(full.headers["Retry-After"]) >= 1
    assert "X-Should-Retry" not in full.headers
    assert chunks[-1] == "[DONE]"
    assert json.loads(chunks[-2])["choices"][0]["finish_reason"] == "length"
