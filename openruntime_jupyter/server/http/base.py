"""What every handler of ours has in common: identity, permission, bounded bodies, the envelope."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

from jupyter_server.auth.authorizer import Authorizer
from jupyter_server.auth.identity import IdentityProvider, User
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.prometheus.log_functions import prometheus_log_method
from jupyter_server.utils import ensure_async
from pydantic import BaseModel
from pydantic_core import to_json
from tornado import web
from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError

from openruntime_jupyter.errors import BodyTooLarge, NotAllowed
from openruntime_jupyter.server.auth.identity import LocalUser, OwnUser, owner_of
from openruntime_jupyter.server.http.errors import envelope, enveloped, problem_of
from openruntime_jupyter.server.http.requests import read_json, read_query

if TYPE_CHECKING:
    from tornado.http1connection import HTTP1Connection

    from openruntime_jupyter.ai.service import AiService
    from openruntime_jupyter.runtime.runtime import Caller, Runtime
    from openruntime_jupyter.server.app import OpenRuntimeApp

RESOURCE = "openruntime"
ENVELOPE = "application/vnd.openruntime.envelope+json"
BODY_SLACK = 65_536
"""Bytes of a body beyond a task's parameters."""
STALLED_SECONDS = 120.0
"""How long an upload may pause, and a piece of a download wait to be taken. Past that the client is taken for gone: a machine that was cut
off says no goodbye."""

FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")

NOBODY = "Nobody is logged in: log in, or send the server's token as `Authorization: token <token>`"
OTHER_PAGE = "Pages from {} may not use this server: allow that by ServerApp.allow_origin, or send the token"

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")


