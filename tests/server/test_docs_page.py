"""HTML page of the API: complete, without external resources, with working examples."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
import subprocess
from html.parser import HTMLParser
from typing import Any

import pytest

from openruntime_jupyter.server.openapi.document import document
from openruntime_jupyter.server.openapi.page import page
from openruntime_jupyter.server.routes import ROUTES
from tests.support import Server

BASE = "http://127.0.0.1:8000/user/x/openruntime"
DOCUMENT = document(ROUTES, "/user/x/openruntime")
PAGE = page(DOCUMENT, BASE)
VOID = ("meta", "input", "br", "link", "img", "hr")


class Reader(HTMLParser):
    """Parser that collects ids and links, and fails on unbalanced tags."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "action"):
                self.addresses.append(value or "")
            elif name.startswith("on") or name == "style":
                self.handlers.append(name)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def close(self) -> None:
        super().close()
        assert not self._open


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    return reader


def test_docs_page_shows_all_operations_and_types() -> None:
    reader = read(PAGE)
    text = "".join(reader.text)
    for path, verbs in DOCUMENT["paths"].items():
        assert path in text
        for verb, said in verbs.items():
            assert (said["operationId"] in reader.ids) == (verb != "head"), "HEAD is documented once for all routes"
            assert all(parameter["name"] in text for parameter in said["parameters"])
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert f"type-{name}" in reader.ids
        assert all(field in text for field in schema.get("properties", {}))


def test_docs_page_ids_are_unique_and_links_valid() -> None:
    reader = read(PAGE)
    assert len(reader.ids) == len(set(reader.ids))
    inside = [address for address in reader.addresses if address.startswith("#")]
    assert len(inside) > 100
    assert {address[1:] for address in inside} <= set(reader.ids)


def test_docs_page_has_no_external_resources() -> None:
    reader = read(PAGE)
    assert {address for address in reader.addresses if not address.startswith("#")} == {f"{BASE}/openapi.json"}
    assert not reader.handlers, "the policy blocks inline handlers"
    assert "url(" not in PAGE
    assert "@import" not in PAGE


def test_docs_page_escapes_host() -> None:
    text = page(DOCUMENT, "http://x\"><script>alert(1)</script>'/")
    assert text.count("<script>") == 1
    read(text)


@pytest.fixture(params=["jupyter", "standalone"])
def server(request: pytest.FixtureRequest) -> Server:
    """Return each of the two servers."""
    found: Server = request.getfixturevalue(request.param)
    return found


def test_docs_page_policy_allows_only_its_style_and_script(server: Server) -> None:
    response = server.request("GET", "/docs")
    assert response.headers["Content-Type"] == "text/html; charset=UTF-8"
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


def examples(server: Server) -> list[str]:
    shown = re.findall(r"<pre[^>]*>(curl .*?)</pre>", server.request("GET", "/docs").text, re.DOTALL)
    return [html.unescape(example) for example in shown]


def test_docs_page_curl_examples_run(server: Server, tmp_path: Any) -> None:
    task = server.submit("compute")
    found = examples(server)
    assert len(found) == sum(len({*verbs} - {"head"}) for verbs in DOCUMENT["paths"].values()) - 1, "all but HEAD and WebSocket"
    (tmp_path / "FILE").write_bytes(b"")
    environment = {**os.environ, "TOKEN": server.token or "", "TASK_ID": task["task_id"], "ARRAY_ID": "array_none", "NO_PROXY": "*"}
    statuses = {}
    for example in found:
        assert server.url in example
        assert ("$TOKEN" in example) == (server.root != server.url), "only the Jupyter server needs the token"
        done = subprocess.run(
            ["bash", "-c", f"set -e\n{example} --silent --output /dev/null --write-out '%{{http_code}}'"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{example}: {done.stderr}"
        statuses[" ".join(example.split()[:5])] = int(done.stdout)
    assert [status for example, status in statuses.items() if "/ai/tasks" in example and "$" not in example] == [503], "no provider"
    wrong = {example: status for example, status in statuses.items() if status >= 400 and "$" not in example}
    assert not {example for example in wrong if "/ai/tasks" not in example}
    assert not {
        example: status for example, status in statuses.items() if status in (400, 401, 403, 405, 500) and "ARRAY_ID" not in example
    }
