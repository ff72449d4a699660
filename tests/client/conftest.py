"""One runtime behind a real server and one inside this process: every contract test runs over both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.embedded import EmbeddedBackend
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.runtime.settings import Settings
from tests.support import Server, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Jupyter Server below a base URL, with one CPU slot, so that a second task waits."""
    config = {"OpenRuntimeApp": {"cpu_slots": 1}}
    with running_server(tmp_path_factory.mktemp("client"), base_url="/user/x/", config=config) as running:
        yield running


@pytest.fixture(scope="module", params=["http", "embedded"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Each kind of backend in turn, with one CPU slot."""
    if request.param == "http":
        running: Server = request.getfixturevalue("server")
        http = HttpBackend(running.url, running.token)
        yield http
        http.close()
        return
    embedded = EmbeddedBackend(Settings(data_dir=tmp_path_factory.mktemp("embedded"), embedded=True, cpu_slots=1))
    yield embedded
    embedded.stop()


@pytest.fixture
def client(backend: Backend) -> Client:
    """A client of each backend in turn."""
    return Client(backend)
