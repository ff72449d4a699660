"""What a client needs of a runtime, wherever that runtime is."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from openruntime_jupyter.client.transport.prompts import Prompts
from openruntime_jupyter.client.transport.watch import Tell, Watch
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.schemas.arrays import ArrayInfo
from openruntime_jupyter.schemas.insights import Insights, MetricType, WordingChoice
from openruntime_jupyter.schemas.sessions import Session
from openruntime_jupyter.schemas.system import Device, Health, MetricsHistory, OperationInfo, SystemMetrics, Timeframe, Worker
from openruntime_jupyter.schemas.tasks import Ended, Task, TaskOrder, TaskOutput, TaskPage
from openruntime_jupyter.schemas.values import ArrayKind

MOST_IN_BATCH = 1_000
"""Tasks that one `submit_many` takes; a runtime takes more, this bounds what one request holds."""

LONGEST_WAIT = 20.0
"""Seconds that one question waits for its answer at most: shorter than the idle time-outs of the proxies on the way."""


def new_key() -> str:
    """A fresh idempotency key."""
    return uuid.uuid4().hex


class Backend(Protocol):
    """A runtime, seen from any thread of a synchronous program.

    Each method raises the errors of `openruntime_jupyter.errors` alone: those of the runtime, and `NotConnected` where the
    runtime does not answer. `http.py` and `embedded.py` implement it, and the contract tests run over both.
    """

    where: str
    """What people call this runtime: its URL, or `embedded`."""
    local: bool
    """Whether it is on this machine, so that the interpreter and folders of this process mean something there."""

    def submit(self, request: dict[str, Any], key: str, wait: float = 0.0) -> Task:
        """Queue a task (`request` is a `TaskRequest` as JSON, without `wait`) that outlives this call.

        Returns at its end, or after `wait` seconds as it is then; the task is on disk by that time. The same `key`
        (`new_key()`) gives the same task again, so that a call that was lost or interrupted can be repeated.
        """

    def submit_followed(self, request: dict[str, Any], key: str, wait: float) -> TaskOutput:
        """Queue a task as `submit` does, and return what it showed within `wait` seconds, with its record, as `output` does."""

    def submit_many(self, requests: list[dict[str, Any]], key: str, durable: bool = True) -> list[Task | OpenRuntimeError]:
        """Queue a task for each of `requests`, at most `MOST_IN_BATCH`, and return its record or the reason of its refusal, in order.

        The same `key` gives the same tasks again, as with `submit`. Tasks that are not `durable` end as interrupted if the runtime ends
        before they do; small ones run about three times as fast.
        """

    def collect(self, task_ids: list[str], at_least: int = 1, wait: float = 0.0) -> list[Ended]:
        """Return the tasks among `task_ids` that have ended, in that order, once `at_least` of them have, or after `wait` seconds.

        It may return earlier, after `LONGEST_WAIT`, and with a part of them: call it again for the rest. An unknown task counts as ended,
        with `TaskNotFound` in place of its record.
        """

    def get(self, task_id: str, parameters: bool = True) -> Task:
        """The task as it is now; raises `TaskNotFound`. Its parameters, which may be large, are left out where they are not wanted."""

    def wait(self, task_id: str, seconds: float) -> Task:
        """The task at its end, or as it is after `seconds`, without its parameters.

        It may return earlier, after `LONGEST_WAIT`: ask again then.
        """

    def cancel(self, task_id: str) -> Task:
        """Stop the task and return it at its end; one that ended already is returned as it is."""

    def reprioritise(self, task_id: str, priority: int) -> Task:
        """Change the priority of a waiting task; raises `TaskConflict` once it was started."""

    def purge(self, task_id: str) -> None:
        """Erase an ended task with its output and results; raises `TaskConflict` while it has not ended."""

    def output(self, task_id: str, since: int = 0, wait: float = 0.0, record: bool = False) -> TaskOutput:
        """What the task showed after `since`, the `next` of an earlier answer.

        Waits for something new, or for the task's end, for up to `wait` seconds. `record` adds the task's record.
        """

    def payload(self, task_id: str) -> tuple[bytes, str]:
        """The opaque result and its encoding; raises `TaskNotFound` where there is none."""

    def allocate(self, shape: list[int], dtype: str, kind: ArrayKind) -> ArrayInfo:
        """Take room for an array; raises `InvalidRequest` for more than there may be, `StorageUnavailable` where there is none now."""

    def array_ready(self, array_id: str) -> ArrayInfo:
        """The file of the array is filled: from now on it can be used."""

    def put_array(self, array_id: str, pieces: Iterable[bytes], size: int) -> ArrayInfo:
        """Fill the room of an array whose file is not at hand, with a safetensors file of `size` bytes."""

    def array(self, array_id: str) -> ArrayInfo:
        """What is known of an array; raises `ArrayNotFound`."""

    def get_array(self, array_id: str) -> Iterator[bytes]:
        """The safetensors file of an array, piece by piece; raises `ArrayNotFound`."""

    def delete_array(self, array_id: str) -> None:
        """Give an array up: it goes when no task needs it any more. Raises `ArrayNotFound`."""

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
        """A page of tasks, newest first, those older than the task `before`, without the first `offset`.

        With the order `next` it is what waits, the next to run first, and no filter goes with it: `InvalidRequest`.
        """

    def devices(self) -> list[Device]:
        """What MLX computes on there."""

    def workers(self) -> list[Worker]:
        """The worker processes that there are."""

    def sessions(self) -> list[Session]:
        """Return every session, the last used first."""

    def restart_session(self, session_id: str) -> Session:
        """End the session's worker; its next task starts with an empty namespace. Raises `SessionNotFound`."""

    def free_session(self, session_id: str) -> Session:
        """End the session; return what it was. Raises `SessionNotFound`."""

    def metrics(self) -> SystemMetrics:
        """The figures of now."""

    def health(self) -> Health:
        """Whether all is well, and what to do about what is not."""

    def operations(self) -> list[OperationInfo]:
        """The kinds of work it does, with the schemas of their parameters."""

    def metrics_history(self, timeframe: Timeframe, points: int) -> MetricsHistory:
        """The figures of the last `timeframe` in at most `points` points."""

    def insights(self, metric_type: MetricType, timeframe: Timeframe, wording: WordingChoice = "none") -> Insights:
        """What the recorded history of the last `timeframe` tells."""

    def watch(self, topics: Iterable[str], tell: Tell) -> Watch:
        """Have `tell(message)` called with what happens, on a thread that all who watch this backend share; see `watch.py`.

        Raises ValueError for a topic that there is not.
        """

    @property
    def prompts(self) -> Prompts:
        """Its models, and what is said to them."""

    def close(self) -> None:
        """Let go of connections. Tasks go on, and a runtime hosted in this process stays until the process ends."""
