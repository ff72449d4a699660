"""Short run of schemathesis; `make bench BENCH_ARGS=schemathesis` runs it for longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.schemathesis_run import failures, installed
from tests.support import STANDALONE, TOKEN, Server, running_server

pytestmark = pytest.mark.skipif(not installed(), reason="schemathesis is not installed")

SECONDS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("schemathesis"), STANDALONE, token=TOKEN) as server:
        yield server


@pytest.mark.parametrize("token", [True, False])
def test_generated_requests_get_documented_answers(server: Server, token: bool) -> None:
    assert failures(server, SECONDS, seed=1, token=token) == ""
    assert server.get("/health")["status"] == "healthy"
