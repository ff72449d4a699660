"""Base classes of the handlers: identity, permissions, bounded bodies and the envelope."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import cached_property, partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from jupyter_server.auth.authorizer import Authorizer
from jupyter_server.auth.decorator import allow_unauthenticated, authorized, ws_authenticated
from jupyter_server.auth.identity import IdentityProvider, User
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.prometheus.log_functions import prometheus_log_method
from jupyter_server.utils import ensure_async, url_path_join
from pydantic import BaseModel
from pydantic_core import to_json
from tornado import web
from tornado.iostream import StreamClosedError

from openruntime_jupyter import __version__
from openruntime_jupyter.errors import BodyTooLarge, NotAllowed, Unavailable
from openruntime_jupyter.runtime.large import LARGE, in_thread
from openruntime_jupyter.schemas.ai import AiTask
from openruntime_jupyter.schemas.endpoints import ENVELOPE, REQUEST_HEADERS, RESPONSE_HEADERS, VERSION_HEADER, Endpoint
from openruntime_jupyter.schemas.tasks import Task
from openruntime_jupyter.server.auth.identity import ExplainedRefusal, LocalUser, OwnUser, owner_of
from openruntime_jupyter.server.http.errors import Problem, envelope, enveloped, problem_of
from openruntime_jupyter.server.http.requests import Preference, QueryModel, read_json, read_query
from openruntime_jupyter.server.services import SERVICES, STALLED_SECONDS, Services

if TYPE_CHECKING:
    from tornado.http1connection import HTTP1Connection

    from openruntime_jupyter.ai.service import AiService
    from openruntime_jupyter.runtime.runtime import Caller, Runtime

RESOURCE = "openruntime"
BODY_SLACK = 65_536
"""Maximum size of a body in bytes, in addition to the task's parameters."""
SLOWEST = 10_000
"""Minimum mean speed of a body in bytes per second after its first `STALLED_SECONDS`."""
MOST_HELD = 128_000_000
"""Maximum size of all bodies together that are not parsed yet, in bytes. Small bodies are received beyond it."""


class NotLoggedIn(NotAllowed):
    """Request without a valid token or login."""


NOT_LOGGED_IN = "Not logged in: log in, or send the server's token as `Authorization: token <token>`"
OTHER_PAGE = "Pages from {} are not allowed to use this server: set ServerApp.allow_origin, or send the token"

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")
Verb = TypeVar("Verb", bound=Callable[..., Any])


def serves(endpoint: Endpoint[Any]) -> Callable[[Verb], Verb]:
    """Return a decorator that binds a handler method to its endpoint and checks login and permission before each call.

    A WebSocket checks its permission itself, while the response can still be an HTTP error.
    """

    def bind(verb: Verb) -> Verb:
        guarded: Any = ws_authenticated(verb) if endpoint.messages is not None else protected(verb, endpoint.action)
        guarded.endpoint = endpoint
        return cast("Verb", guarded)

    return bind


def protected(verb: Verb, action: str | None = None) -> Verb:
    """Decorate a handler method: check login and permission before each call, and send the error of an earlier check."""
    permitted = authorized(action)(verb) if action else authorized(verb)

    @wraps(verb)
    async def checked(self: Handler, *ids: str) -> None:
        self.end_wait()  # the body is complete
        self.raise_refusal()
        await permitted(self, *ids)

    return cast("Verb", web.authenticated(checked))


def endpoint_of(handler: type[web.RequestHandler], verb: str) -> Endpoint[Any] | None:
    """Return the endpoint of a handler's method, or None."""
    found: Endpoint[Any] | None = getattr(getattr(handler, verb.lower()), "endpoint", None)
    return found


