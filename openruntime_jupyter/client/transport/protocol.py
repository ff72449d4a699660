"""Interface of a client to a runtime."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from openruntime_jupyter.client.transport.watch import Tell, Watch
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.schemas.ai import AgentList, AiTask, Conversation, ConversationInfo, ModelList, WorkflowInfo
from openruntime_jupyter.schemas.arrays import ArrayInfo
from openruntime_jupyter.schemas.insights import Insights, MetricType, WordingChoice
from openruntime_jupyter.schemas.sessions import Session
from openruntime_jupyter.schemas.system import Device, Health, MetricsHistory, OperationInfo, SystemMetrics, Timeframe, Worker
from openruntime_jupyter.schemas.tasks import Ended, Task, TaskOrder, TaskOutput, TaskPage
from openruntime_jupyter.schemas.values import ArrayKind

MOST_IN_BATCH = 1_000
"""Maximum tasks per `submit_many`. Limits the request size; runtimes accept more."""

LONGEST_WAIT = 20.0
"""Maximum seconds that one request waits: shorter than the idle timeouts of common proxies."""


def new_key() -> str:
    """Return a new idempotency key."""
    return uuid.uuid4().hex


class Backend(Protocol):
    """Thread-safe synchronous interface to a runtime.

    All methods raise only the errors of `openruntime_jupyter.errors`, including `NotConnected` if the runtime does not respond.
    `http.py` and `embedded.py` implement it, and the contract tests cover both.
    """

    where: str
    """URL of the runtime, or `embedded`."""
    local: bool
    """True if the runtime is on this machine and can use this process's interpreter and folders."""

    def submit(self, request: dict[str, Any], key: str, wait: float = 0.0) -> Task:
        """Submit a task and return its record at its end, or after `wait` seconds. The task is then stored on disk.

        `request` is a `TaskRequest` as JSON, without `wait`. A repeated `key` (`new_key()`) returns the same task, so a lost or
        interrupted call can be repeated.
        """

    def submit_followed(self, request: dict[str, Any], key: str, wait: float) -> TaskOutput:
        """Submit a task like `submit`, and return its output of the first `wait` seconds with the record, like `output`."""

    def submit_many(self, requests: list[dict[str, Any]], key: str, durable: bool = True) -> list[Task | OpenRuntimeError]:
        """Submit at most `MOST_IN_BATCH` tasks, and return the record or error of each, in order.

        A repeated `key` returns the same tasks, as with `submit`. Tasks that are not `durable` are interrupted if the runtime stops;
        small ones run about three times as fast.
        """

    def collect(self, task_ids: list[str], at_least: int = 1, wait: float = 0.0) -> list[Ended]:
        """Return the ended tasks among `task_ids`, in order, once `at_least` have ended or after `wait` seconds.

        May return earlier, after `LONGEST_WAIT`, and with only some of them: call it again for the rest. Unknown tasks count as
        ended, with `TaskNotFound` in place of the record.
        """

    def get(self, task_id: str, parameters: bool = True) -> Task:
        """Return the task's current record, optionally without its parameters, which may be large. Raises `TaskNotFound`."""

    def wait(self, task_id: str, seconds: float) -> Task:
        """Return the task's record at its end, or after `seconds`, without parameters.

        May return earlier, after `LONGEST_WAIT`: call it again then.
        """

    def cancel(self, task_id: str) -> Task:
        """Cancel the task and return its final record. An ended task is returned unchanged."""

    def reprioritise(self, task_id: str, priority: int) -> Task:
        """Change the priority of a pending task. Raises `TaskConflict` once it has started."""

    def purge(self, task_id: str) -> None:
        """Delete an ended task with its output and result. Raises `TaskConflict` before the task has ended."""

    def output(self, task_id: str, since: int = 0, wait: float = 0.0, record: bool = False) -> TaskOutput:
        """Return the output of the task after `since`, the `next` of an earlier response.

        Waits up to `wait` seconds for new output or the task's end. `record` adds the task's record.
        """

    def payload(self, task_id: str) -> tuple[bytes, str]:
        """Return the pickled result and its encoding. Raises `TaskNotFound` without one."""

    def allocate(self, shape: list[int], dtype: str, kind: ArrayKind) -> ArrayInfo:
        """Allocate space for an array. Raises `InvalidRequest` above the size limit, `StorageUnavailable` if space is lacking now."""

    def array_ready(self, array_id: str) -> ArrayInfo:
        """Mark the array's file as complete, so that tasks can use it."""

    def put_array(self, array_id: str, pieces: Iterable[bytes], size: int) -> ArrayInfo:
        """Upload a safetensors file of `size` bytes as the contents of an array."""

    def array(self, array_id: str) -> ArrayInfo:
        """Return the metadata of an array. Raises `ArrayNotFound`."""

    def get_array(self, array_id: str) -> Iterator[bytes]:
        """Yield the safetensors file of an array in chunks. Raises `ArrayNotFound`."""

    def delete_array(self, array_id: str) -> None:
        """Release an array. It is deleted once no task uses it. Raises `ArrayNotFound`."""

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
        """Return a page of tasks, newest first, older than the task `before` and without the first `offset`.

        The order `next` returns the pending tasks in run order. It takes no filters (`InvalidRequest`).
        """

    def devices(self) -> list[Device]:
        """Return the compute devices."""

    def workers(self) -> list[Worker]:
        """Return the worker processes."""

    def sessions(self) -> list[Session]:
        """Return all sessions, most recently used first."""

    def restart_session(self, session_id: str) -> Session:
        """End the session's worker; its next task starts with an empty namespace. Raises `SessionNotFound`."""

    def free_session(self, session_id: str) -> Session:
        """End the session and return its last record. Raises `SessionNotFound`."""

    def metrics(self) -> SystemMetrics:
        """Return the current metrics."""

    def health(self) -> Health:
        """Return the health report, with advice for each problem."""

    def operations(self) -> list[OperationInfo]:
        """Return the available operations with their parameter schemas."""

    def metrics_history(self, timeframe: Timeframe, points: int) -> MetricsHistory:
        """Return the metrics of the last `timeframe` in at most `points` points."""

    def insights(self, metric_type: MetricType, timeframe: Timeframe, wording: WordingChoice = "none") -> Insights:
        """Return findings about the recorded history of the last `timeframe`."""

    def watch(self, topics: Iterable[str], tell: Tell) -> Watch:
        """Call `tell(message)` for each event, on a thread shared by all watchers of this backend; see `watch.py`.

        Raises ValueError for an unknown topic.
        """

    @property
    def prompts(self) -> Prompts:
        """Return the interface for models and prompts."""

    def close(self) -> None:
        """Close the connections. Tasks keep running, and an embedded runtime runs until the process exits."""


