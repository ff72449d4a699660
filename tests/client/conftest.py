"""Contract tests run with two runtimes: one in a real server and one embedded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.embedded import EmbeddedBackend
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.endpoints import Endpoint
from tests.support import Server, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a Jupyter Server with a base URL and one CPU slot, so that a second task waits."""
    config = {"OpenRuntimeApp": {"cpu_slots": 1}}
    with running_server(tmp_path_factory.mktemp("client"), base_url="/user/x/", config=config) as running:
        yield running


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackend]:
    """Return an embedded runtime with one CPU slot."""
    backend = EmbeddedBackend(Settings(data_dir=tmp_path_factory.mktemp("embedded"), embedded=True, cpu_slots=1))
    yield backend
    backend.stop()


@pytest.fixture(scope="module")
def hosted(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackend]:
    """Return an embedded runtime over the module's engine."""
    backend = EmbeddedBackend(Settings(data_dir=tmp_path_factory.mktemp("hosted"), embedded=True, cpu_slots=1))
    yield backend
    backend.stop()


@pytest.fixture(scope="module", params=["http", "embedded"])
def backend(request: pytest.FixtureRequest, engine: str) -> Iterator[Backend]:
    """Return each kind of backend, with one CPU slot."""
    if request.param == "embedded":
        yield request.getfixturevalue("embedded" if engine == "local" else "hosted")
        return
    running: Server = request.getfixturevalue("server")
    http = HttpBackend(running.url, running.token)
    yield http
    http.close()


@pytest.fixture
def client(backend: Backend) -> Iterator[Client]:
    """Return a client of each backend, and close it at the end: coroutines leave its subscription to events open."""
    with Client(backend) as client:
        yield client


over_http = pytest.mark.parametrize("backend", ["http"], indirect=True)
"""Mark of tests with a server only, because the transport makes no difference to them."""


def intercept(patch: pytest.MonkeyPatch, backend: Backend, endpoint: Endpoint[Any], before: Callable[[Any], object]) -> None:
    """Call `before(body)` before each call of `endpoint`."""
    call = backend.call

    def intercepted(called: Endpoint[Any], *ids: str, **options: Any) -> Any:
        if called is endpoint:
            before(options.get("body"))
        return call(called, *ids, **options)

    patch.setattr(backend, "call", intercepted)
