"""Short run of schemathesis; `make bench BENCH_ARGS=schemathesis` runs it for longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.schemathesis_run import failures
from tests.support import STANDALONE, TOKEN, Server, running_server

SECONDS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("schemathesis"), STANDALONE, token=TOKEN) as server:
        yield server


@pytest.mark.parametrize("token", [True, False])
def test_generated_requests_get_documented_answers(server: Server, token: bool) -> None:
    assert failures(server, SECONDS, seed=1, token=token) == ""
    assert server.get("/health")["status"] == "healthy"
