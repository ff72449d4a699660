"""HTTP backend for a runtime in Jupyter Server or a stand-alone server. Imports nothing from Jupyter."""

from __future__ import annotations

import ipaddress
import json
import math
import threading
import weakref
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from openruntime_jupyter.arrays.blocks import LEASE_HEADER, LEASED
from openruntime_jupyter.client.transport.errors import LOST_ON_THE_WAY, TRANSLATED, from_answer, not_openruntime, of_status, translate
from openruntime_jupyter.client.transport.forks import reset_in_child
from openruntime_jupyter.client.transport.prompts_http import HttpPrompts
from openruntime_jupyter.client.transport.protocol import LONGEST_WAIT
from openruntime_jupyter.client.transport.watch import Tell, Watch
from openruntime_jupyter.client.transport.websocket import SocketEvents
from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError
from openruntime_jupyter.schemas.arrays import ArrayInfo
from openruntime_jupyter.schemas.insights import Insights, MetricType, WordingChoice
from openruntime_jupyter.schemas.sessions import Session
from openruntime_jupyter.schemas.system import Device, Health, MetricsHistory, OperationInfo, SystemMetrics, Timeframe, Worker
from openruntime_jupyter.schemas.tasks import Ended, Task, TaskOrder, TaskOutput, TaskPage
from openruntime_jupyter.schemas.values import ArrayKind

WORDING_SECONDS = 60.0
"""Client timeout in seconds for a model that rewrites insights."""

PATIENCE = 30.0
"""Response timeout in seconds, in addition to the requested wait. Busy servers are slow."""

REFUSED = (401, 403)
"""Status codes for a missing, invalid or expired token."""

SAFETENSORS = "application/vnd.safetensors"
PIECE = 1 << 20
"""Size in bytes of a download chunk."""

Model = TypeVar("Model", bound=BaseModel)


