"""Queries of the API (the parameters after `?`) by endpoint."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from openruntime_jupyter.schemas.events import Topic
from openruntime_jupyter.schemas.system import Timeframe
from openruntime_jupyter.schemas.tasks import LONGEST_NOTEBOOK, TaskOrder, TaskState

LONGEST_WAIT = 60.0
"""Maximum wait of a request in seconds. Many proxies close connections that are idle for longer."""


class Query(BaseModel):
    """Base class of queries. Unknown parameters are ignored, because front ends add their own to bypass caches."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    repeatable: ClassVar[frozenset[str]] = frozenset()
    """Names of the parameters with several values."""


def _split(value: Any) -> Any:
    """Split repeated and comma-separated values of a parameter."""
    return [name.strip() for given in value for name in given.split(",")] if isinstance(value, list) else value


Wait = Annotated[float, Field(ge=0, le=LONGEST_WAIT, allow_inf_nan=False)]


class PageQuery(Query):
    """Query of `GET /tasks/enhanced`."""

    limit: int = Field(100, ge=1, le=1000, description="Maximum number of tasks.")
    before: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Only tasks older than the task with this id. Use `next_before` of the previous page.",
    )
    offset: int = Field(0, ge=0, le=2**53, description="Number of tasks to skip; slower than `before` for large numbers.")


class TasksQuery(PageQuery):
    """Query of `GET /tasks`."""

    repeatable = frozenset({"state"})

    state: Annotated[list[TaskState], BeforeValidator(_split)] | None = Field(
        None, max_length=20, description="Only tasks in this state. Can be repeated or comma-separated."
    )
    operation: str | None = Field(None, min_length=1, max_length=200, description="Only tasks of this operation.")
    owner: str | None = Field(None, min_length=1, max_length=200, description="Only tasks of this user.")
    notebook: str | None = Field(None, min_length=1, max_length=LONGEST_NOTEBOOK, description="Only tasks of this notebook.")
    name: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Only tasks whose name contains this text, ignoring case. The name of an unnamed task is its operation.",
    )
    search: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Only tasks whose name, code or parameters contain this text, ignoring case. Parameters are searched as `name=value`, "
        "the first 10,000 characters of a task; environment variables and pickled values are not.",
    )
    order: TaskOrder = Field(
        "newest",
        description="`newest`: newest tasks first. `next`: pending tasks, next to run first; only with `limit`, `offset`, `notebook`, "
        "`name` and `search`.",
    )


class WaitQuery(Query):
    """Query with a maximum wait."""

    wait: Wait = Field(0.0, description="Maximum wait in seconds.")


class TaskQuery(WaitQuery):
    """Query of `GET /tasks/{id}`."""

    parameters: bool = Field(True, description="false: omit the parameters of the task, which can be large.")
    summary: bool = Field(
        False,
        description="true: describe large values of the parameters by their kind and size, and omit environment variables.",
    )


class OutputQuery(WaitQuery):
    """Query of `GET /tasks/{id}/output`."""

    since: int = Field(0, ge=0, le=2**53, description="Only output after this position. Use `next` of the previous response.")
    record: bool = Field(False, description="true: include the record of the task without parameters as `task`.")


class TokensQuery(Query):
    """Query of `GET /tasks/{id}/tokens`."""

    since: int = Field(0, ge=0, le=2**53, description="Number of characters (code points) to skip.")


class ConversationsQuery(Query):
    """Query of `/ai/conversations`."""

    owner: str | None = Field(None, min_length=1, max_length=200, description="Owner of the conversations.")


class DeleteQuery(Query):
    """Query of `DELETE /tasks/{id}`."""

    purge: bool = Field(False, description="true: delete the finished task with its output and results.")


class EventsQuery(Query):
    """Query of `WS /ws`."""

    repeatable = frozenset({"topics"})

    since: int | None = Field(
        None, ge=0, le=2**53, description="Id of the last received message; newer messages of `task_update` are sent again."
    )
    topics: Annotated[list[Topic], BeforeValidator(_split)] | None = Field(
        None,
        max_length=20,
        description="Topics in addition to `task_update`, from the first message on. Can be repeated or comma-separated.",
    )


class HistoryQuery(Query):
    """Query of `GET /metrics/history`."""

    timeframe: Timeframe = Field("1h", description="Length of the period, which ends now.")
    points: int = Field(300, ge=10, le=2000, description="Maximum number of points.")
    runtime: str | None = Field(None, min_length=1, max_length=200, description="Id of one runtime; by default all runtimes together.")