class BaseHandler(ExplainedRefusal, JupyterHandler):
    """Base class of all handlers of this extension. Notebooks of this server authenticate with the secret that they inherit."""

    auth_resource = RESOURCE
    is_websocket = False
    _leave: Callable[[], None] | None = None
    _left = False

    def set_default_headers(self) -> None:
        """Add the version of this package to every response, including errors."""
        super().set_default_headers()
        self.set_header(VERSION_HEADER, __version__)

    def set_cors_headers(self) -> None:
        """Add Jupyter's headers for pages of other origins, and name the headers that they may read."""
        super().set_cors_headers()
        if self.get_origin() is not None:
            self.set_header("Access-Control-Expose-Headers", ", ".join(RESPONSE_HEADERS))

    @property
    def services(self) -> Services:
        """Return what the server shares with its handlers."""
        return cast("Services", self.settings[SERVICES])

    @property
    def user(self) -> User | None:
        """Return the current user; None without a login and before authentication."""
        user: User | None = getattr(self, "_jupyter_current_user", None)
        return user

    @cached_property
    def from_notebook(self) -> bool:
        """True if the request has the secret of this server run."""
        return self.services.notebooks.presented_by(self)

    @cached_property
    def identity_provider(self) -> IdentityProvider:
        """The identity provider of the server, or the one for its notebooks."""
        return self.services.notebooks if self.from_notebook else super().identity_provider

    @cached_property
    def authorizer(self) -> Authorizer:
        """The authorizer of the server. Its notebooks get all permissions, because they run with the server's permissions anyway."""
        return self.services.notebooks.authorizer if self.from_notebook else super().authorizer

    async def prepare(self, **options: Any) -> None:
        """Authenticate the request and apply the rate limits, on every route and method including unknown ones."""
        try:
            await self._authenticate(**options)
        finally:
            # Rejected requests count as well, which slows down attempts to guess tokens.
            self.admit()

    def admit(self) -> None:
        """Count the request; raises `RateLimited`."""
        limits = self.services.limits
        if limits.on:
            self._leave = limits.enter(limits.client(self.request, owner_of(self.user)), self.is_websocket)
            if self._left:
                self.leave()

    def leave(self) -> None:
        """Release the slot of the request when it or its connection ends."""
        self._left = True
        if self._leave is not None:
            self._leave()
            self._leave = None

    def on_finish(self) -> None:
        """Release the slot of the request after the response is sent."""
        super().on_finish()
        self.leave()

    def on_connection_close(self) -> None:
        """Release the slot of the request when the client disconnects."""
        super().on_connection_close()
        self.leave()

    def check_host(self) -> bool:
        """Apply Jupyter's check of the Host header, and explain a rejection."""
        if not super().check_host():
            raise NotAllowed(
                f"{self.request.host!r} is not a local host name: use localhost or 127.0.0.1, or allow the name by "
                "ServerApp.local_hostnames or ServerApp.allow_remote_access"
            )
        return True

    async def _authenticate(self, **options: Any) -> None:
        try:
            # Jupyter checks host, identity, XSRF token and origin. A wrong origin is a 404 without an explanation.
            await super().prepare(**options)
        except web.HTTPError as problem:
            if problem.status_code == 404:
                raise NotAllowed(OTHER_PAGE.format(self.request.headers.get("Origin"))) from None
            if problem.status_code != 403 or self.user is not None:
                raise
            raise NotLoggedIn(self.refusal or NOT_LOGGED_IN) from None
        if self.user is None and self.request.method != "OPTIONS":
            raise NotLoggedIn(self.refusal or NOT_LOGGED_IN)

    async def allowed(self, action: str, resource: str = RESOURCE) -> bool:
        """Return True if the authorizer allows this action of the user."""
        assert self.user is not None
        return bool(await ensure_async(self.authorizer.is_authorized(self, self.user, action, resource)))

    async def caller(self, operation: str | None = None) -> Caller:
        """Return the runtime's `Caller` for a request of one operation, or of any operation."""
        from openruntime_jupyter.runtime.tasks.submission import Caller, needs_execute

        trusted = not isinstance(self.user, LocalUser)
        # Only if necessary: the authorizer may query a remote service.
        needs_permission = trusted and (operation is None or needs_execute(operation))
        may_execute = needs_permission and await self.allowed("execute", "kernels")
        # Without peer credentials, the client may be any user of the machine.
        may_spend = trusted or isinstance(self.user, OwnUser)
        return Caller(owner=owner_of(self.user), may_execute=may_execute, trusted=trusted, may_spend=may_spend)

    async def runtime(self) -> Runtime:
        """Return the runtime after its start; raises `Unavailable` with the reason if it is not running."""
        return await self.services.ready()

    async def ai(self) -> AiService:
        """Return the AI service after the start of the runtime; raises the errors of `runtime`."""
        await self.services.ready()
        assert self.services.ai is not None
        return self.services.ai

    def query(self, model: type[QueryModel]) -> QueryModel:
        """Return the query as a `model`; raises `InvalidRequest`."""
        return read_query(model, {name: self.get_query_arguments(name) for name in model.model_fields})

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Send the error; see `server/http/errors.py`."""
        info = kwargs.get("exc_info")
        self.send_problem(problem_of(info[1] if info else None, status_code))

    def send_problem(self, problem: Problem) -> None:
        """Send an error as the response."""
        self.set_status(problem.status)
        if hasattr(self, "_jupyter_current_user"):  # tornado removed the headers that were set after the authentication
            self.set_cors_headers()
        for name, value in problem.headers.items():
            self.set_header(name, value)
        if problem.status == 405:
            self.set_header("Allow", ", ".join(self.verbs()))
        self.set_header("Content-Type", "application/json")
        self.finish(to_json(self.error_body(problem)))

    def error_body(self, problem: Problem) -> dict[str, Any]:
        """Return the body of an error response."""
        return envelope(problem)

    def _log(self) -> None:
        """Write the access log like Jupyter, but log status 503 as a warning, because it is not a fault of the server."""
        if self.get_status() != 503:
            super()._log()
            return
        request = self.request
        self.log.warning("503 %s %s (%s) %.2fms", request.method, request.path, request.remote_ip, 1000 * request.request_time())
        if self.services.options.record_http_metrics:
            prometheus_log_method(self)  # type: ignore[no-untyped-call]

    def log_exception(self, *_: Any) -> None:
        """Do nothing: `problem_of` logs faults, and the access log has the other errors."""

    def verbs(self) -> list[str]:
        """Return the HTTP methods of this route."""
        return [
            verb for verb in self.SUPPORTED_METHODS if getattr(type(self), verb.lower()) is not getattr(web.RequestHandler, verb.lower())
        ]


@web.stream_request_body
class Handler(BaseHandler, APIHandler):
    """Base class of the REST handlers.

    Bodies are received in chunks after the checks, so that rejected bodies use no memory and count for the rate limits. They are read
    to the end anyway, because clients do not read the response while they are sending.
    """

    def __init_subclass__(cls) -> None:
        """Handle HEAD like GET; tornado omits the body."""
        super().__init_subclass__()
        if "get" in vars(cls):
            cls.head = cls.get

    @allow_unauthenticated
    def options(self, *ids: str) -> None:
        """Respond to a browser's question whether a page of another origin may send a request with its headers."""
        super().options(*ids)
        allowed = self._headers["Access-Control-Allow-Headers"]
        self.set_header("Access-Control-Allow-Headers", ", ".join([allowed, *REQUEST_HEADERS]))

    def initialize(self) -> None:
        """Set the initial state of the request."""
        self._body = bytearray()
        self._size = 0
        self._expected: int | None = None
        self._begun = 0.0
        self._patience: asyncio.TimerHandle | None = None
        self._refused: Exception | None = None
        self._closed: Callable[[], Any] | None = None
        self._is_closed = False
        self._prepared = False

    async def prepare(self) -> None:  # type: ignore[override]
        """Check the request before its body is received. Send errors after the body has been read."""
        self._prepared = True
        try:
            await super().prepare()
        except Exception as problem:
            self.refuse(problem)
        self.await_body()

    def await_body(self) -> None:
        """Wait for the next chunk of the body, if there is one, for a limited time."""
        headers = self.request.headers
        if not self._begun:
            length = headers.get("Content-Length", "0")
            chunked = "Transfer-Encoding" in headers or not length.isdecimal()
            self._expected = None if chunked else int(length)
        if self._is_closed or self._expected == self._size:
            return
        loop = asyncio.get_running_loop()
        self._begun = self._begun or loop.time()
        left = self._begun + STALLED_SECONDS + self._size / SLOWEST - loop.time()
        self._patience = loop.call_later(min(STALLED_SECONDS, max(0.0, left)), self.send_error, 408)

    def end_wait(self) -> None:
        """Stop waiting for a chunk of the body."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def data_received(self, chunk: bytes) -> None:
        """Append a chunk to the body."""
        self.end_wait()
        self._size += len(chunk)
        if self._refused is None:
            self._keep(chunk)
        self.await_body()

    def _keep(self, chunk: bytes) -> None:
        limit = self.services.options.max_parameters_bytes + BODY_SLACK
        if self._size > limit:
            self.refuse(BodyTooLarge(f"The body is larger than {limit} bytes: reduce it, or raise OpenRuntimeApp.max_parameters_bytes"))
        elif self._size > LARGE and self.services.held_bytes + len(chunk) > max(MOST_HELD, 2 * limit):
            self.refuse(Unavailable("The server is receiving too many large bodies: send this one again", retry_after=5.0))
        else:
            self._body += chunk
            self.services.held_bytes += len(chunk)
            return
        self.drop_body()

    def drop_body(self) -> None:
        """Free the memory of the body."""
        self.services.held_bytes -= len(self._body)
        self._body = bytearray()

    def on_finish(self) -> None:
        """Free the body after the response."""
        super().on_finish()
        self.end_wait()
        self.drop_body()

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Send the error. Close the connection if the body is not read to its end: it stalled, or the request line is invalid."""
        if not self._prepared or status_code == 408:
            self.set_header("Connection", "close")
        if self._refused is not None:  # it counts more than an unknown method
            kwargs["exc_info"] = (type(self._refused), self._refused, None)
        super().write_error(status_code, **kwargs)

    def refuse(self, problem: Exception) -> None:
        """Respond with `problem` after the body has been read."""
        self._refused = problem

    def raise_refusal(self) -> None:
        """Raise the error of an earlier check, if there is one."""
        if self._refused is not None:
            raise self._refused

    def check_xsrf_cookie(self) -> None:
        """Apply Jupyter's check, except for local users without a token, who passed the stricter check of `identity.py`."""
        if not isinstance(self.user, LocalUser):
            super().check_xsrf_cookie()

    @property
    def is_large(self) -> bool:
        """True if the body is large; see `runtime/large.py`."""
        return self._size > LARGE

    async def body(self, model: type[Model]) -> Model:
        """Return the body as a `model`; raises `MalformedRequest`, `BodyTooLarge` or `InvalidRequest`."""
        headers = self.request.headers
        read = partial(read_json, model, self._body, headers.get("Content-Type"), headers.get("Content-Encoding"))
        try:
            return await in_thread(read) if self.is_large else read()
        finally:
            self.drop_body()

    def reply(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send `data` (a wire type, or a dict of them) as JSON, in the envelope if the client accepts it."""
        self.send(to_json(data, inf_nan_mode="null"), status, headers)

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send encoded JSON, in the envelope if the client accepts it."""
        self.set_status(status)
        for name, value in (headers or {}).items():
            self.set_header(name, value)
        self.set_header("Vary", "Accept")
        if ENVELOPE in self.request.headers.get("Accept", ""):
            self.finish(enveloped(content), set_content_type=ENVELOPE)
        else:
            self.finish(content)

    async def reply_changed(self, data: Any) -> None:
        """Send a changed record, or nothing to a client without the permission to read."""
        if await self.allowed("read"):
            self.reply(data)
        else:
            self.set_status(204)
            self.finish()

    async def write_chunk(self, chunk: bytes = b"") -> None:
        """Write a chunk of the response and wait until the client has received it, for at most `STALLED_SECONDS`.

        Raises tornado's `Finish` if the client has disconnected.
        """
        self.write(chunk)
        timeout = asyncio.get_running_loop().call_later(STALLED_SECONDS, self._disconnect)
        try:
            await self.flush()
        except StreamClosedError:
            raise web.Finish from None
        finally:
            timeout.cancel()

    def _disconnect(self) -> None:
        connection = cast("HTTP1Connection", self.request.connection)
        self.log.info("%s stopped reading the response of %s: closing the connection", self.request.remote_ip, self.request.path)
        connection.stream.close()

    async def while_connected(self, work: Coroutine[Any, Any, Value], on_disconnect: Callable[[], Any] | None = None) -> Value:
        """Return the result of `work`. If the client disconnects, cancel `work` and call `on_disconnect()`.

        Raises tornado's `Finish` if the client has disconnected.
        """
        # Cancels the task of the request, because a separate task for `work` would delay every request by some loop iterations.
        request = asyncio.current_task()
        assert request is not None
        self._closed = request.cancel
        try:
            if not self._is_closed:
                return await work
            work.close()
        except asyncio.CancelledError:
            if not self._is_closed:
                raise
            getattr(request, "uncancel", bool)()  # missing in Python 3.10, and not needed there
        finally:
            self._closed = None
        if on_disconnect is not None:
            on_disconnect()
        raise web.Finish

    def on_connection_close(self) -> None:
        """Cancel the request's work when the client disconnects."""
        super().on_connection_close()
        self._is_closed = True
        self.end_wait()
        self.drop_body()
        if self._closed is not None:
            self._closed()

    def update_api_activity(self) -> None:
        """Count only modifying requests as activity, so that an open dashboard does not prevent culling of the server."""
        if self.request.method not in ("GET", "HEAD", "OPTIONS"):
            super().update_api_activity()


class WaitingMixin(Handler):
    """Handler of submissions, which cancels a task when all clients that wait for it have disconnected."""

    def locate(self, task_id: str) -> None:
        """Set the URL of the task."""
        self.set_header("Location", url_path_join(self.services.options.url_path, "tasks", task_id))

    def reply_accepted(self, task: Task | AiTask, preference: Preference) -> None:
        """Respond to an asynchronous submission: 200 if the task finished within the preferred wait, otherwise 202."""
        if preference.applied is not None:
            self.set_header("Preference-Applied", preference.applied)
        if preference.wait is not None and task.status.terminal:
            self.reply(task)
        else:
            self.locate(task.task_id)
            self.reply(task, 202)

    async def while_wanted(self, runtime: Runtime, task_id: str, work: Coroutine[Any, Any, Value]) -> Value:
        """Return the result of `work`, which waits for the task. Cancel the task when its last waiting client disconnects."""
        waiters = self.services.waiters
        waiters[task_id] += 1

        def on_disconnect() -> None:
            if waiters[task_id] == 1:
                self.services.in_background(runtime.cancel(task_id))

        try:
            return await self.while_connected(work, on_disconnect)
        finally:
            waiters[task_id] -= 1
            if waiters[task_id] == 0:
                del waiters[task_id]
