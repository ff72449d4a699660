"""The Python face of a runtime: submit work, run it, call functions, find tasks again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeVar

from openruntime_jupyter.client.arrays import ArrayUploads
from openruntime_jupyter.client.deadlock_guard import refuse_deadlock
from openruntime_jupyter.client.execution_environment import world
from openruntime_jupyter.client.handles import PromptHandle, TaskHandle, again, handle_of, prompt_request
from openruntime_jupyter.client.map import run_map
from openruntime_jupyter.client.serialization import pack_call, pack_variables, sources_of
from openruntime_jupyter.client.transport.protocol import Backend, new_key
from openruntime_jupyter.errors import SessionEnded, TaskNotFound
from openruntime_jupyter.schemas.ai import AgentList, Conversation, ConversationInfo, ModelList, WorkflowInfo
from openruntime_jupyter.schemas.insights import Insights, MetricType, WordingChoice
from openruntime_jupyter.schemas.sessions import Session
from openruntime_jupyter.schemas.system import Device, Health, MetricsHistory, OperationInfo, SystemMetrics, Timeframe, Worker
from openruntime_jupyter.schemas.tasks import Origin, Task, TaskOrder, TaskOutput, TaskPage

if TYPE_CHECKING:
    from typing_extensions import Self

    from openruntime_jupyter.client.async_client import AsyncClient
    from openruntime_jupyter.client.executor import TaskExecutor
    from openruntime_jupyter.client.session import ClientSession
    from openruntime_jupyter.client.transport.watch import Watch

Submitted = TypeVar("Submitted", Task, TaskOutput)

FIRST_WAIT = 15.0
"""Seconds that `run` and `call` wait with the submission itself, which saves a question for most tasks."""


@dataclass(frozen=True)
class Options:
    """How a task is to be run, beside what it does."""

    priority: int = 5
    """1 to 10; 10 is the most urgent."""
    device: str = "auto"
    """`auto`, `gpu`, `cpu`, or the id of a device."""
    timeout: float | None = None
    """Seconds of running after which it is stopped; None for no limit."""
    retries: int = 0
    """How often it is run again if its worker process dies; never for an error that it raised."""
    name: str | None = None
    """What people call it."""
    memory_limit: int | None = None
    """Bytes of resident memory past which its worker is stopped; None for the runtime's own limit."""
    session: str | None = None
    """Name of the session of this notebook in which cells and calls run; None for a process of their own."""

    def request(self) -> dict[str, Any]:
        """These options as fields of a `TaskRequest`, those left at their defaults left out."""
        fields = asdict(self)
        return {_field(name): value for name, value in fields.items() if value is not None}


