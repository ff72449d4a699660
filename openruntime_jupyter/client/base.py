"""Requests of a client: submit work, run it, look up tasks, sessions, models and metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from openruntime_jupyter.client.array_data import Arrays, Uploads
from openruntime_jupyter.client.handles import (
    PromptHandle,
    TaskHandle,
    after_cancel,
    again,
    handle_of,
    plain_result,
    prompt_request,
    record,
    refuse_deadlock,
)
from openruntime_jupyter.client.interruption import interruptible, kernel_stops_soon, shown_as_line
from openruntime_jupyter.client.notebook_file import notebook
from openruntime_jupyter.client.object_schema import ObjectSchema
from openruntime_jupyter.client.tools import Rounds, Tools, definitions_of
from openruntime_jupyter.client.transport.protocol import LONGEST_WAIT, MOST_BYTES, MOST_IN_BATCH, Backend, new_key
from openruntime_jupyter.client.transport.retry import Limit
from openruntime_jupyter.client.transport.watch import Watch
from openruntime_jupyter.errors import (
    InvalidRequest,
    NotConnected,
    OpenRuntimeError,
    SessionEnded,
    SessionNotFound,
    TaskError,
    TaskNotFound,
    Unavailable,
)
from openruntime_jupyter.schemas import endpoints as api
from openruntime_jupyter.schemas.ai import AgentList, AiTask, Conversation, ConversationInfo, ModelList, WorkflowInfo
from openruntime_jupyter.schemas.hosts import Host
from openruntime_jupyter.schemas.insights import Insights, MetricType, WordingChoice
from openruntime_jupyter.schemas.system import Device, Health, MetricsHistory, OperationInfo, Session, SystemMetrics, Timeframe, Worker
from openruntime_jupyter.schemas.tasks import Origin, Task, TaskOrder, TaskOutput, TaskPage

if TYPE_CHECKING:
    from typing_extensions import Self

Submitted = TypeVar("Submitted", Task, TaskOutput)

FIRST_WAIT = 15.0
"""Seconds that `run` and `call` wait within the submission itself, which saves a request for most tasks."""
BEGINNING = re.compile(r"(ai_)?task_[0-9a-z]{4,19}")
"""Beginning of a task's id, long enough to search for it."""
SEARCHED = 500
"""Number of the newest tasks among which a beginning of an id is searched."""
NOT_SUBMITTED = "interrupted before anything was submitted"
UNCERTAIN = "interrupted during the submission: tasks() shows whether the task was submitted"


@dataclass(frozen=True)
class Options:
    """Submission options of a task."""

    priority: int = 5
    """1 to 10; 10 is the most urgent."""
    device: str = "auto"
    """`auto`, `gpu`, `cpu`, the id of a device or the name of a host."""
    timeout: float | None = None
    """Run time limit in seconds; None for no limit."""
    retries: int = 0
    """Number of retries if the worker process dies. Exceptions raised by the task are not retried."""
    name: str | None = None
    """Display name."""
    memory_limit: int | None = None
    """Limit of the worker's resident memory in bytes; None for the runtime's default."""
    session: str | None = None
    """Name of the session in which Python code runs; None for a separate process."""
    deadline: float | None = None
    """Seconds after which `run` and `call` cancel the task, waiting or running, and raise `TimeoutError`; None to wait without limit."""

    def request(self) -> dict[str, Any]:
        """Return the options as fields of a `TaskRequest`, without those at their defaults."""
        fields = asdict(self)
        del fields["deadline"]
        return {_field(name): value for name, value in fields.items() if value is not None}


