"""A page of another origin uses the API in a real browser, as an SDK does: submission, errors, their headers, and a refused WebSocket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter import __version__
from tests.browser.chromium import new_page
from tests.support import STANDALONE, running_server

pytestmark = [pytest.mark.browser]

SUBMIT = """async ([url, body, headers]) => {
  const response = await fetch(url + "/tasks", {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID(), ...headers },
    body: JSON.stringify(body)
  });
  return { status: response.status, body: await response.json(), headers: Object.fromEntries(response.headers) };
}"""
CLOSE = """url => new Promise(resolve => {
  new WebSocket(url).onclose = ({ code, reason }) => resolve([code, reason]);
})"""


class EmptyPage(BaseHTTPRequestHandler):
    """Page without content."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html><link rel=icon href=data:,>")

    def log_message(self, *_: Any) -> None:
        """Do nothing."""


@pytest.fixture
def origin() -> Iterator[str]:
    """Origin of a page on another port."""
    with HTTPServer(("127.0.0.1", 0), EmptyPage) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_page_of_other_origin_uses_api(origin: str, tmp_path: Path) -> None:
    config = {"ServerApp": {"allow_origin": origin}, "OpenRuntimeApp": {"max_pending": 0, "cpu_slots": 1}}
    with running_server(tmp_path, STANDALONE, config=config) as server:
        async with new_page(400, 300) as page:
            await page.goto(origin)
            login = {"Authorization": f"Bearer {server.token}"}

            async def submit(operation: str, headers: dict[str, str], **parameters: Any) -> Any:
                return await page.evaluate(SUBMIT, [server.url, {"operation": operation, "parameters": parameters}, headers])

            done = await submit("matrix_multiply", {**login, "Prefer": "wait=30"}, size=8, iterations=1)
            assert (done["status"], done["body"]["status"]) == (200, "completed")
            assert done["headers"]["preference-applied"] == "wait=30"
            assert done["headers"]["openruntime-version"] == __version__

            wrong = await submit("nosuch", login)
            assert (wrong["status"], wrong["body"]["data"]["code"]) == (422, "unknown_operation")

            accepted = await submit("python", {**login, "Prefer": "respond-async"}, code="import time; time.sleep(60)")
            assert accepted["status"] == 202
            assert accepted["body"]["task_id"] in accepted["headers"]["location"]
            full = await submit("matrix_multiply", login, size=8)
            assert (full["status"], full["body"]["data"]["code"]) == (503, "queue_full")
            assert int(full["headers"]["retry-after"]) >= 1
            server.request("DELETE", f"/tasks/{accepted['body']['task_id']}")

            refused = await submit("matrix_multiply", {"Authorization": "Bearer wrong"})
            assert (refused["status"], refused["body"]["data"]["code"]) == (403, "not_allowed")
            code, reason = await page.evaluate(CLOSE, f"{server.ws_url}?token=wrong")
            assert code == 4001
            assert "token is wrong" in reason, json.dumps(reason)
