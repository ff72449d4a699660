"""Submission: validates, records and queues tasks."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from pydantic_core import to_json

from openruntime_jupyter.engines.protocol import ExecutionEnvironment, ModelUse
from openruntime_jupyter.errors import InvalidRequest, NotAllowed, QueueFull, Stopping, StorageUnavailable, Unavailable, UnknownOperation
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.operations.base import PROMPT_TIMEOUT, ArrayRef, ModelParameters, Operation, Parameters, World, references
from openruntime_jupyter.operations.registry import operation
from openruntime_jupyter.runtime.arrays.store import ArrayStore
from openruntime_jupyter.runtime.ids import make_id
from openruntime_jupyter.runtime.large import in_thread
from openruntime_jupyter.runtime.queue.admission import Admission
from openruntime_jupyter.runtime.queue.lane import Queue
from openruntime_jupyter.runtime.queue.lanes import Lanes
from openruntime_jupyter.runtime.queue.scheduler import Scheduler
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.runtime.tasks.entry import Entry, OutputBuffer, QueueKey, TokenLog
from openruntime_jupyter.runtime.tasks.registry import TaskRegistry
from openruntime_jupyter.runtime.tasks.sessions import Sessions
from openruntime_jupyter.schemas.arrays import ArrayReference
from openruntime_jupyter.schemas.base import epoch
from openruntime_jupyter.schemas.tasks import Task, TaskRequest

LONGEST_KEY = 255
MOST_INPUTS = 20
"""Maximum number of arrays that a record describes."""


@dataclass(frozen=True)
class Caller:
    """The caller. `may_execute` allows code, `trusted` means logged in, `may_spend` allows remote providers with the owner's accounts."""

    owner: str | None = None
    may_execute: bool = True
    trusted: bool = True
    may_spend: bool = True


@dataclass(slots=True)
class Checked:
    """A valid request. `needs` is in bytes, `timeout` in seconds."""

    operation: Operation
    parameters: bytes
    timeout: float | None
    needs: int | None
    interpreter: str | None
    environment: ExecutionEnvironment
    world: World | None = None
    python: str | None = None
    burst: str | None = None
    arrays: tuple[str, ...] = ()
    inputs: list[ArrayReference] = field(default_factory=list)
    model: ModelUse | None = None


def needs_execute(name: str) -> bool:
    """Return whether the operation needs the permission to execute code; True for an unknown operation."""
    try:
        kind = operation(name)
    except UnknownOperation:
        return True
    return kind.needs_execute or kind.resident


Read = tuple[Parameters, bytes, list[ArrayRef]]
"""Valid parameters, their JSON, and their references to arrays."""


def _read(kind: Operation, given: dict[str, Any]) -> Read:
    parameters = kind.validate(given)
    return parameters, to_json(given, inf_nan_mode="constants"), list(references(parameters))


def _authorise(kind: Operation, caller: Caller) -> None:
    if kind.needs_execute and not caller.may_execute:
        raise NotAllowed(
            f"The operation {kind.name!r} runs your own code and needs the permission to execute: log in, "
            "or give the token that was printed when the server started"
        )
    if kind.inline and not caller.may_spend:
        raise NotAllowed(
            f"The operation {kind.name!r} uses a remote provider at the owner's cost and needs a login: log in, give the token "
            "that was printed when the server started, or use a local model"
        )


def execution_environment(world: World) -> ExecutionEnvironment:
    """Return the part of a request's `world` that decides which prepared worker its task may have."""
    path = None if world.path is None else tuple(world.path)
    return ExecutionEnvironment(world.directory, path, tuple(sorted(world.environment.items())), world.kernel)


def _bounded(kind: Operation, parameters: Parameters, timeout: float | None, most: float) -> float:
    seconds = kind.seconds_needed(parameters)
    if seconds is not None and seconds > most:
        raise InvalidRequest.of(
            "parameters", f"about {seconds:,.0f} s of work, and without a login the most is {most:g} s: make it smaller, or log in"
        )
    return min(timeout or most, most)


def fingerprint(request: TaskRequest) -> str:
    """Return the fingerprint of a request, which leaves out `wait`."""
    same = {name: value for name, value in request if name != "wait"}
    return hashlib.sha256(to_json(same, inf_nan_mode="constants")).hexdigest()