class BaseHandler(JupyterHandler):
    """A handler of this extension: a notebook of this server may come with the secret that it inherited from it."""

    auth_resource = RESOURCE
    refusal: str | None = None
    """Why the identity provider let nobody in, where it can say more than that."""
    is_websocket = False
    _cookie: tuple[tuple[Any, ...], bytes | None] | None = None
    _leave: Callable[[], None] | None = None
    _left = False

    @property
    def app(self) -> OpenRuntimeApp:
        """The extension."""
        return cast("OpenRuntimeApp", self.settings[RESOURCE])

    @property
    def user(self) -> User | None:
        """Who asks; None for nobody, and before that is known."""
        user: User | None = getattr(self, "_jupyter_current_user", None)
        return user

    @cached_property
    def from_notebook(self) -> bool:
        """Whether the request carries the secret of this server run."""
        return self.app.notebooks.presented_by(self)

    @cached_property
    def identity_provider(self) -> IdentityProvider:
        """The server's own, except for its notebooks."""
        return self.app.notebooks if self.from_notebook else super().identity_provider

    @cached_property
    def authorizer(self) -> Authorizer:
        """The server's own; its notebooks run with the server's permissions anyway."""
        return self.app.notebooks.authorizer if self.from_notebook else super().authorizer

    async def prepare(self, **options: Any) -> None:
        """Let in whom Jupyter knows, as often as they may, on every route and verb, those that do not exist included."""
        try:
            await self._let_in(**options)
        finally:
            # Who is refused counts too, or nothing would slow down whoever guesses tokens.
            self.admit()

    def admit(self) -> None:
        """Count the request; raises `RateLimited`."""
        limits = self.app.limits
        if limits.on:
            self._leave = limits.enter(limits.client(self.request, owner_of(self.user)), self.is_websocket)
            if self._left:
                self.leave()

    def leave(self) -> None:
        """The request has ended, or the connection has."""
        self._left = True
        if self._leave is not None:
            self._leave()
            self._leave = None

    def on_finish(self) -> None:
        """The answer is sent."""
        super().on_finish()
        self.leave()

    def on_connection_close(self) -> None:
        """The client has gone."""
        super().on_connection_close()
        self.leave()

    def check_host(self) -> bool:
        """Jupyter's, which `prepare` asks first of all; it would refuse without saying why."""
        host = self.request.host
        if host == self.app.known_host:
            return True
        if not super().check_host():
            raise NotAllowed(
                f"{host!r} is no local name: ask for localhost or 127.0.0.1, or tell the server about the name by "
                "ServerApp.local_hostnames or ServerApp.allow_remote_access"
            )
        self.app.known_host = host
        return True

    def get_secure_cookie(
        self, name: str, value: str | None = None, max_age_days: float = 31, min_version: int | None = None
    ) -> bytes | None:
        """Tornado's, whose answer is kept: Jupyter asks twice a request for the same one, and each time its signature is reckoned."""
        asked = (name, value, max_age_days, min_version)
        if self._cookie is None or self._cookie[0] != asked:
            self._cookie = asked, super().get_secure_cookie(name, value, max_age_days, min_version)
        return self._cookie[1]

    async def _let_in(self, **options: Any) -> None:
        try:
            # Jupyter's own: host, identity, XSRF, and the origin, whose answer is a 404 that explains nothing.
            await super().prepare(**options)
        except web.HTTPError as problem:
            if problem.status_code == 404:
                raise NotAllowed(OTHER_PAGE.format(self.request.headers.get("Origin"))) from None
            if problem.status_code != 403 or self.user is not None:
                raise
            raise NotAllowed(self.refusal or NOBODY) from None
        if self.user is None and self.request.method != "OPTIONS":
            raise NotAllowed(self.refusal or NOBODY)

    async def allowed(self, action: str, resource: str = RESOURCE) -> bool:
        """Whether the authoriser lets this user do that."""
        assert self.user is not None
        return bool(await ensure_async(self.authorizer.is_authorized(self, self.user, action, resource)))

    async def caller(self, operation: str | None = None) -> Caller:
        """Who asks for this operation, or for several, in the runtime's words."""
        from openruntime_jupyter.runtime.tasks.validation import Caller, minds_execute

        trusted = not isinstance(self.user, LocalUser)
        # An authoriser may ask somebody far away.
        asked = trusted and (operation is None or minds_execute(operation))
        may_execute = asked and await self.allowed("execute", "kernels")
        # Where the system does not tell who is at the other end, it may be any user of the machine.
        may_spend = trusted or isinstance(self.user, OwnUser)
        return Caller(owner=owner_of(self.user), may_execute=may_execute, trusted=trusted, may_spend=may_spend)

    async def runtime(self) -> Runtime:
        """The runtime, once it is started; raises `Unavailable` with the reason where it is not."""
        return await self.app.ready()

    async def ai(self) -> AiService:
        """What answers prompts, once the runtime is started; raises what `runtime` raises."""
        await self.app.ready()
        assert self.app.ai is not None
        return self.app.ai

    def query(self, model: type[Model]) -> Model:
        """The query as a `model`; raises `InvalidRequest`."""
        return read_query(model, {name: self.get_query_arguments(name) for name in model.model_fields})

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Every error is the envelope; see `server/http/errors.py`."""
        info = kwargs.get("exc_info")
        problem = problem_of(info[1] if info else None, status_code)
        self.set_status(problem.status)
        for name, value in problem.headers.items():
            self.set_header(name, value)
        if problem.status == 405:
            self.set_header("Allow", ", ".join(self.verbs()))
        self.set_header("Content-Type", "application/json")
        self.finish(to_json(envelope({"details": problem.details} if problem.details else None, problem.message)))

    def _log(self) -> None:
        """Jupyter's access log; but what is refused for a while is no fault of the server, in whose log it would stand as one."""
        if self.get_status() != 503:
            super()._log()
            return
        request = self.request
        self.log.warning("503 %s %s (%s) %.2fms", request.method, request.path, request.remote_ip, 1000 * request.request_time())
        if getattr(self.app.server, "record_http_request_metrics", True):
            prometheus_log_method(self)  # type: ignore[no-untyped-call]

    def log_exception(self, *_: Any) -> None:
        """Nothing: `problem_of` logs what is a fault, and the access log the rest."""

    def verbs(self) -> list[str]:
        """The methods that this route has."""
        return [
            verb for verb in self.SUPPORTED_METHODS if getattr(type(self), verb.lower()) is not getattr(web.RequestHandler, verb.lower())
        ]