class Client:
    """A runtime, wherever it is; `connect()` makes one.

    It may be used from several threads. Everything here raises the errors of `openruntime_jupyter.errors` alone:
    `InvalidRequest` for a wrong parameter, `NotConnected` if the runtime has gone away.
    """

    def __init__(
        self, backend: Backend, options: Options | None = None, origin: Origin = "python", session_ids: dict[str, str] | None = None
    ) -> None:
        self.backend = backend
        self.session_ids = {} if session_ids is None else session_ids
        """Ids of the sessions that were used here, by name: a name alone would start an empty session once that one is gone."""
        self.options = options or Options()
        self.origin: Origin = origin
        self._aio: AsyncClient | None = None

    @property
    def where(self) -> str:
        """The runtime's URL, or `embedded` where this process hosts it."""
        return self.backend.where

    def with_options(self, **changes: Any) -> Client:
        """The same runtime with other options for what is submitted: `client.with_options(priority=9, device="gpu")`.

        The names are those of `Options`; another one raises `TypeError`.
        """
        return Client(self.backend, replace(self.options, **changes), self.origin, self.session_ids)

    def submit(self, operation: str, /, **parameters: Any) -> TaskHandle:
        """Queue one task of `operation` and return at once; it outlives this process where a server runs it.

        Raises `InvalidRequest` (also as `UnknownOperation`, `UnknownDevice`, `MemoryRefused`), `QueueFull`, `NotAllowed`.
        """
        with ArrayUploads(self.backend) as uploads:
            return self._submit(operation, uploads.outside(parameters))

    def run(self, operation: str, /, **parameters: Any) -> Any:
        """Do one task of `operation` and return its output; interrupting it cancels the task.

        Raises what `submit` and `TaskHandle.result` raise.
        """
        with ArrayUploads(self.backend) as uploads:
            return self._finish(operation, uploads.outside(parameters))

    def submit_call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskHandle:
        """Queue `function(*args, **kwargs)` for a worker and return at once.

        Functions of notebooks travel by value, with the variables that they use. Raises `InvalidRequest` that names the
        argument or variable that can't travel.
        """
        with ArrayUploads(self.backend) as uploads:
            return self._submit("call", self._call(uploads, function, args, kwargs), _name_of(function))

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """`function(*args, **kwargs)`, computed by a worker: returns its value; interrupting it cancels the task.

        Raises what `submit_call` and `TaskHandle.result` raise.
        """
        with ArrayUploads(self.backend) as uploads:
            return self._finish("call", self._call(uploads, function, args, kwargs), _name_of(function))

    def map(self, function: Callable[[Any], Any], iterable: Iterable[Any], /, chunk_size: int | None = None, **options: Any) -> list[Any]:
        """`function(item)` for each item, computed by workers: the results in the order of the items.

        A task works on `chunk_size` items; by default so many that each slot of the device gets about four tasks. Give 1 where one
        item takes seconds, so that progress and cancelling are fine-grained; the default where items are quick. `options` are those
        of `with_options`. Items that fail keep no other from being done; `MapFailed` tells of them at the end, by their places, and
        has the other results. Interrupting it cancels the tasks that are left. They end with the server, unlike those of `submit_call`.
        Raises what `submit_call` raises.
        """
        client = self.with_options(**options) if options else self
        refuse_deadlock(self.backend, client.options.device, "a new task")
        return run_map(client, function, list(iterable), chunk_size)

    @property
    def aio(self) -> AsyncClient:
        """The same for coroutines: `await client.aio.run("compute", expression="1 + 1")`."""
        from openruntime_jupyter.client.async_client import AsyncClient

        if self._aio is None:
            self._aio = AsyncClient(self)
        return self._aio

    def executor(self, **options: Any) -> TaskExecutor:
        """This runtime as a `concurrent.futures.Executor`, for code that takes one; `options` are those of `with_options`.

        Calls become tasks as with `submit_call`, and their futures can be cancelled while they run.
        """
        from openruntime_jupyter.client.executor import TaskExecutor

        return TaskExecutor(self.with_options(**options) if options else self)

    def watch(self, topics: Iterable[str], tell: Callable[[dict[str, Any]], None]) -> Watch:
        """Have `tell(message)` called with what happens, until the watch is closed.

        Topics are `task_update`, `task_progress`, `task_output`, `metrics` and `ai_token`, the messages those of the API's WebSocket;
        besides there are `connected` (whose `gap` says that something may have been missed) and `disconnected`. `tell` is called on a
        thread that all who watch share: it must be quick. Raises ValueError for a topic that there is not.
        """
        return self.backend.watch(topics, tell)

    def submit_code(
        self,
        code: str,
        inputs: dict[str, Any] | None = None,
        outputs: tuple[str, ...] = (),
        filename: str | None = None,
        follow: float = 0.0,
    ) -> TaskHandle:
        """Queue Python code that finds `inputs` as variables and leaves the variables named `outputs`.

        It runs in this process's interpreter, folder and import path where the runtime is on this machine; `filename` is what
        its tracebacks say. The handle's `result()` is a dict of the outputs. With `follow`, it returns after up to that many seconds,
        with what the task showed until then: a caller of `follow_output` saves a request.
        """
        with ArrayUploads(self.backend) as uploads:
            parameters: dict[str, Any] = {
                "code": code,
                "pickled": pack_variables(inputs or {}, uploads),
                "outputs": list(outputs),
                "world": self._world(),
            }
            parameters |= {"arrays": uploads.references()} | ({"filename": filename} if filename else {})
            return self._submit("python", parameters, follow=follow)

    def ask(
        self,
        prompt: str,
        /,
        workflow: str = "model_inference",
        *,
        profile: str | None = None,
        model: str | None = None,
        agent: str | None = None,
        conversation: str | None = None,
        **parameters: Any,
    ) -> PromptHandle:
        """Ask a model, and return at once: the handle's `result()` is the answer, `for piece in handle` gives it as it is written.

        `workflow` is one of `workflows()`; the default gives the prompt as it is. `parameters` are the workflow's, such as
        `temperature` or `max_tokens`; what is None or not given is not sent. Without a `profile` or `model` the runtime's default
        answers. A prompt waits until the one before it in its `conversation` has ended.

        Raises `InvalidRequest` for a wrong value, `Unavailable` where nobody answers prompts, and `TaskConflict` where the
        conversation still waits for its last answer.
        """
        told = {"profile": profile, "model": model, "agent": agent, "conversation": conversation, **parameters}
        request = prompt_request(prompt, workflow, told, self.options.request(), self.origin)
        asked = self.backend.prompts.ask(request, new_key())
        return PromptHandle(self.backend, self.backend.get(asked.task_id, parameters=False), asked.left_out)

    def task(self, task_id: str) -> TaskHandle:
        """The task of that id, from any notebook, today or earlier; an AI task is a `PromptHandle`. Raises `TaskNotFound`."""
        if not task_id:
            raise TaskNotFound("a task's id is needed; tasks() lists them")
        return handle_of(self.backend, self.backend.get(task_id, parameters=False))

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
        """A page of at most `limit` tasks, newest first, those older than the task `before`, filtered where asked.

        With `order="next"` it is what waits, the next to run first, without the first `offset`: no filter goes with it.
        """
        return self.backend.tasks(limit, before, states, operation, owner, offset=offset, order=order)

    def cancel(self, task_id: str) -> Task:
        """Stop the task of that id; returns its record once it has ended."""
        return self.backend.cancel(task_id)

    def again(self, task_id: str, **options: Any) -> TaskHandle:
        """Queue the same work as that task's once more, with its options but for `options`, which are those of `with_options`.

        Raises `TaskNotFound`, and what submitting raises: `InvalidRequest` where arrays that it worked on are gone by now.
        """
        given = replace(Options(), **options).request()
        changes = {name: given[name] for name in map(_field, options) if name in given}
        return handle_of(self.backend, again(self.backend, task_id, self.origin, changes))

    def session(self, name: str, *, reload: bool = False) -> ClientSession:
        """Return the session `name` of this notebook: a worker whose variables stay between cells and calls.

        Its first task starts the worker. A session gives up what other tasks have: it sees modules as they were when it imported them,
        and what its earlier tasks left behind.

        Parameters
        ----------
        name
            Its name in this notebook, or the id of any session.
        reload
            Whether modules are reloaded before each cell when their files have changed (IPython's `%autoreload 2`).
        """
        from openruntime_jupyter.client.session import RELOAD, ClientSession

        session = ClientSession(self, name)
        if reload:
            session.run_code(RELOAD)
        return session

    def sessions(self) -> list[Session]:
        """Return every session of the runtime, the last used first."""
        return self.backend.sessions()

    def restart_session(self, session: str) -> Session:
        """End the worker of a session (name or id); its next task starts with an empty namespace. Raises `SessionNotFound`."""
        from openruntime_jupyter.client.session import find_session

        return self.backend.restart_session(find_session(self, session).id)

    def free_session(self, session: str) -> Session:
        """End a session (name or id) and give its memory back; return what it was. Raises `SessionNotFound`."""
        from openruntime_jupyter.client.session import find_session

        found = find_session(self, session)
        self.session_ids.pop(found.name, None)
        return self.backend.free_session(found.id)

    def caller(self) -> tuple[str | None, str | None]:
        """Return the path of this process's notebook and the process's random id, as sessions are told apart by them."""
        here: dict[str, Any] = self._world() or {}
        return here.get("notebook"), here.get("kernel")

    def devices(self) -> list[Device]:
        """What MLX computes on."""
        return self.backend.devices()

    def workers(self) -> list[Worker]:
        """The worker processes that there are, with what each has done."""
        return self.backend.workers()

    def metrics(self) -> SystemMetrics:
        """The figures of now."""
        return self.backend.metrics()

    def health(self) -> Health:
        """Whether all is well, and what to do about what is not."""
        return self.backend.health()

    def models(self) -> ModelList:
        """The models that can be asked, those in memory marked, and the remote providers."""
        return self.backend.prompts.models()

    def unload(self, name: str) -> list[str]:
        """Free the memory of an idle model; raises `ModelNotFound`, and `TaskConflict` while it answers a prompt."""
        return self.backend.prompts.unload(name)

    def agents(self) -> AgentList:
        """The roles that a model can be given, and what is wrong with files of the configured folder."""
        return self.backend.prompts.agents()

    def workflows(self) -> list[WorkflowInfo]:
        """What a prompt can be for, with the schemas of the parameters."""
        return self.backend.prompts.workflows()

    def conversations(self, owner: str | None = None) -> list[ConversationInfo]:
        """Everybody's conversations, or those of one user, the last used first."""
        return self.backend.prompts.conversations(owner)

    def conversation(self, name: str, owner: str | None = None) -> Conversation:
        """What was said in a conversation of yours, or of `owner`; raises `ConversationNotFound`."""
        return self.backend.prompts.conversation(name, owner)

    def delete_conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Erase a conversation, and return what it was; raises `ConversationNotFound`."""
        return self.backend.prompts.delete_conversation(name, owner)

    def metrics_history(self, timeframe: Timeframe = "5m", points: int = 300) -> MetricsHistory:
        """The figures of the last `timeframe` (`5m`, `15m`, `1h`, `6h`, `24h`, `7d`) in at most `points` points."""
        return self.backend.metrics_history(timeframe, points)

    def insights(self, metric_type: MetricType = "performance", timeframe: Timeframe = "1h", wording: WordingChoice = "none") -> Insights:
        """What the recorded history tells about `performance`, `memory`, `efficiency` or `errors`; `wording` says whether by a model."""
        return self.backend.insights(metric_type, timeframe, wording)

    def operations(self) -> list[OperationInfo]:
        """The kinds of work there are, with the schemas of their parameters."""
        return self.backend.operations()

    def close(self) -> None:
        """Let go of the connection, that of `aio` too; tasks go on."""
        if self._aio is not None:
            self._aio.let_go()
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.where}>"

    def _call(self, uploads: ArrayUploads, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        codes: list[CodeType] = []
        pickled = pack_call(function, args, kwargs, uploads, codes)
        sources = sources_of(codes, self.backend.local)
        return {"pickled": pickled, "arrays": uploads.references(), "sources": sources, "world": self._world()}

    def call_request(self, function: Callable[..., Any], parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the request of a `call` with these parameters, with the options of this client and named after `function`."""
        return self._request("call", {**parameters, "world": self._world()}, _name_of(function))

    def _world(self) -> dict[str, Any] | None:
        return world() if self.backend.local else None

    def _request(self, operation: str, parameters: dict[str, Any], name: str | None) -> dict[str, Any]:
        session = self.options.session
        options = replace(self.options, name=self.options.name or name, session=self.session_ids.get(session or "", session))
        return {"operation": operation, "parameters": parameters, "origin": self.origin, **options.request()}

    def _submit(self, operation: str, parameters: dict[str, Any], name: str | None = None, follow: float = 0.0) -> TaskHandle:
        request, key = self._request(operation, parameters, name), new_key()
        if not follow:
            return TaskHandle(self.backend, self._send(lambda: self.backend.submit(request, key)))
        shown = self._send(lambda: self.backend.submit_followed(request, key, follow))
        assert shown.task is not None
        return TaskHandle(self.backend, shown.task, shown)

    def _send(self, submit: Callable[[], Submitted]) -> Submitted:
        try:
            answer = submit()
        except SessionEnded as problem:
            self.follow_session(problem)
            raise
        self.follow_session(answer.task if isinstance(answer, TaskOutput) else answer)
        return answer

    def follow_session(self, answer: Task | BaseException | None) -> None:
        """Remember the session's id from the answer to a submission.

        An ended session is reported once. The next task with its name gets the session that the runtime then has.
        """
        name = self.options.session
        if name is None:
            return
        if isinstance(answer, SessionEnded):
            self.session_ids.pop(name, None)
        elif isinstance(answer, Task) and answer.session is not None:
            self.session_ids[name] = answer.session

    def _finish(self, operation: str, parameters: dict[str, Any], name: str | None = None) -> Any:
        refuse_deadlock(self.backend, self.options.device, "a new task")
        request, key = self._request(operation, parameters, name), new_key()
        try:
            handle = TaskHandle(self.backend, self._send(lambda: self.backend.submit(request, key, FIRST_WAIT)))
            return handle.result()
        except KeyboardInterrupt:
            # The same key gives the same task, also where the interrupt came before its id did.
            self.backend.cancel(self.backend.submit(request, key).task_id)
            raise


def _field(option: str) -> str:
    """What a `TaskRequest` calls an option."""
    return "device_preference" if option == "device" else option


def _name_of(function: Callable[..., Any]) -> str | None:
    """What to call a task of `function`; None for one that has no name."""
    name = str(getattr(function, "__name__", ""))
    return name[:200] if name.isidentifier() else None