class TaskSubmission:
    """Validation, recording and queueing of tasks. `need_lanes(interpreter)` waits until devices are known."""

    def __init__(
        self,
        settings: Settings,
        runtime_id: str,
        history: History,
        registry: TaskRegistry,
        lanes: Lanes,
        scheduler: Scheduler,
        admission: Admission,
        need_lanes: Callable[[str | None], Awaitable[None]],
        arrays: ArrayStore,
        sessions: Sessions,
        models: ModelCatalog,
    ) -> None:
        self._settings = settings
        self._runtime = runtime_id
        self._history = history
        self._registry = registry
        self._lanes = lanes
        self._scheduler = scheduler
        self._admission = admission
        self.need_lanes = need_lanes
        self._arrays = arrays
        self._sessions = sessions
        self._models = models
        self._keys: WeakValueDictionary[tuple[str | None, str], asyncio.Lock] = WeakValueDictionary()
        self._sequence = 0
        self._reserved = 0
        """Number of tasks that are being recorded."""
        self._stopping = False

    def close(self) -> None:
        """Reject further submissions."""
        self._stopping = True

    async def submit(
        self, request: TaskRequest, caller: Caller, idempotency_key: str | None = None, same: str | None = None, *, large: bool = False
    ) -> str:
        """Queue a task and return its id; an asynchronous task (`request.wait` false) is on disk by then.

        Raises `InvalidRequest` and its kinds, `NotAllowed`, `QueueFull`, `Stopping`, `StorageUnavailable`. The same
        `idempotency_key` of the same owner gives the same task; `same` is the fingerprint of what the request was made from. A `large`
        request is validated on a thread.
        """
        entry = await self.prepare(request, caller, large=large)
        if idempotency_key is None:
            await self._admit(entry)
            return entry.task_id
        self._require_room(entry)
        async with self.lock(caller, idempotency_key):
            if same is None:
                same = await in_thread(fingerprint, request) if large else fingerprint(request)
            return await self._once(entry, same, idempotency_key)

    async def earlier(self, caller: Caller, key: str, same: str) -> str | None:
        """Return the id of the task that a key belongs to, or None; raise `InvalidRequest` if the key belongs to another request."""
        try:
            earlier = await self._history.remember_key(caller.owner or "", key, None)
        except StorageUnavailable:  # `submit` handles it
            return None
        if earlier is None:
            return None
        task_id, known = earlier
        _require_same_request(known, same)
        return task_id if await self._is_known(task_id) else None

    async def _is_known(self, task_id: str) -> bool:
        return self._registry.find(task_id) is not None or await self._history.get(task_id, parameters=False) is not None

    def lock(self, caller: Caller, key: str) -> asyncio.Lock:
        """Return the lock of a key: requests with the same key run one after the other."""
        return self._keys.setdefault((caller.owner, key), asyncio.Lock())

    async def prepare(self, request: TaskRequest, caller: Caller, task_id: str | None = None, *, large: bool = False) -> Entry:
        """Validate a request, a `large` one on a thread, and return its entry. Raises what `submit` raises, except `QueueFull`."""
        read = None
        if large:
            kind = operation(request.operation)
            _authorise(kind, caller)
            read = await in_thread(_read, kind, request.parameters)
        await self.read_models(request, caller)
        checked = self.check(request, caller, read)
        queue = await self.place(checked, request.device_preference)
        self._admission.check(checked.needs, queue)
        self._require_open()
        return self._entry(request, checked, caller.owner, queue, task_id)

    async def read_models(self, request: TaskRequest, caller: Caller) -> None:
        """Read the files of new models in a thread, if the request needs a model: `check` runs on the event loop."""
        if operation(request.operation).resident:
            name = request.parameters.get("model")
            await self._models.refresh(name if isinstance(name, str) else None, caller)

    def check(self, request: TaskRequest, caller: Caller, read: Read | None = None) -> Checked:
        """Validate and authorise a request; raise `InvalidRequest` and its subclasses, and what `ModelCatalog.resolve` raises.

        Missing arrays are rejected later, when the task would lease them: a repeated request must find its task though its arrays may be
        gone. `read` has the parameters if they were read before.
        """
        kind = operation(request.operation)
        _authorise(kind, caller)
        parameters, encoded, named = read or _read(kind, request.parameters)
        most = self._settings.max_parameters_bytes
        if len(encoded) > most:
            raise InvalidRequest.of(
                "parameters",
                f"{len(encoded):,} bytes of JSON, and the most is {most:,} (max_parameters_bytes); let the task load large data itself",
            )
        inputs: dict[str, ArrayReference] = {}
        for each in named:
            if (layout := self._arrays.known(each.array)) is not None:
                each.resolve(layout.shape, layout.dtype, layout.nbytes)
                if len(inputs) < MOST_INPUTS:
                    inputs[each.array] = ArrayReference(
                        id=each.array, shape=list(layout.shape), dtype=layout.dtype, bytes=layout.nbytes, kind=layout.kind
                    )
        model = None
        if isinstance(parameters, ModelParameters):
            source = self._models.resolve(parameters.model, caller, parameters.adapter)
            parameters.use(source)
            model = ModelUse(source, self._settings.keep_alive if parameters.keep_alive is None else parameters.keep_alive)
        timeout = request.timeout or (PROMPT_TIMEOUT if kind.answers_prompts else None)
        if not caller.trusted:
            timeout = _bounded(kind, parameters, timeout, self._settings.untrusted_timeout)
        world = getattr(parameters, "world", None)
        interpreter = world.interpreter if world is not None else None
        if interpreter is not None and not os.path.isabs(interpreter):  # noqa: PTH117 - with a Path it is a tenth of submitting a batch
            raise InvalidRequest.of("parameters.world.interpreter", "give an absolute path")
        environment = execution_environment(world) if world is not None else ExecutionEnvironment()
        pickles = getattr(parameters, "pickled", None) or getattr(parameters, "outputs", None)
        python = world.python if world is not None and pickles else None
        burst = getattr(parameters, "burst", None)
        if burst is not None:  # a process is never shared between users or kernels
            burst = f"{caller.owner or ''} {environment.kernel or ''} {burst}"
        if request.session is not None and kind.name not in ("python", "call"):
            raise InvalidRequest.of("session", f"{kind.name} uses no variables of a session: only python and call do")
        arrays = tuple(dict.fromkeys(each.array for each in named))
        needs, found = kind.bytes_needed(parameters), list(inputs.values())
        return Checked(kind, encoded, timeout, needs, interpreter, environment, world, python, burst, arrays, found, model)

    async def place(self, checked: Checked, preference: str) -> Queue:
        """Return the queue of the task; raise `UnknownDevice` or `Unavailable`."""
        if not checked.operation.inline:
            if not self._lanes.known:
                await self.need_lanes(checked.interpreter)
            return self._lanes.place(preference)
        if self._lanes.remote is None:
            raise Unavailable(f"This runtime has no provider for {checked.operation.name!r}", retry_after=None)
        return self._lanes.remote

    def _require_open(self) -> None:
        if self._stopping:
            raise Stopping("The runtime is stopping: retry after it has restarted", retry_after=5.0)

    def _require_room(self, entry: Entry) -> None:
        """Raise `QueueFull` if the queue has no room for the task."""
        waiting = self._lanes.pending + self._reserved
        if waiting < self._settings.max_pending:
            return
        if self._settings.max_pending == 0 and self._reserved < self._lanes.queue_of(entry).free_slots:
            return
        raise QueueFull(
            f"{waiting:,} tasks are pending, and max_pending is {self._settings.max_pending:,}: try again later", retry_after=5.0
        )

    def reserve(self, entry: Entry) -> None:
        """Reserve a place in the queue and the arrays of a task to be recorded; raise `QueueFull` or `InvalidRequest`."""
        self._require_room(entry)
        if entry.arrays:
            self._arrays.lease(entry.arrays, entry.task_id)
        self._reserved += 1
        if entry.session is not None:
            self._sessions.add_task(entry.session)

    def unreserve(self, entry: Entry) -> None:
        """Undo `reserve` for a task that was not recorded."""
        self._reserved -= 1
        if entry.arrays:
            self._arrays.release(entry.task_id, entry.arrays)
        if entry.session is not None:
            self._sessions.remove_task(entry.session)

    def enqueue(self, entry: Entry) -> None:
        """Queue a recorded task after `reserve`."""
        self._reserved -= 1
        self._scheduler.enqueue(entry)
        self._registry.updates.add(entry)

    async def _once(self, entry: Entry, same: str, key: str) -> str:
        if entry.wait:
            try:
                earlier = await self._history.remember_key(entry.owner or "", key, entry.task_id, same)
            except StorageUnavailable:
                earlier = None  # a synchronous task runs while the disk is full; a repeated request would run again
            if earlier is None:
                await self._admit(entry)
        else:
            try:
                earlier = await self._admit(entry, (entry.owner or "", key, same))
            except InvalidRequest:  # the key's task may have ended, and its arrays with it
                earlier = await self._history.remember_key(entry.owner or "", key, None)
                if earlier is None:
                    raise
        if earlier is None:
            return entry.task_id
        task_id, known = earlier
        _require_same_request(known, same)
        if not await self._is_known(task_id):
            # The key was stored and its task was not: the server died, or the disk was full, between the two.
            entry.task_id = task_id
            await self._admit(entry)
        return task_id

    async def _admit(self, entry: Entry, key: tuple[str, str, str] | None = None) -> tuple[str, str] | None:
        """Record and queue a task; see `TaskRegistry.admit`."""
        self._require_open()
        self.reserve(entry)
        try:
            earlier = await self._registry.admit(entry, key)
        except BaseException:
            self.unreserve(entry)
            raise
        if earlier is None:
            self.enqueue(entry)
        else:
            self.unreserve(entry)
        return earlier

    def _entry(self, request: TaskRequest, checked: Checked, owner: str | None, queue: Queue, task_id: str | None = None) -> Entry:
        self._sequence += 1
        now = time.monotonic()
        prompt = checked.operation.answers_prompts
        session = self._sessions.use(request.session, owner, checked.world) if request.session is not None else None
        return Entry(
            task_id=task_id or make_id("ai_task" if prompt else "task"),
            operation=request.operation,
            parameters=checked.parameters,
            given=request.parameters,
            queue=queue.name,
            key=QueueKey.of(now, request.priority, self._settings.aging_seconds, self._sequence),
            priority=request.priority,
            owner=owner,
            origin=request.origin,
            wait=request.wait,
            runtime=self._runtime,
            output=OutputBuffer(self._settings.max_output_bytes),
            submitted_mono=now,
            name=request.name,
            notebook=request.notebook,
            device_preference=request.device_preference,
            timeout=checked.timeout,
            retries=request.retries,
            memory_limit=request.memory_limit,
            needs=checked.needs,
            interpreter=checked.interpreter,
            environment=checked.environment,
            python=checked.python,
            private=not (checked.operation.shared or checked.operation.resident),
            burst=checked.burst,
            arrays=checked.arrays,
            inputs=checked.inputs,
            returns_arrays=checked.operation.returns_arrays,
            model=checked.model,
            session=session,
            session_number=session.number if session is not None else 0,
            tokens=TokenLog() if prompt else None,
        )

    def inherit(self, task: Task, request: TaskRequest, checked: Checked, queue: Queue) -> None:
        """Queue a task of a dead runtime, with its age and its attempts.

        Raises `ArrayNotFound`, and `SessionEnded` for a task of a session, which has ended with that runtime.
        """
        entry = self._entry(request, checked, task.owner, queue, task.task_id)
        self._arrays.lease(checked.arrays, task.task_id)
        entry.submitted = epoch(task.submitted_at) or entry.submitted
        entry.submitted_mono -= max(0.0, time.time() - entry.submitted)
        entry.key = QueueKey.of(entry.submitted_mono, entry.priority, self._settings.aging_seconds, entry.key.sequence)
        entry.attempt = task.attempt
        self._registry.inherit(entry)
        self._scheduler.enqueue(entry)
        self._registry.updates.add(entry)


def _require_same_request(known: str, same: str) -> None:
    if known != same:
        raise InvalidRequest.of("Idempotency-Key", "this key was used for another request: take a new one for each request")