class Handler(BaseHandler, APIHandler):
    """The base of the REST handlers.

    Large bodies are taken in pieces (see `suited`), so that one which is too large, or which nobody may send, costs no memory. It is read
    to its end all the same, since a client that still sends does not listen.
    """

    def __init_subclass__(cls) -> None:
        """HEAD is wherever GET is, and the same code: tornado leaves the body out."""
        super().__init_subclass__()
        if "get" in vars(cls):
            cls.head = cls.get

    def initialize(self) -> None:
        """Before anything is known."""
        self._body = bytearray()
        self._refused: Exception | None = None
        self._closed: Callable[[], Any] | None = None
        self._is_closed = False
        self._prepared = False

    async def prepare(self) -> None:  # type: ignore[override]
        """Check first, then take the body; what is wrong is answered once the body has passed."""
        self._prepared = True
        self._body += self.request.body  # where it came whole
        try:
            await super().prepare()
        except Exception as problem:
            self._refused = problem
        if self._refused is not None:
            setattr(self, (self.request.method or "get").lower(), self._refuse)

    def data_received(self, chunk: bytes) -> None:
        """A piece of the body."""
        if self._refused is not None:
            return
        limit = self.app.max_parameters_bytes + BODY_SLACK
        if len(self._body) + len(chunk) > limit:
            self._body = bytearray()
            self._refused = BodyTooLarge(
                f"The body is larger than {limit} bytes: make it smaller, or raise OpenRuntimeApp.max_parameters_bytes"
            )
            setattr(self, (self.request.method or "get").lower(), self._refuse)
        else:
            self._body += chunk

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """See `BaseHandler`. What is wrong with the very first line is answered before the body is read, and tornado closes after that."""
        if not self._prepared:
            self.set_header("Connection", "close")
        super().write_error(status_code, **kwargs)

    def refuse(self, problem: Exception) -> None:
        """Answer with `problem`, once the body has passed."""
        self._refused = problem
        setattr(self, (self.request.method or "get").lower(), self._refuse)

    def _refuse(self, *_: Any) -> None:
        assert self._refused is not None
        raise self._refused

    def check_xsrf_cookie(self) -> None:
        """Jupyter's check; who came without a token has passed the stricter one of `identity.py` already."""
        if not isinstance(self.user, LocalUser):
            super().check_xsrf_cookie()

    def body(self, model: type[Model]) -> Model:
        """The body as a `model`; raises `MalformedRequest` or `InvalidRequest`."""
        headers = self.request.headers
        return read_json(model, self._body, headers.get("Content-Type"), headers.get("Content-Encoding"))

    def reply(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer with `data`: a wire type, or a dict of them; in the envelope if the client accepts that."""
        self.send(to_json(data, inf_nan_mode="null"), status, headers)

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """`reply` with what is JSON already."""
        self.set_status(status)
        for name, value in (headers or {}).items():
            self.set_header(name, value)
        self.set_header("Vary", "Accept")
        if ENVELOPE in self.request.headers.get("Accept", ""):
            self.finish(enveloped(content), set_content_type=ENVELOPE)
        else:
            self.finish(content)

    async def pass_on(self, piece: bytes = b"") -> None:
        """Write a piece of the answer, and wait until its client has taken it, but not for ever.

        Raises tornado's `Completion` once nobody listens any more.
        """
        self.write(piece)
        patience = asyncio.get_running_loop().call_later(STALLED_SECONDS, self._hang_up)
        try:
            await self.flush()
        except StreamClosedError:
            raise web.Finish from None
        finally:
            patience.cancel()

    def _hang_up(self) -> None:
        connection = cast("HTTP1Connection", self.request.connection)
        self.log.info("%s takes nothing more of %s: its connection is closed", self.request.remote_ip, self.request.path)
        connection.stream.close()

    async def while_connected(self, work: Coroutine[Any, Any, Value], gone: Callable[[], Any] | None = None) -> Value:
        """The outcome of `work`, which ends with the client's connection; `gone()` is called then.

        Raises tornado's `Completion` once nobody listens any more.
        """
        # The request's own task is what ends: one for the work alone would cost every request turns of the loop.
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
            getattr(request, "uncancel", bool)()  # which Python 3.10 does not have, nor need
        finally:
            self._closed = None
        if gone is not None:
            gone()
        raise web.Finish

    def on_connection_close(self) -> None:
        """The client has gone."""
        super().on_connection_close()
        self._is_closed = True
        if self._closed is not None:
            self._closed()

    def update_api_activity(self) -> None:
        """Only what changes something counts as use of the server: a dashboard that looks on must not keep it from being culled."""
        if self.request.method not in ("GET", "HEAD", "OPTIONS"):
            super().update_api_activity()


IN_PIECES: dict[type[Handler], type[Handler]] = {}
"""Handlers as tornado gives them a body piece by piece, each made when it is first wanted."""


def suited(handler: type[web.RequestHandler], request: HTTPServerRequest, limited: bool) -> type[web.RequestHandler]:
    """The handler as it suits this request: without a body, or with a small one, it is answered in two turns of the loop less.

    Where requests are limited (`limited`), each counts from its first byte on, before its body has come. Forms, which tornado would look
    into before anybody is asked who sent them, come in pieces too.
    """
    if not issubclass(handler, Handler):
        return handler
    headers = request.headers
    length = headers.get("Content-Length", "0")
    small = length.isdecimal() and int(length) <= BODY_SLACK and "Transfer-Encoding" not in headers
    form = length != "0" and headers.get("Content-Type", "").startswith(FORMS)
    takes_pieces = handler.data_received is not Handler.data_received
    if small and not (form or takes_pieces or limited):
        return handler
    if handler not in IN_PIECES:
        named = {"__module__": handler.__module__, "__doc__": handler.__doc__}
        IN_PIECES[handler] = web.stream_request_body(type(handler.__name__, (handler,), named))
    return IN_PIECES[handler]