def is_loopback(host: str) -> bool:
    """Return whether `host` is a loopback address, which proxies can't reach."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HttpBackend:
    """`Backend` over HTTP.

    Nothing is sent before the first request.

    Parameters
    ----------
    url
        The parent of `/health`, such as `http://127.0.0.1:8000` or `http://127.0.0.1:8888/openruntime`.
    token
        Token for the `Authorization` header.
    patience
        Response timeout in seconds, in addition to the requested wait.
    local
        True for a server on this machine; the default tests for a loopback address. Local requests bypass proxies and accept any
        TLS certificate, because certificates name a host and not the loopback address.
    renew
        Returns the server's current token, or None. A restarted server has a new token.

    Raises
    ------
    InvalidRequest
        If `url` or `token` is invalid.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        patience: float = PATIENCE,
        local: bool | None = None,
        renew: Callable[[], str | None] | None = None,
    ) -> None:
        self.where = url.rstrip("/")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise InvalidRequest.of("token", "has characters that are not allowed in HTTP headers")
        try:
            parsed = httpx.URL(self.where)
            self.local = is_loopback(parsed.host) if local is None else local
        except TRANSLATED as problem:
            raise translate(problem, self.where) from problem
        if parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 80) > 65535:
            raise InvalidRequest.of("url", f"{url!r} is not an http:// or https:// address")
        self._token = token
        self._renew = renew
        self._patience = patience
        self._lock = threading.Lock()
        self._events: SocketEvents | None = None
        self._client: httpx.Client | None = None
        self._finalizer: weakref.finalize[..., HttpBackend] | None = None
        reset_in_child(self)

    def submit(self, request: dict[str, Any], key: str, wait: float = 0.0) -> Task:
        """Submit a task and return its record. A lost connection is retried once with the same key."""
        headers = {"Idempotency-Key": key, "Prefer": f"wait={math.ceil(wait)}" if wait > 0 else "respond-async"}
        return self._ask(Task, "POST", "/tasks", content=_json(request), headers=headers, wait=wait)

    def submit_followed(self, request: dict[str, Any], key: str, wait: float) -> TaskOutput:
        """Submit a task and return its output with the record."""
        headers = {"Idempotency-Key": key}
        return self._ask(
            TaskOutput, "POST", "/tasks/output", params={"wait": f"{wait:g}"}, content=_json(request), headers=headers, wait=wait
        )

    def submit_many(self, requests: list[dict[str, Any]], key: str, durable: bool = True) -> list[Task | OpenRuntimeError]:
        """Submit a batch of tasks and return their records or errors."""
        body = {"tasks": requests} if durable else {"tasks": requests, "durable": False}
        response = self._request("POST", "/tasks/batch", content=_json(body), headers={"Idempotency-Key": key})
        try:
            return [_answer(item) for item in from_json(response.content)["tasks"]]
        except (ValidationError, ValueError, KeyError, TypeError) as problem:
            raise not_openruntime(self.where, response) from problem

    def collect(self, task_ids: list[str], at_least: int = 1, wait: float = 0.0) -> list[Ended]:
        """Return the ended tasks with their results."""
        wait = max(0.0, min(wait, LONGEST_WAIT))
        body = {"tasks": task_ids, "at_least": at_least, "wait": wait}
        response = self._request("POST", "/tasks/batch/results", content=_json(body), wait=wait)
        try:
            return [_ended(item) for item in from_json(response.content)["results"]]
        except (ValidationError, ValueError, KeyError, TypeError) as problem:
            raise not_openruntime(self.where, response) from problem

    def get(self, task_id: str, parameters: bool = True) -> Task:
        """Return the task's current record."""
        return self._ask(Task, "GET", _task(task_id), params={} if parameters else {"parameters": "false"})

    def wait(self, task_id: str, seconds: float) -> Task:
        """Wait for the task's end and return its record."""
        wait = max(0.0, min(seconds, LONGEST_WAIT))
        return self._ask(Task, "GET", _task(task_id), params={"wait": f"{wait:g}", "parameters": "false"}, wait=wait)

    def cancel(self, task_id: str) -> Task:
        """Cancel the task and return its final record."""
        return self._ask(Task, "DELETE", _task(task_id))

    def reprioritise(self, task_id: str, priority: int) -> Task:
        """Change the priority of a pending task."""
        return self._ask(Task, "PATCH", _task(task_id), content=json.dumps({"priority": priority}).encode())

    def purge(self, task_id: str) -> None:
        """Delete an ended task with its output and result."""
        self._request("DELETE", _task(task_id), params={"purge": "true"})

    def output(self, task_id: str, since: int = 0, wait: float = 0.0, record: bool = False) -> TaskOutput:
        """Return the output of the task after `since`."""
        wait = max(0.0, min(wait, LONGEST_WAIT))
        params = {"since": str(since)} | ({"wait": f"{wait:g}"} if wait else {}) | ({"record": "true"} if record else {})
        return self._ask(TaskOutput, "GET", f"{_task(task_id)}/output", params=params, wait=wait)

    def payload(self, task_id: str) -> tuple[bytes, str]:
        """Return the pickled result and its encoding."""
        answer = self._request("GET", f"{_task(task_id)}/payload")
        return answer.content, answer.headers.get("X-OpenRuntime-Encoding", "cloudpickle")

    def allocate(self, shape: list[int], dtype: str, kind: ArrayKind) -> ArrayInfo:
        """Allocate space for an array."""
        return self._ask(ArrayInfo, "POST", "/arrays", content=_json({"shape": shape, "dtype": dtype, "kind": kind}))

    def array_ready(self, array_id: str) -> ArrayInfo:
        """Mark the array's file as complete."""
        return self._ask(ArrayInfo, "POST", f"{_array(array_id)}/ready", content=b"{}")

    def put_array(self, array_id: str, pieces: Iterable[bytes], size: int) -> ArrayInfo:
        """Upload the contents of an array."""
        headers = {"Content-Type": SAFETENSORS, "Content-Length": str(size)}
        # `pieces` is consumed, so this request can't be retried.
        return self._ask(ArrayInfo, "PUT", _array(array_id), content=pieces, headers=headers, again=False)

    def array(self, array_id: str) -> ArrayInfo:
        """Return the metadata of an array."""
        return self._ask(ArrayInfo, "GET", _array(array_id))

    def get_array(self, array_id: str) -> Iterator[bytes]:
        """Yield the safetensors file of an array in chunks."""
        with self._streamed(_array(array_id), SAFETENSORS) as answer:
            yield from answer.iter_bytes(PIECE)

    def delete_array(self, array_id: str) -> None:
        """Release an array."""
        self._request("DELETE", _array(array_id))

    def tasks(
        self,
        limit: int = 100,
        before: str | None = None,
        states: list[str] | None = None,
        operation: str | None = None,
        owner: str | None = None,
        *,
        offset: int = 0,
        order: TaskOrder = "newest",
    ) -> TaskPage:
        """Return a page of tasks."""
        params: list[tuple[str, str]] = [("limit", str(limit)), ("offset", str(offset)), ("order", order)]
        params += [("state", state) for state in states or ()]
        params += [(name, value) for name, value in (("before", before), ("operation", operation), ("owner", owner)) if value is not None]
        return self._ask(TaskPage, "GET", "/tasks", params=params)

    def devices(self) -> list[Device]:
        """Return the compute devices."""
        return self._list(Device, "/devices", "devices")

    def workers(self) -> list[Worker]:
        """Return the worker processes."""
        return self._list(Worker, "/workers", "workers")

    def sessions(self) -> list[Session]:
        """Return all sessions."""
        return self._list(Session, "/sessions", "sessions")

    def restart_session(self, session_id: str) -> Session:
        """Restart the session's worker."""
        return self._ask(Session, "POST", f"/sessions/{quote(session_id, safe='')}/restart", content=b"{}")

    def free_session(self, session_id: str) -> Session:
        """End the session and return its last record."""
        return self._ask(Session, "DELETE", f"/sessions/{quote(session_id, safe='')}")

    def metrics(self) -> SystemMetrics:
        """Return the current metrics."""
        return self._ask(SystemMetrics, "GET", "/metrics")

    def health(self) -> Health:
        """Return the health report."""
        return self._ask(Health, "GET", "/health")

    def operations(self) -> list[OperationInfo]:
        """Return the available operations."""
        return self._list(OperationInfo, "/operations", "operations")

    def metrics_history(self, timeframe: Timeframe, points: int) -> MetricsHistory:
        """Return the recorded metrics of a timeframe."""
        return self._ask(MetricsHistory, "GET", "/metrics/history", params={"timeframe": timeframe, "points": str(points)})

    def insights(self, metric_type: MetricType, timeframe: Timeframe, wording: WordingChoice = "none") -> Insights:
        """Return findings about the recorded history."""
        request = {"metric_type": metric_type, "timeframe": timeframe, "wording": wording}
        return self._ask(Insights, "POST", "/ai/insights", content=_json(request), wait=WORDING_SECONDS)

    def watch(self, topics: Iterable[str], tell: Tell) -> Watch:
        """Subscribe to events."""
        with self._lock:
            if self._events is None:
                self._events = SocketEvents(self.where, self._current_token, self.local)
        return self._events.watch(topics, tell)

    @property
    def prompts(self) -> HttpPrompts:
        """Return the interface for models and prompts."""
        return HttpPrompts(self._ask, self._lines)

    @property
    def has_token(self) -> bool:
        """Return whether requests carry a token."""
        return self._token is not None

    def knock(self, origin: str) -> int:
        """Return the status of an empty submission without a token from a page of `origin`. No task is created."""
        try:
            with httpx.Client(trust_env=not self.local, verify=not self.local, timeout=self._patience) as stranger:
                return stranger.post(f"{self.where}/tasks", json={"operation": ""}, headers={"Origin": origin}).status_code
        except TRANSLATED as problem:
            raise translate(problem, self.where) from problem

    def close(self) -> None:
        """Close the connections. A later request opens a new one."""
        with self._lock:
            self._client = None
            if self._finalizer is not None:
                self._finalizer()

    def after_fork(self) -> None:
        """Reset the state in a forked child. The child's next request opens a new connection."""
        self._lock = threading.Lock()
        self._client = None
        if self._finalizer is not None:
            self._finalizer.detach()  # closing the pool needs its lock, which a thread of the parent may have held

    def _ask(self, model: type[Model], method: str, path: str, **options: Any) -> Model:
        response = self._request(method, path, **options)
        try:
            # A newer server may send fields that this client does not know.
            return model.model_validate_json(response.content, extra="ignore")
        except ValidationError as problem:
            raise not_openruntime(self.where, response) from problem

    @contextmanager
    def _streamed(self, path: str, accept: str, params: dict[str, str] | None = None) -> Iterator[httpx.Response]:
        """Return a streamed response."""
        try:
            with self._http().stream("GET", self.where + path, params=params, headers={"Accept": accept}, timeout=self._patience) as answer:
                if answer.status_code >= 300:
                    answer.read()
                    raise from_answer(self.where, answer)
                yield answer
        except TRANSLATED as problem:
            raise translate(problem, self.where) from problem

    def _lines(self, path: str, params: dict[str, str]) -> Iterator[str]:
        with self._streamed(path, "text/event-stream", params) as answer:
            yield from answer.iter_lines()

    def _list(self, model: type[Model], path: str, key: str) -> list[Model]:
        response = self._request("GET", path)
        try:
            return [model.model_validate(entry, extra="ignore") for entry in response.json()[key]]
        except (ValidationError, ValueError, KeyError, TypeError) as problem:
            raise not_openruntime(self.where, response) from problem

    def _request(self, method: str, path: str, wait: float = 0.0, headers: dict[str, str] | None = None, **options: Any) -> httpx.Response:
        timeout = httpx.Timeout(wait + self._patience, connect=min(10.0, self._patience))
        headers = {"Content-Type": "application/json", **(headers or {})} if "content" in options else headers
        response = self._send(method, path, headers=headers, timeout=timeout, **options)
        if response.status_code >= 300:
            raise from_answer(self.where, response)
        return response

    def _send(self, method: str, path: str, again: bool = True, **options: Any) -> httpx.Response:
        lost = False
        while True:
            sent = self._token
            try:
                response = self._http().request(method, self.where + path, **options)
            except TRANSLATED as problem:
                # The server may have closed an idle connection. Requests are safe to repeat, except if their body is a consumed iterator.
                if lost or not again or not isinstance(problem, LOST_ON_THE_WAY):
                    raise translate(problem, self.where) from problem
                lost = True
            else:
                # A restarted server has a new token.
                if not again or response.status_code not in REFUSED or self._current_token() == sent:
                    return response

    def _current_token(self) -> str | None:
        """Return the server's current token and use it for later requests. Another thread may have updated it already."""
        found = self._renew() if self._renew is not None else None
        with self._lock:
            if found is not None and found != self._token:
                self._token = found
                if self._client is not None:
                    self._client.headers["Authorization"] = f"Bearer {found}"
            return self._token

    def _http(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                headers = {"Accept": "application/json", "User-Agent": "openruntime-jupyter", LEASE_HEADER: LEASED}
                if self._token:
                    headers["Authorization"] = f"Bearer {self._token}"
                # Proxies can't reach the loopback address and must not see its token.
                self._client = httpx.Client(headers=headers, trust_env=not self.local, verify=not self.local, follow_redirects=False)
                # Also closes connections of clients that are dropped without close().
                self._finalizer = weakref.finalize(self, self._client.close)
            return self._client


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError) as problem:
        raise InvalidRequest.of("parameters", f"can't be encoded as JSON: {problem}") from None


def _answer(item: dict[str, Any]) -> Task | OpenRuntimeError:
    """Parse one entry of a batch response."""
    if (error := item.get("error")) is not None:
        return of_status(error["code"], error["message"], error.get("details") or [], error.get("retry_after") or 1.0, "/tasks/")
    return Task.model_validate(item["task"], extra="ignore")


def _ended(item: dict[str, Any]) -> Ended:
    """Parse one entry of a response with results."""
    payload = item.get("payload")
    return Ended(item["task_id"], _answer(item), None if payload is None else (b64decode(payload["base64"]), payload["encoding"]))


def _array(array_id: str) -> str:
    return f"/arrays/{quote(array_id, safe='')}"


def _task(task_id: str) -> str:
    return f"/tasks/{quote(task_id, safe='')}"
