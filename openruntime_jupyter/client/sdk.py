"""Client of OpenRuntime over HTTP: submit tasks and prompts, follow them, and send arrays.

`openruntime-sdk` is built from this file, as its package's `__init__.py`, and from what it imports; see `sdks/python/hatch_build.py`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from openruntime_jupyter import __version__, errors
from openruntime_jupyter.client.ai_response import Reply, ToolRun
from openruntime_jupyter.client.array_data import ArrayData
from openruntime_jupyter.client.async_base import AsyncPromptHandle, AsyncTaskHandle, BaseAsyncClient, in_background
from openruntime_jupyter.client.base import BaseClient
from openruntime_jupyter.client.handles import Output, PromptHandle, TaskHandle
from openruntime_jupyter.errors import NotConnected, OpenRuntimeError
from openruntime_jupyter.schemas.base import loads
from openruntime_jupyter.schemas.endpoints import GET_OPENAPI, GET_SERVICE, LIST_TASKS_ENHANCED
from openruntime_jupyter.schemas.system import ServiceInfo
from openruntime_jupyter.schemas.tasks import TaskPage

__all__ = [
    "ArrayData",
    "AsyncClient",
    "AsyncPromptHandle",
    "AsyncTaskHandle",
    "Client",
    "OpenRuntimeError",
    "Output",
    "PromptHandle",
    "Reply",
    "TaskHandle",
    "ToolRun",
    "__version__",
    "connect",
    "errors",
]


class Client(BaseClient):
    """Client of a server, created by `connect()`.

    Thread-safe. All methods raise only the errors of `errors`: `InvalidRequest` for an invalid parameter, `NotConnected` if the server
    is unreachable.
    """

    def info(self) -> ServiceInfo:
        """Return the server's name, version and links."""
        return self.backend.call(GET_SERVICE)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document of the server."""
        document: dict[str, Any] = loads(self.backend.call(GET_OPENAPI))
        return document

    def enhanced(self, limit: int = 100, before: str | None = None, *, offset: int = 0) -> TaskPage:
        """Return a page of tasks, newest first, as the reference's `GET /tasks/enhanced`. `tasks` has filters too."""
        return self.backend.call(LIST_TASKS_ENHANCED, query={"limit": limit, "before": before, "offset": offset})

    @cached_property
    def aio(self) -> AsyncClient:
        """Return the asynchronous client: `await client.aio.run("compute", expression="1 + 1")`."""
        return AsyncClient(self)

    def close(self) -> None:
        """Close the connection, including that of `aio`. Tasks keep running."""
        if "aio" in vars(self):
            self.aio.let_go()
        super().close()


class AsyncClient(BaseAsyncClient):
    """Asynchronous client of a server, available as `client.aio`. Cancelling `run` cancels the task."""

    client: Client

    async def info(self) -> ServiceInfo:
        """Return the server's name, version and links."""
        return await in_background(self.client.info)

    async def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document of the server."""
        return await in_background(self.client.openapi)

    async def enhanced(self, limit: int = 100, before: str | None = None, *, offset: int = 0) -> TaskPage:
        """Return a page of tasks; see `Client.enhanced`."""
        return await in_background(self.client.enhanced, limit, before, offset=offset)


def connect(url: str | None = None, token: str | None = None) -> Client:
    """Return a client of the server at `url`, or of a server on this machine.

    Parameters
    ----------
    url
        A stand-alone server (`http://127.0.0.1:8000`) or a Jupyter Server (`http://127.0.0.1:8888/`, also with `?token=…` as Jupyter
        prints it). The default is the Jupyter Server that started this kernel, else a stand-alone server of this user.
    token
        Access token of the server. That of this user's stand-alone server is found automatically.

    Raises
    ------
    NotConnected
        If `url` does not respond, or no server was found on this machine.
    NotAllowed
        If the token is missing or invalid.
    InvalidRequest
        If `url` is not a valid URL.
    """
    # Imports httpx, which takes a third of the time of all other imports.
    from openruntime_jupyter.client.local_servers import announced, answering, at_url, stand_alone

    found = at_url(url, token) if url is not None else answering(announced()) or stand_alone()
    if found is None:
        raise NotConnected("No server was found on this machine: start one with `jupyter openruntime`, or give connect() a url")
    return Client(found, origin="sdk")