class Prompts(Protocol):
    """Thread-safe synchronous interface for prompts, available as `Backend.prompts`.

    `Backend` waits for, cancels, queries and deletes AI tasks like other tasks.
    """

    def ask(self, request: dict[str, Any], key: str, wait: float = 0.0) -> AiTask:
        """Submit an AI task and return its record at its end, or after `wait` seconds.

        `request` is an `AiRequest` as JSON, without `wait` and `stream`. A repeated `key` returns the same task.
        """

    def tokens(self, task_id: str, since: int = 0) -> Iterator[tuple[int, str]]:
        """Stream the text of an AI task after `since` characters as (offset, piece) until the task ends.

        An offset of 0 after the first piece restarts the text. Closing the iterator does not cancel the task.
        """

    def agents(self) -> AgentList:
        """Return the available agents and the problems of files in the configured folder."""

    def workflows(self) -> list[WorkflowInfo]:
        """Return the available workflows."""

    def conversations(self, owner: str | None = None) -> list[ConversationInfo]:
        """Return the conversations of all users or of `owner`, most recently used first."""

    def conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Return a conversation of the caller, or of `owner`. Raises `ConversationNotFound`."""

    def delete_conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Delete a conversation and return it. Raises `ConversationNotFound`."""

    def models(self) -> ModelList:
        """Return the available models and remote providers."""

    def unload(self, name: str) -> list[str]:
        """Unload a model from memory. Raises `ModelNotFound`, and `TaskConflict` while the model is in use."""
