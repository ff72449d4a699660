"""The packed JavaScript SDK on a page of another origin in Chromium: tasks, errors, events and arrays."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import new_page
from tests.sdks.toolchains import javascript_package
from tests.support import STANDALONE, running_server

pytestmark = [pytest.mark.browser]

PAGE = """<!DOCTYPE html><link rel=icon href=data:,>
<script type="importmap">{"imports": {"@openruntime/sdk": "/node_modules/@openruntime/sdk/dist/index.js"}}</script>"""
PROGRAM = """async ([baseUrl, token]) => {
  const { ApiError, NotAllowedError, OpenRuntime } = await import("@openruntime/sdk");
  const client = new OpenRuntime({ baseUrl, token });
  const told = {};
  const events = client.events();
  await events.next();
  const task = await client.tasks.run("matrix_multiply", { size: 64 });
  for await (const { type, data } of events) {
    if (type === "task_update" && data.task_id === task.task_id && data.status === "completed") break;
  }
  told.status = task.status;
  told.version = client.serverVersion;
  await client.arrays.put("browser", Float32Array.of(3, 4));
  told.array = Array.from((await client.arrays.get("browser")).data);
  await client.arrays.delete("browser");
  told.error = await client.tasks.run("matrix_multiply", { size: -1 }).catch((error) => error instanceof ApiError && error.code);
  told.aborted = await client.tasks
    .run("python", { code: "import time; time.sleep(60)" }, { signal: AbortSignal.timeout(500), name: "abort" })
    .catch((error) => error.name);
  for await (const { status } of client.tasks.list({ name: "abort" })) told.cancelled = status;
  const stranger = new OpenRuntime({ baseUrl, token: "wrong" });
  told.refused = await stranger.events().next().catch((error) => error instanceof NotAllowedError);
  return told;
}"""


class Pages(SimpleHTTPRequestHandler):
    """Files of a folder."""

    def log_message(self, *_: Any) -> None:
        """Do nothing."""


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[str]:
    """Origin of a page beside the installed package."""
    folder = javascript_package(tmp_path)
    (folder / "index.html").write_text(PAGE)
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_sdk_runs_in_browser(origin: str, tmp_path: Path) -> None:
    with running_server(tmp_path, STANDALONE, config={"ServerApp": {"allow_origin": origin}}) as server:
        async with new_page(400, 300) as page:
            await page.goto(origin)
            told = await page.evaluate(PROGRAM, [server.url, server.token])
            version = server.get("/health")["version"]
    assert told == {
        "status": "completed",
        "version": version,
        "array": [3, 4],
        "error": "invalid_request",
        "aborted": "TimeoutError",
        "cancelled": "cancelled",
        "refused": True,
    }
