"""Fixtures: kernels with an embedded runtime and with a server, a fake default provider, and a tiny local model."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.ai.provider_server import Connection, ProviderServer, Request, providing, usage
from tests.notebook.conftest import Kernel, running_kernel
from tests.server.ai_support import steered
from tests.support import TOKEN, Home, running_server
from tests.tiny_model import make_tiny_model

CODE = "It divides by zero.\n\n```python\nx = 6 * 7\n```\n\nThat is all."


def answer(connection: Connection, request: Request) -> None:
    """Answer `give code` with `CODE`, `label` with the last word in capitals, and other prompts with `steered`."""
    asked = request.json["messages"][-1]["content"]
    if "give code" not in asked and "corrected cell" not in asked and "label" not in asked:
        steered(connection, request)
        return
    if "broken" in asked:
        connection.answer('{"error": {"message": "no such thing"}}', "400 Bad Request")
        return
    connection.begin()
    connection.text(*(asked.split()[-1].upper() if "label" in asked else CODE))
    connection.event(usage(10, 5))
    connection.event("[DONE]")


@pytest.fixture(scope="module")
def provider() -> Iterator[ProviderServer]:
    with providing(answer) as running:
        yield running


@pytest.fixture(scope="module", params=["embedded", "server"])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, provider: ProviderServer) -> Iterator[Kernel]:
    """Start a kernel with an embedded runtime and one with a server. The environment configures the provider."""
    home = Home(tmp_path_factory.mktemp("kernel"))
    make_tiny_model(home.data_dir / "models" / "tiny")
    told = {"OPENRUNTIME_AI_BASE_URL": provider.url, "OPENRUNTIME_AI_MODEL": "any"}
    if request.param == "embedded":
        with running_kernel(home, told) as running:
            yield running
        return
    with running_server(home, environment=told) as server:
        of_server = {"OPENRUNTIME_URL": server.url, "OPENRUNTIME_TOKEN": TOKEN, "OPENRUNTIME_SERVER_PID": str(os.getpid())}
        with running_kernel(home, of_server) as running:
            yield running
