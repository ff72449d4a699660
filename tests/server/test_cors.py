"""Headers for pages of other origins, on a server that allows one of them. `tests/browser/test_cors.py` uses a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from openruntime_jupyter import __version__
from tests.server.conftest import error_of
from tests.support import JUPYTER, STANDALONE, Server, running_server

PAGE = "https://app.example"
ALLOWED = "Access-Control-Allow-Origin"


@pytest.fixture(scope="module", params=["jupyter", "standalone"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    command = JUPYTER if request.param == "jupyter" else STANDALONE
    with running_server(tmp_path_factory.mktemp("cors"), command, config={"ServerApp": {"allow_origin": PAGE}}) as server:
        yield server


def names(response: httpx.Response, header: str) -> set[str]:
    """Return the names in a header, in lower case."""
    return {name.strip().lower() for name in response.headers[header].split(",")}


def test_preflight_allows_headers_of_api(server: Server) -> None:
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}
    response = server.client.options(f"{server.url}/tasks", headers=headers)
    assert response.headers[ALLOWED] == PAGE
    ours = {"idempotency-key", "prefer", "range", "last-event-id", "openruntime-lease"}
    assert {"accept", "content-type", "authorization", *ours} <= names(response, "Access-Control-Allow-Headers")


def test_response_exposes_headers_of_api(server: Server) -> None:
    response = server.request("GET", "/health", headers={"Origin": PAGE})
    assert response.headers[ALLOWED] == PAGE
    assert response.headers["OpenRuntime-Version"] == __version__
    ours = {
        "openruntime-version",
        "retry-after",
        "location",
        "preference-applied",
        "etag",
        "content-range",
        "x-openruntime-encoding",
        "x-request-id",
    }
    assert names(response, "Access-Control-Expose-Headers") == ours


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [("/tasks/task_0", True, 404), ("/nowhere", True, 404), ("/tasks?limit=0", True, 422), ("/tasks", False, 403)],
)
def test_page_can_read_errors(server: Server, path: str, token: bool, status: int) -> None:
    headers = {"Origin": PAGE, "Authorization": f"token {server.token if token else 'wrong'}"}
    response = server.client.get(server.url + path, headers=headers)
    error_of(response, status)
    assert response.headers[ALLOWED] == PAGE
    assert "retry-after" in names(response, "Access-Control-Expose-Headers")


def test_same_origin_response_has_no_headers_for_other_pages(server: Server) -> None:
    assert "Access-Control-Expose-Headers" not in server.request("GET", "/health").headers