class BaseClient:
    """Options of a client, and its requests to a runtime over any transport. `CodeClient` adds Python code and functions."""

    def __init__(
        self, backend: Backend, options: Options | None = None, origin: Origin = "python", session_ids: dict[str, str] | None = None
    ) -> None:
        self.backend = backend
        self.session_ids = {} if session_ids is None else session_ids
        """Ids of the sessions in use, by name. After a session ends, its name alone would start an empty one."""
        self.options = options or Options()
        self.origin: Origin = origin

    @cached_property
    def arrays(self) -> Arrays:
        """Return the arrays of the runtime by name: `client.arrays.put("weights", array)`."""
        return Arrays(self.backend)

    @property
    def where(self) -> str:
        """Return the runtime's URL, or `embedded` if this process hosts it."""
        return self.backend.where

    def with_options(self, **changes: Any) -> Self:
        """Return a client of the same runtime with other options: `client.with_options(priority=9, device="gpu")`.

        Raises `TypeError` for a name that is not a field of `Options`.
        """
        return type(self)(self.backend, replace(self.options, **changes), self.origin, self.session_ids)

    def submit(self, operation: str, /, **parameters: Any) -> TaskHandle:
        """Submit a task of `operation` and return immediately. On a server, the task outlives this process.

        Raises `InvalidRequest` (also as `UnknownOperation`, `UnknownDevice`, `MemoryRefused`), `QueueFull`, `NotAllowed`.
        """
        with interruptible(UNCERTAIN), self._uploads() as uploads:
            return self._submit(operation, uploads.outside(parameters))

    def run(self, operation: str, /, **parameters: Any) -> Any:
        """Run a task of `operation` and return its output. Interrupting the call cancels the task.

        Raises the errors of `submit` and `TaskHandle.result`.
        """
        with interruptible(NOT_SUBMITTED), self._uploads() as uploads:
            return self._finish(operation, uploads.outside(parameters))

    def submit_batch(self, tasks: Iterable[Mapping[str, Any]]) -> list[TaskHandle | OpenRuntimeError]:
        """Submit many tasks in few requests and return immediately.

        Parameters
        ----------
        tasks
            A dict for each task, with its `operation`, its `parameters` (default: none) and options that differ from this client's.

        Returns
        -------
        list
            For each task in order its handle, or the error with which it was rejected.
        """
        outcomes: list[TaskHandle | OpenRuntimeError] = []
        with interruptible(UNCERTAIN), self._uploads() as uploads:
            requests = [self._of_batch(dict(task), uploads) for task in tasks]
            for group in _groups(requests):
                try:
                    answers = self.backend.call(api.SUBMIT_BATCH, body={"tasks": group}, key=new_key())
                except OpenRuntimeError as problem:
                    answers = [problem] * len(group)
                outcomes += [answer if isinstance(answer, OpenRuntimeError) else self._handle(answer) for answer in answers]
        return outcomes

    def submit_for_output(self, operation: str, wait: float = 15.0, /, **parameters: Any) -> TaskHandle:
        """Submit a task and wait up to `wait` seconds for its first output.

        `follow_output()` of the handle then needs no request. Raises the errors of `submit`.
        """
        with interruptible(UNCERTAIN), self._uploads() as uploads:
            return self._submit(operation, uploads.outside(parameters), follow=wait)

    def results(self, tasks: Iterable[TaskHandle | OpenRuntimeError]) -> list[Any]:
        """Wait for many tasks, and return for each in order its result, or the error with which it ended.

        `tasks` are handles, or what `submit_batch` returned: errors are returned as they are. Needs few requests, because results of up to
        64 KiB come together. Interrupting the wait does not cancel the tasks.
        """
        tasks = list(tasks)
        left = {each.id: each for each in tasks if isinstance(each, TaskHandle)}
        missing: dict[str, OpenRuntimeError] = {}
        if left:
            refuse_deadlock(self.backend, self.options.device, "the tasks")
        with interruptible("the tasks continue to run"):
            while left:
                for ended in self.backend.call(api.COLLECT_RESULTS, body={"tasks": list(left)[:MOST_IN_BATCH]}, wait=LONGEST_WAIT):
                    try:
                        left.pop(ended.task_id).take(ended)
                    except TaskNotFound as problem:
                        missing[ended.task_id] = problem
            return [each if isinstance(each, OpenRuntimeError) else missing.get(each.id) or _outcome(each) for each in tasks]

    def _of_batch(self, task: dict[str, Any], uploads: Uploads) -> dict[str, Any]:
        operation, parameters = task.pop("operation"), task.pop("parameters", {})
        return self._request(operation, uploads.outside(parameters), options=replace(self.options, **task))

    def watch(self, topics: Iterable[str], tell: Callable[[dict[str, Any]], None]) -> Watch:
        """Subscribe to events: call `tell(message)` for each until the watch is closed.

        Topics are `task_update`, `task_progress`, `task_output`, `metrics` and `ai_token`, with the messages of the API's WebSocket.
        There are also `connected` (its `gap` is true if events may have been missed) and `disconnected`. All watchers share the
        thread that calls `tell`, so it must return quickly. Raises ValueError for an unknown topic.
        """
        return self.backend.watch(topics, tell)

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
        schema: Any = None,
        tools: Tools = (),
        max_rounds: int = 8,
        **parameters: Any,
    ) -> PromptHandle:
        """Submit a prompt and return immediately. `result()` of the handle is the response; `for piece in handle` streams it.

        Without a `profile` or `model` the runtime's default model responds. A prompt waits for the previous prompt of its
        `conversation`.

        Parameters
        ----------
        prompt
            The prompt.
        workflow
            One of `workflows()`. The default sends the prompt unchanged.
        schema
            Schema of the response: a pydantic model or another type, or a JSON schema as a dict. `result()` is then an object of the type,
            or what `json.loads` returns.
        tools
            Python functions that the model may call. `result()` runs them in the calling thread and sends their values to the model, until
            it responds. Name, docstring and type hints tell the model what they do. An error of a function is sent as text. `calls` of the
            `reply()` lists the calls. A dict is a definition in OpenAI's form: its calls are `tool_calls` of the reply.
        max_rounds
            Maximum number of rounds of calls.
        **parameters
            Parameters of the workflow, for example `temperature` or `max_tokens`. Values that are None are not sent.

        Raises
        ------
        InvalidRequest
            For an invalid value.
        Unavailable
            If no model is available.
        TaskConflict
            If the conversation's previous prompt is still pending.
        """
        given = {"profile": profile, "model": model, "agent": agent, "conversation": conversation, **parameters}
        objects = None if schema is None else ObjectSchema(schema)
        if objects is not None:
            given["response_format"] = objects.response_format
        definitions, functions = definitions_of(tools)
        if definitions:
            given["tools"] = definitions

        def send(changes: dict[str, Any]) -> AiTask:
            request = prompt_request(prompt, workflow, {**given, **changes}, self.options.request(), self.origin)
            with interruptible(UNCERTAIN):
                return self.backend.call(api.SUBMIT_PROMPT, body=request, key=new_key())

        def send_round(messages: list[dict[str, Any]]) -> Task:
            # A required call would be required in each round.
            return record(self.backend, send({"tool_messages": messages, "tool_choice": None}).task_id)

        asked = send({})
        others = frozenset(each.get("function", {}).get("name", "") for each in definitions) - set(functions)
        rounds = Rounds(functions, send_round, max_rounds, others) if functions else None
        with interruptible(UNCERTAIN):
            return PromptHandle(self.backend, record(self.backend, asked.task_id), asked.left_out, objects, rounds)

    def task(self, task_id: str) -> TaskHandle:
        """Return the handle of a task by id, submitted by any program; a `PromptHandle` for AI tasks. Raises `TaskNotFound`.

        A beginning of the id is enough if it is unique among the newest tasks.
        """
        if not task_id:
            raise TaskNotFound("a task id is required: tasks() lists them")
        try:
            return self._handle(record(self.backend, task_id))
        except TaskNotFound:
            if not BEGINNING.fullmatch(task_id):
                raise
            found = [task for task in self.tasks(limit=SEARCHED).tasks if task.task_id.startswith(task_id)]
            if not found:
                raise
        if len(found) > 1:
            raise TaskNotFound(f"{len(found)} tasks have an id that begins with {task_id}: add more of it")
        return self._handle(found[0])

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
        notebook: str | None = None,
        name: str | None = None,
        search: str | None = None,
    ) -> TaskPage:
        """Return a page of at most `limit` tasks, newest first, optionally filtered or older than the task `before`.

        `notebook` is the path of a notebook as its tasks have it, `name` a part of a task's name, and `search` a part of its name, code
        or parameters; case is ignored. With `order="next"`, return the pending tasks in run order, without the first `offset`. Of the
        filters, this order takes these three.
        """
        query = {"limit": limit, "before": before, "state": states, "operation": operation, "owner": owner}
        more = {"offset": offset, "order": order, "notebook": notebook, "name": name, "search": search}
        return self.backend.call(api.LIST_TASKS, query={**query, **more})

    def iter_tasks(self, **filters: Any) -> Iterator[Task]:
        """Yield all tasks, newest first, page by page. `filters` are those of `tasks`."""
        page = self.tasks(**filters)
        yield from page.tasks
        while page.next_before is not None:
            page = self.tasks(**{**filters, "before": page.next_before})
            yield from page.tasks

    def cancel(self, task_id: str) -> Task:
        """Cancel a task, given by id or a unique beginning of it, and return its final record."""
        try:
            return self.backend.call(api.CANCEL_TASK, task_id)
        except TaskNotFound:
            return self.backend.call(api.CANCEL_TASK, self.task(task_id).id)

    def again(self, task_id: str, **options: Any) -> TaskHandle:
        """Submit the work of a task again, given by id or a unique beginning of it.

        `options`, those of `with_options`, override the options of the task.

        Raises `TaskNotFound` and the errors of a submission: `InvalidRequest` if arrays of the task have been deleted.
        """
        given = replace(Options(), **options).request()
        changes = {name: given[name] for name in map(_field, options) if name in given}
        return self._handle(again(self.backend, self.task(task_id).id, self.origin, changes))

    def sessions(self) -> list[Session]:
        """Return all sessions of the runtime, most recently used first."""
        return self.backend.call(api.LIST_SESSIONS)

    def restart_session(self, session: str) -> Session:
        """End the worker of a session (name or id); its next task starts with an empty namespace. Raises `SessionNotFound`."""
        return self.backend.call(api.RESTART_SESSION, self.find_session(session).id)

    def free_session(self, session: str) -> Session:
        """End a session (name or id), free its memory and return its last record. Raises `SessionNotFound`."""
        found = self.find_session(session)
        self.session_ids.pop(found.name, None)
        return self.backend.call(api.FREE_SESSION, found.id)

    def find_session(self, session: str) -> Session:
        """Return a session by id, or by name within this notebook or process.

        A name never means the session of another notebook. Raises `SessionNotFound`, and `InvalidRequest` if the name is ambiguous.
        """
        sessions = self.sessions()
        exact = [each for each in sessions if each.id in (session, self.session_ids.get(session))]
        named = [each for each in sessions if each.name == session]
        file, kernel = self._place()
        mine = exact or [each for each in named if (each.notebook, each.notebook or each.kernel) == (file, file or kernel)]
        if len(mine) == 1:
            return mine[0]
        if mine:
            raise InvalidRequest.of("session", f"{len(mine)} sessions here are called {session!r}. Give the id: {_ids(mine)}")
        where = f"; other notebooks have {_ids(named)}: give the id" if named else f"; open sessions: {_ids(sessions)}"
        raise SessionNotFound(f"{'This notebook' if file or kernel else 'This process'} has no session {session!r}{where}")

    def devices(self) -> list[Device]:
        """Return the compute devices."""
        return self.backend.call(api.LIST_DEVICES)

    def hosts(self) -> list[Host]:
        """Return the other machines that run tasks of the runtime; none if all tasks run on its own."""
        return self.backend.call(api.LIST_HOSTS)

    def workers(self) -> list[Worker]:
        """Return the worker processes with their statistics."""
        return self.backend.call(api.LIST_WORKERS)

    def metrics(self) -> SystemMetrics:
        """Return the current metrics."""
        return self.backend.call(api.GET_METRICS)

    def health(self) -> Health:
        """Return the health report, with advice for each problem."""
        return self.backend.call(api.GET_HEALTH)

    def models(self) -> ModelList:
        """Return the available models (marking those in memory) and the remote providers."""
        return self.backend.call(api.LIST_MODELS)

    def unload(self, name: str) -> list[str]:
        """Free the memory of an idle model. Raises `ModelNotFound`, and `TaskConflict` while the model is in use."""
        return self.backend.call(api.UNLOAD_MODEL, name)

    def agents(self) -> AgentList:
        """Return the available agents and the problems of files in the configured folder."""
        return self.backend.call(api.LIST_AGENTS)

    def workflows(self) -> list[WorkflowInfo]:
        """Return the available workflows with their parameter schemas."""
        return self.backend.call(api.LIST_WORKFLOWS)

    def conversations(self, owner: str | None = None) -> list[ConversationInfo]:
        """Return the conversations of all users or of `owner`, most recently used first."""
        return self.backend.call(api.LIST_CONVERSATIONS, query={"owner": owner})

    def conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Return a conversation of the caller, or of `owner`, with its turns. Raises `ConversationNotFound`."""
        return self.backend.call(api.GET_CONVERSATION, name, query={"owner": owner})

    def delete_conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Delete a conversation and return it. Raises `ConversationNotFound`."""
        return self.backend.call(api.DELETE_CONVERSATION, name, query={"owner": owner})

    def metrics_history(self, timeframe: Timeframe = "5m", points: int = 300) -> MetricsHistory:
        """Return the metrics of the last `timeframe` (`5m`, `15m`, `1h`, `6h`, `24h`, `7d`) in at most `points` points."""
        return self.backend.call(api.GET_METRICS_HISTORY, query={"timeframe": timeframe, "points": points})

    def insights(self, metric_type: MetricType = "performance", timeframe: Timeframe = "1h", wording: WordingChoice = "none") -> Insights:
        """Return findings about `performance`, `memory`, `efficiency` or `errors`. `wording` selects a model to rewrite them."""
        request = {"metric_type": metric_type, "timeframe": timeframe, "wording": wording}
        return self.backend.call(api.ANALYSE_HISTORY, body=request)

    def operations(self) -> list[OperationInfo]:
        """Return the available operations with their parameter schemas."""
        return self.backend.call(api.LIST_OPERATIONS)

    def close(self) -> None:
        """Close the connection. Tasks keep running."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.where}>"

    def leave(self, *task_ids: str) -> str:
        """Return what becomes of tasks whose kernel stops while it waits for them."""
        return f"{' '.join(task_ids)} continues to run without this process"

    def _uploads(self) -> Uploads:
        """Return a sender of the arrays of one submission."""
        return Uploads(self.backend)

    def _place(self) -> tuple[str | None, str | None]:
        """Return the notebook and the kernel whose sessions have names here."""
        return notebook(), None

    def _handle(self, task: Task, shown: TaskOutput | None = None) -> TaskHandle:
        return handle_of(self.backend, task, plain_result, shown)

    def _request(
        self, operation: str, parameters: dict[str, Any], name: str | None = None, options: Options | None = None
    ) -> dict[str, Any]:
        options = options or self.options
        session = options.session
        options = replace(options, name=options.name or name, session=self.session_ids.get(session or "", session))
        caller = {"origin": self.origin, "notebook": notebook()}
        return {"operation": operation, "parameters": parameters, **caller, **options.request()}

    def _submit(self, operation: str, parameters: dict[str, Any], name: str | None = None, follow: float = 0.0) -> TaskHandle:
        request, key = self._request(operation, parameters, name), new_key()
        if not follow:
            return self._handle(self._send(lambda: self.backend.call(api.SUBMIT_TASK, body=request, key=key)))
        shown = self._send(lambda: self.backend.call(api.SUBMIT_FOLLOWED, body=request, key=key, wait=follow))
        assert shown.task is not None
        return self._handle(shown.task, shown)

    def _send(self, submit: Callable[[], Submitted]) -> Submitted:
        try:
            answer = submit()
        except SessionEnded as problem:
            self.follow_session(problem)
            raise
        self.follow_session(answer.task if isinstance(answer, TaskOutput) else answer)
        return answer

    def follow_session(self, answer: Task | BaseException | None) -> None:
        """Store the session's id from the response to a submission.

        An ended session is reported once. The next task with its name uses the runtime's current session of that name.
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
        request, key, limit = self._request(operation, parameters, name), new_key(), Limit(self.options.deadline)
        first = FIRST_WAIT if self.options.deadline is None else min(FIRST_WAIT, int(self.options.deadline))
        try:
            with limit.applied():
                task = self._send(lambda: self.backend.call(api.SUBMIT_TASK, body=request, key=key, wait=first))
                return self._handle(task).result(limit.left())
        except KeyboardInterrupt:
            raise shown_as_line(KeyboardInterrupt(self._interrupted(request, key))) from None
        except (TimeoutError, Unavailable, NotConnected):
            if not limit.ended:
                raise
            raise TimeoutError(f"no result within {self.options.deadline:g} s: {self._interrupted(request, key)}") from None

    def _interrupted(self, request: dict[str, Any], key: str) -> str:
        """Cancel an interrupted task, unless the kernel stops, and return what became of it."""
        stops = kernel_stops_soon()
        once = Limit()
        once.cancel()
        try:
            # The same key returns the same task, even if the interrupt came before its id.
            with once.applied():
                task = self.backend.call(api.SUBMIT_TASK, body=request, key=key)
            if stops:
                return self.leave(task.task_id)
            return after_cancel(self.cancel(task.task_id))
        except KeyboardInterrupt:
            return "interrupted again while the task was being cancelled: tasks() shows its state"
        except OpenRuntimeError as problem:
            return f"the task could not be cancelled ({problem})"


def _outcome(handle: TaskHandle) -> Any:
    try:
        return handle.result()
    except TaskError as problem:
        return problem


def _groups(requests: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the requests in groups that are small enough for one request."""
    group: list[dict[str, Any]] = []
    size = 0
    for request in requests:
        length = len(json.dumps(request, default=str))
        if group and (len(group) == MOST_IN_BATCH or size + length > MOST_BYTES):
            yield group
            group, size = [], 0
        group.append(request)
        size += length
    if group:
        yield group


def _field(option: str) -> str:
    """Return the `TaskRequest` field of an option."""
    return "device_preference" if option == "device" else option


def _ids(sessions: Iterable[Session]) -> str:
    return ", ".join(f"{each.id} ({each.name}, {each.notebook or 'no notebook'})" for each in sessions) or "none"
