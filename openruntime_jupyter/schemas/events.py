"""Messages of the WebSocket in both directions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, RootModel

from openruntime_jupyter.schemas.base import Timestamp, Wire, absent
from openruntime_jupyter.schemas.system import Metrics
from openruntime_jupyter.schemas.tasks import OutputItem, Progress, TaskState

Topic = Literal["task_update", "metrics", "task_progress", "task_output", "ai_token"]
SubscriptionChange = Literal["subscribe", "unsubscribe"]


class ClientMessage(Wire):
    """Message from a client: a change of its subscription."""

    type: SubscriptionChange = Field(description="`subscribe` adds the topics, `unsubscribe` removes them.")
    topics: list[Topic] = Field(description="Topics to add or remove.", min_length=1, max_length=20)


class Event(Wire):
    """Base class of the messages from the server."""

    id: int = Field(description="Number that never decreases. Send that of the last message as `since` to miss none.")


class Connected(Event):
    """First message."""

    type: Literal["connected"] = Field(description="Always `connected`.")
    timestamp: Timestamp = Field(description="Current time.")
    message: str = Field(description="Greeting for people.")
    topics: list[Topic] = Field(description="Subscribed topics.")
    gap: bool | None = absent("true if messages after `since` were missed; absent without `since`.")


class Heartbeat(Event):
    """Message every five seconds."""

    type: Literal["heartbeat"] = Field(description="Always `heartbeat`.")
    timestamp: Timestamp = Field(description="Current time.")
    metrics: Metrics = Field(description="Current metrics.")


class TaskNews(Wire):
    """Changed state of a task: some fields of its record."""

    task_id: str = Field(description="Id of the task.")
    status: TaskState = Field(description="State of the task.")
    execution_time: float | None = Field(description="Seconds since the start, until the task finished or until now.")
    operation: str = Field(description="Name of the operation.")
    name: str | None = Field(description="Display name.")
    owner: str | None = Field(description="User who submitted the task; null without a login.")
    priority: int = Field(description="1 to 10; 10 is the most urgent.")
    attempt: int = Field(description="Number of times the task was started.")
    device_used: str | None = Field(description="Id of the device on which the task was started.")
    error: str | None = Field(description="One-line error message, unless the task completed.")
    cancel_stage: str | None = Field(description="Stage that cancelled the task: `queue`, `interrupt`, `terminate` or `kill`.")
    timestamp: Timestamp = Field(description="Time of the last state change.")


class TaskUpdate(Event):
    """Changed state of a task. States shorter than 50 ms may be skipped, except the final one."""

    type: Literal["task_update"] = Field(description="Always `task_update`.")
    data: TaskNews = Field(description="State of the task.")


class ProgressNews(Progress):
    """Progress of a task."""

    task_id: str = Field(description="Id of the task.")


class TaskProgress(Event):
    """Progress of a task (topic)."""

    type: Literal["task_progress"] = Field(description="Always `task_progress`.")
    data: ProgressNews = Field(description="Progress of the task.")


class OutputNews(Wire):
    """New output of a task."""

    task_id: str = Field(description="Id of the task.")
    items: list[OutputItem] = Field(description="New output items, and changes of earlier ones.")
    next: int = Field(description="Value of `since` with which `GET /tasks/{id}/output` returns what follows.")


class TaskOutputChange(Event):
    """New output of a task (topic)."""

    type: Literal["task_output"] = Field(description="Always `task_output`.")
    data: OutputNews = Field(description="New output.")


class TokenNews(Wire):
    """Generated text of an AI task."""

    task_id: str = Field(description="Id of the task.")
    text: str = Field(description="Text of the piece.")
    index: int = Field(description="Number of preceding characters (code points); 0 again if the text starts over.")


class AiToken(Event):
    """Generated text of an AI task (topic)."""

    type: Literal["ai_token"] = Field(description="Always `ai_token`.")
    data: TokenNews = Field(description="Generated text.")


class MetricsUpdate(Event):
    """Metrics, once a second (topic)."""

    type: Literal["metrics"] = Field(description="Always `metrics`.")
    timestamp: Timestamp = Field(description="Current time.")
    metrics: Metrics = Field(description="Current metrics.")


class Subscribed(Event):
    """Response to a changed subscription."""

    type: Literal["subscribed"] = Field(description="Always `subscribed`.")
    topics: list[Topic] = Field(description="Subscribed topics.")


class MessageRejected(Event):
    """Response to an invalid message of the client. The connection stays open."""

    type: Literal["error"] = Field(description="Always `error`.")
    error: str = Field(description="Error message.")


class ServerMessage(
    RootModel[
        Annotated[
            Connected | Heartbeat | TaskUpdate | TaskProgress | TaskOutputChange | AiToken | MetricsUpdate | Subscribed | MessageRejected,
            Field(discriminator="type"),
        ]
    ]
):
    """Message from the server, by its `type`. Newer servers may send further types."""
