"""Protection of users with a login cookie by Jupyter's checks of XSRF token and origin."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.server.conftest import error_of
from tests.support import JUPYTER, Server, running_server

QUICK = {"operation": "matrix_multiply", "parameters": {"size": 8, "iterations": 1}}
EVIL = "https://evil.example"


@pytest.fixture
def browser(jupyter: Server) -> Iterator[httpx.Client]:
    """Return a client with a login cookie, like a browser after Jupyter's login page."""
    with httpx.Client(trust_env=False, base_url=jupyter.url, timeout=30) as client:
        page = client.get(f"{jupyter.root}/login", params={"token": str(jupyter.token)}, follow_redirects=True)
        assert page.is_success
        assert any(name.startswith("username-") for name in client.cookies)
        yield client


def test_same_origin_page_reads_and_writes_with_xsrf_token(browser: httpx.Client) -> None:
    assert browser.get("/tasks").status_code == 200
    xsrf = browser.cookies["_xsrf"]
    response = browser.post("/tasks", json=QUICK, headers={"X-XSRFToken": xsrf})
    assert (response.status_code, response.json()["status"]) == (200, "completed")


@pytest.mark.parametrize("verb", ["POST", "PATCH", "DELETE"])
def test_cookie_without_xsrf_token_cannot_write(browser: httpx.Client, verb: str) -> None:
    path = "/tasks" if verb == "POST" else "/tasks/task_0"
    told = error_of(browser.request(verb, path), 403)
    assert "X-XSRFToken" in told["error"]
    told = error_of(browser.request(verb, path, headers={"X-XSRFToken": "2|wrong|wrong|1"}), 403)
    assert "X-XSRFToken" in told["error"]


def test_foreign_origin_with_cookie_is_rejected(browser: httpx.Client) -> None:
    headers = {"Origin": EVIL, "X-XSRFToken": browser.cookies["_xsrf"]}
    for response in (browser.get("/tasks", headers=headers), browser.post("/tasks", json=QUICK, headers=headers)):
        assert EVIL in error_of(response, 403)["error"]
        assert "Access-Control-Allow-Origin" not in response.headers


def test_foreign_origin_websocket_is_rejected(jupyter: Server, browser: httpx.Client) -> None:
    cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items())}
    with connect(jupyter.ws_url, additional_headers=cookie, proxy=None) as connection:
        assert "connected" in str(connection.recv(10))
    with pytest.raises(InvalidStatus) as caught:
        connect(jupyter.ws_url, additional_headers={**cookie, "Origin": EVIL}, proxy=None)
    assert caught.value.response.status_code == 403


def test_token_is_accepted_from_any_origin(jupyter: Server) -> None:
    assert jupyter.request("POST", "/tasks", json=QUICK, headers={"Origin": EVIL}).status_code == 200


def test_foreign_host_name_error_names_setting(jupyter: Server) -> None:
    told = error_of(jupyter.request("GET", "/health", headers={"Host": "evil.example"}), 403)
    assert "local_hostnames" in told["error"]


def test_host_check_cache_distinguishes_names(jupyter: Server) -> None:
    for host, status in (("localhost", 200), ("evil.example", 403), ("127.0.0.1", 200), ("evil.example", 403), ("[::1]:8888", 200)):
        assert jupyter.request("GET", "/health", headers={"Host": host}).status_code == status


def test_forged_cookie_is_rejected_despite_cache(jupyter: Server, browser: httpx.Client) -> None:
    name = next(name for name in browser.cookies if name.startswith("username-"))
    good = browser.cookies[name].strip('"')
    forged = good[:-1] + ("0" if good[-1] != "0" else "1")
    for value, status in ((good, 200), (forged, 403), ("", 403), (good, 200)):
        assert httpx.get(f"{jupyter.url}/health", headers={"Cookie": f'{name}="{value}"'}, trust_env=False).status_code == status


def test_routes_work_without_unauthenticated_access(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = {"ServerApp": {"allow_unauthenticated_access": False}}
    with running_server(tmp_path_factory.mktemp("strict"), JUPYTER, config=config) as server:
        assert "registered for /openruntime" not in server.tail(100_000)
        assert server.submit("matrix_multiply", QUICK["parameters"])["status"] == "completed"  # type: ignore[arg-type]
        error_of(server.client.get(f"{server.url}/health"), 403)
        with connect(server.ws_url, additional_headers=server.headers, proxy=None) as connection:
            assert "connected" in str(connection.recv(10))
