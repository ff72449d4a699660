"""Requests to a real Jupyter Server, compared with a bare authenticated `APIHandler` of the same server."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx

from benchmarks.rows import Row, at_most, median, seconds
from tests.support import JUPYTER, Home, Server, running_server

ROUNDS = 7
CALLS = 150

NAME = "openruntime_bare"
"""Name of the peer's extension. Jupyter adds and searches routes in the order of names, so its route comes just before ours."""

BARE = """
import json
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

class Bare(APIHandler):
    auth_resource = "bare"

    @web.authenticated
    @authorized
    def get(self):
        self.finish(json.dumps({"status": "ok"}))

    @web.authenticated
    @authorized
    def post(self):
        self.finish(json.dumps(json.loads(self.request.body)))

def _load_jupyter_server_extension(app):
    app.web_app.add_handlers(".*", [(app.base_url + "bare", Bare)])

def _jupyter_server_extension_points():
    return [{"module": "openruntime_bare"}]
"""


def in_turns(server: Server, one: Callable[[httpx.Client], object], other: Callable[[httpx.Client], object]) -> tuple[float, float]:
    """Return the median milliseconds of both, on one keep-alive connection."""
    ours, peers = [], []
    with httpx.Client(trust_env=False, headers=server.headers, timeout=60.0) as client:
        for each in (one, other):
            seconds(partial(each, client), 50)
        for _ in range(ROUNDS):
            ours.append(median(seconds(lambda: one(client), CALLS)))
            peers.append(median(seconds(lambda: other(client), CALLS)))
    return 1000 * median(ours), 1000 * median(peers)


def rows() -> list[Row]:
    """Measure `POST /tasks` with an empty task, and `GET /metrics`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{NAME}.py").write_text(BARE)
        home = Home(folder / "home")
        path = os.pathsep.join((str(folder), home.environment()["PYTHONPATH"]))
        config = {"ServerApp": {"jpserver_extensions": {"openruntime_jupyter": True, NAME: True}}}
        with running_server(home, JUPYTER, config=config, environment={"PYTHONPATH": path}) as server:
            body = json.dumps({"operation": "call", "parameters": {"burst": "benchmark"}})
            kind = {"Content-Type": "application/json"}
            post, bare_post = in_turns(
                server,
                lambda client: client.post(f"{server.url}/tasks", content=body, headers=kind).raise_for_status(),
                lambda client: client.post(f"{server.root}/bare", content=body, headers=kind).raise_for_status(),
            )
            get, bare_get = in_turns(
                server,
                lambda client: client.get(f"{server.url}/metrics").raise_for_status(),
                lambda client: client.get(f"{server.root}/bare").raise_for_status(),
            )
    return [
        at_most("POST /tasks, empty work, p50, compared with a bare handler", post, bare_post, 1.35, "ms"),
        at_most("GET /metrics, p50, compared with a bare handler", get, bare_get, 1.1, "ms"),
    ]
