"""Endpoints of the API, each defined once: the server, its OpenAPI document and the clients are made from this table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, cast
from urllib.parse import quote

from pydantic import BaseModel

from openruntime_jupyter.schemas import ai
from openruntime_jupyter.schemas.arrays import ArrayInfo, ArrayPage, ArrayRequest
from openruntime_jupyter.schemas.batch import BatchAnswer, BatchRequest, ResultsAnswer, ResultsRequest, ended_tasks, outcomes
from openruntime_jupyter.schemas.chat_completions import (
    HEADERS,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    CompletionHeaders,
    ModelEntries,
    ModelEntry,
    OpenAiError,
)
from openruntime_jupyter.schemas.events import ClientMessage, ServerMessage
from openruntime_jupyter.schemas.hosts import HostList
from openruntime_jupyter.schemas.insights import Insights, InsightsRequest
from openruntime_jupyter.schemas.problems import ErrorEnvelope
from openruntime_jupyter.schemas.queries import (
    ConversationsQuery,
    DeleteQuery,
    EventsQuery,
    HistoryQuery,
    OutputQuery,
    PageQuery,
    Query,
    TaskQuery,
    TasksQuery,
    TokensQuery,
    WaitQuery,
)
from openruntime_jupyter.schemas.system import (
    DeviceList,
    Health,
    MetricsHistory,
    OperationList,
    ServiceInfo,
    Session,
    SessionList,
    SystemMetrics,
    WorkerList,
)
from openruntime_jupyter.schemas.tasks import Task, TaskChange, TaskOutput, TaskPage, TaskRequest
from openruntime_jupyter.schemas.values import LEASE_HEADER, LEASED

Result = TypeVar("Result")
Model = TypeVar("Model", bound=BaseModel)
Schema = Mapping[str, Any]

JSON = "application/json"
ENVELOPE = "application/vnd.openruntime.envelope+json"
EVENT_STREAM = "text/event-stream"
SAFETENSORS = "application/vnd.safetensors"
BINARY = (SAFETENSORS, "application/octet-stream")
"""Content types of an uploaded array."""

TextType = Literal["text/plain", "application/openmetrics-text"]
VERSIONS: dict[TextType, str] = {"text/plain": "0.0.4", "application/openmetrics-text": "1.0.0"}
"""Formats that Prometheus supports, with their versions."""


@dataclass(frozen=True)
class Header:
    """Header of a request or a response."""

    name: str
    description: str
    schema: Schema = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True)
class Answer:
    """Successful response: JSON of the endpoint's model, other media types, or both, depending on the request's `Accept` header."""

    description: str = "Done."
    json: bool = True
    media: Mapping[str, Schema] = field(default_factory=dict)
    """Schemas of media types other than JSON."""
    headers: tuple[Header, ...] = ()
    events: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    """Models of the data of server-sent events by their name."""


@dataclass(frozen=True)
class Part(Generic[Model, Result]):
    """Response of which clients get what `read` returns, for example the list in a `DeviceList`."""

    model: type[Model]
    read: Callable[[Model], Result]


@dataclass(frozen=True, eq=False)
class Endpoint(Generic[Result]):
    """Method and path with its requests and responses. A client's call returns a `Result`.

    The docstring of the server's handler method is the summary and description.
    """

    method: Literal["GET", "PUT", "POST", "PATCH", "DELETE"]
    path: str
    """Template such as `/tasks/{task_id}`."""
    response: type[Result] | Part[Any, Result]
    """Model of the response; `bytes` for content that is not JSON."""
    tag: str
    client: str | None = None
    """Method of `Client`, or of another class of the client as `Class.method`."""
    query: type[Query] | None = None
    body: type[BaseModel] | None = None
    media: Mapping[str, Schema] = field(default_factory=dict)
    """Schemas of media types of the body other than JSON."""
    headers: tuple[Header, ...] = ()
    answers: Mapping[int, Answer] = field(default_factory=lambda: {200: Answer()})
    """Successful responses by status."""
    errors: Mapping[int, str] = field(default_factory=dict)
    """Errors in addition to those of every endpoint: status and reason."""
    error: type[BaseModel] = ErrorEnvelope
    """Model of all error responses."""
    examples: Mapping[str, Any] = field(default_factory=dict)
    """Example bodies by title."""
    messages: tuple[type[BaseModel], type[BaseModel]] | None = None
    """Messages of a WebSocket: from the client, and from the server."""
    action: Literal["read", "write"] | None = None
    """Permission of the caller; None for the usual one of the method."""
    seconds: float = 0.0
    """Time that the response may take, in addition to a wait that the client asks for."""

    @property
    def names(self) -> list[str]:
        """Return the names of the path's parameters."""
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def model(self) -> type[BaseModel] | None:
        """Return the model of the JSON response; None for other content."""
        if isinstance(self.response, Part):
            return cast("type[BaseModel]", self.response.model)
        return self.response if issubclass(self.response, BaseModel) else None

    def url(self, *ids: str) -> str:
        """Return the path with its parameters."""
        left = iter(ids)
        return re.sub(r"\{\w+\}", lambda _: quote(next(left), safe=""), self.path)

    def read(self, content: bytes) -> Result:
        """Parse a response. Fields of newer servers are ignored. Raises ValueError."""
        if self.model is None:
            return cast("Result", content)
        answer = self.model.model_validate_json(content, extra="ignore")
        return self.response.read(answer) if isinstance(self.response, Part) else cast("Result", answer)


BYTES: Schema = {"type": "string", "format": "binary"}
TEXT: Schema = {"type": "string"}
TOKENS: Schema = {
    "type": "string",
    "description": "Events: `token` with a TokenEvent, `reasoning` with a ReasoningEvent, `tool_call` with a ToolCallEvent; at the end "
    "`task` with an AiTask. The `id` of a token is the number of characters up to its end; send it as `Last-Event-ID` to resume from "
    "there. Reasoning and tool calls are then sent again from their beginning. If `index` is 0 again, the worker died, the task was "
    "retried and the text starts over. Comments between events keep the connection alive.",
}
TOKEN_EVENTS: Mapping[str, type[BaseModel]] = {
    "token": ai.TokenEvent,
    "reasoning": ai.ReasoningEvent,
    "tool_call": ai.ToolCallEvent,
    "task": ai.AiTask,
}

IDEMPOTENCY_KEY = Header(
    "Idempotency-Key",
    "Key that makes retries safe: a repeated request with the same key by the same user within a day creates nothing and returns the "
    "result of the first request. The same key with a different body returns 422.",
    {"type": "string", "minLength": 1, "maxLength": 255},
)
PREFER = Header(
    "Prefer",
    "`respond-async` makes the task asynchronous. `wait=N` also waits up to N seconds (at most 60) for the task to finish.",
)
APPLIED = Header("Preference-Applied", "The applied preference.")
RETRY_AFTER = "Retry-After"
VERSION_HEADER = "OpenRuntime-Version"
"""Header of every response with the version of the server's package."""
LOCATION = Header("Location", "URL of the task.")
LEASE = Header(LEASE_HEADER, f"`{LEASED}` if the program holds a shared flock on each file that it opens by `path`.")
ETAG = Header("ETag", "Version of the file, for `If-None-Match` and `If-Range`. Metadata has none.")
RANGE = Header("Range", "Requested byte range of the file, for example `bytes=0-1023`.")

ASYNCHRONOUS = Answer("The task is stored on disk and runs asynchronously.", headers=(APPLIED, LOCATION))
CHANGED = {200: Answer(), 204: Answer("Done. The record is omitted, because the permission to read is missing.", json=False)}
UNKNOWN_SESSION = {404: "Unknown session."}
TASK_EXAMPLES = {
    "Multiply matrices": {"operation": "matrix_multiply", "parameters": {"size": 1000, "iterations": 10}, "priority": 5},
    "An asynchronous expression": {
        "operation": "compute",
        "parameters": {"expression": "sum(a * 2)", "inputs": {"a": [1, 2]}},
        "wait": False,
    },
    "Code, which needs a login": {"operation": "python", "parameters": {"code": "print(6 * 7)"}, "timeout": 60},
}

SERVICE, TASKS, SESSIONS, ARRAYS, AI, EVENTS, ABOUT = "The service", "Tasks", "Sessions", "Arrays", "AI", "Events", "About the API"
OPENAI = "OpenAI"
TAGS = {
    SERVICE: "Version, health, hosts, devices, workers, operations and metrics.",
    TASKS: "Submit, list, inspect, reprioritise, cancel and delete tasks.",
    SESSIONS: "Workers whose variables persist between tasks.",
    ARRAYS: "Binary transfer of large arrays.",
    AI: "Prompts to models, and insights into the recorded history.",
    OPENAI: "Chat completions and models in the format of OpenAI's API, for other programs.",
    EVENTS: "Live events by WebSocket.",
    ABOUT: "The OpenAPI document and this page.",
}

GET_SERVICE = Endpoint("GET", "/", ServiceInfo, SERVICE)
GET_HEALTH = Endpoint("GET", "/health", Health, SERVICE, "health")
GET_METRICS = Endpoint("GET", "/metrics", SystemMetrics, SERVICE, "metrics", answers={200: Answer(media=dict.fromkeys(VERSIONS, TEXT))})
GET_METRICS_HISTORY = Endpoint("GET", "/metrics/history", MetricsHistory, SERVICE, "metrics_history", query=HistoryQuery)
LIST_DEVICES = Endpoint("GET", "/devices", Part(DeviceList, lambda answer: answer.devices), SERVICE, "devices")
LIST_HOSTS = Endpoint("GET", "/hosts", Part(HostList, lambda answer: answer.hosts), SERVICE, "hosts")
LIST_WORKERS = Endpoint("GET", "/workers", Part(WorkerList, lambda answer: answer.workers), SERVICE, "workers")
LIST_OPERATIONS = Endpoint("GET", "/operations", Part(OperationList, lambda answer: answer.operations), SERVICE, "operations")

LIST_TASKS = Endpoint("GET", "/tasks", TaskPage, TASKS, "tasks", query=TasksQuery)
SUBMIT_TASK = Endpoint(
    "POST",
    "/tasks",
    Task,
    TASKS,
    "submit",
    body=TaskRequest,
    headers=(PREFER, IDEMPOTENCY_KEY),
    answers={
        200: Answer("The task has finished, possibly with a failure; see `status`.", headers=(APPLIED,)),
        202: ASYNCHRONOUS,
    },
    examples=TASK_EXAMPLES,
)
SUBMIT_FOLLOWED = Endpoint(
    "POST",
    "/tasks/output",
    TaskOutput,
    TASKS,
    "submit_code",
    body=TaskRequest,
    query=WaitQuery,
    headers=(IDEMPOTENCY_KEY,),
    answers={202: Answer()},
    examples=TASK_EXAMPLES,
)
SUBMIT_BATCH = Endpoint(
    "POST",
    "/tasks/batch",
    Part(BatchAnswer, outcomes),
    TASKS,
    "submit_batch",
    body=BatchRequest,
    headers=(IDEMPOTENCY_KEY,),
    answers={202: Answer()},
    errors={409: "Another server of this user is processing a request with this `Idempotency-Key`; retry."},
    examples={"Three sizes": {"tasks": [{"operation": "matrix_multiply", "parameters": {"size": size}} for size in (64, 128, 256)]}},
)
COLLECT_RESULTS = Endpoint(
    "POST",
    "/tasks/batch/results",
    Part(ResultsAnswer, ended_tasks),
    TASKS,
    "map",
    body=ResultsRequest,
    action="read",
    examples={
        "Two of four results, within ten seconds": {
            "tasks": [f"task_01kdw8m3s0fs5g8c1v5x2{digit}" for digit in "jkmn"],
            "at_least": 2,
            "wait": 10,
        },
    },
)
LIST_TASKS_ENHANCED = Endpoint("GET", "/tasks/enhanced", TaskPage, TASKS, query=PageQuery)
GET_TASK = Endpoint("GET", "/tasks/{task_id}", Task, TASKS, "task", query=TaskQuery)
CANCEL_TASK = Endpoint(
    "DELETE",
    "/tasks/{task_id}",
    Task,
    TASKS,
    "cancel",
    query=DeleteQuery,
    answers=CHANGED,
    errors={409: "The task belongs to another runtime, or cannot be deleted because it has not finished."},
)
CHANGE_TASK = Endpoint(
    "PATCH",
    "/tasks/{task_id}",
    Task,
    TASKS,
    "TaskHandle.set_priority",
    body=TaskChange,
    answers=CHANGED,
    errors={409: "The task is no longer pending."},
    examples={"More urgent": {"priority": 9}},
)
GET_OUTPUT = Endpoint("GET", "/tasks/{task_id}/output", TaskOutput, TASKS, "TaskHandle.output", query=OutputQuery)
GET_PAYLOAD = Endpoint(
    "GET",
    "/tasks/{task_id}/payload",
    bytes,
    TASKS,
    "TaskHandle.result",
    answers={
        200: Answer(
            "Bytes of the result. Loading a cloudpickle runs code; load it only if you trust the code of the task.",
            media={"application/octet-stream": BYTES},
            headers=(Header("X-OpenRuntime-Encoding", "Encoding of the bytes."),),
        )
    },
    errors={404: "The task is unknown or has no payload."},
)

LIST_ARRAYS = Endpoint("GET", "/arrays", ArrayPage, ARRAYS, "Arrays.list", headers=(LEASE,))
ALLOCATE_ARRAY = Endpoint(
    "POST",
    "/arrays",
    ArrayInfo,
    ARRAYS,
    body=ArrayRequest,
    headers=(LEASE,),
    answers={201: Answer(headers=(Header("Location", "URL of the array."),))},
    examples={"A matrix": {"shape": [1024, 1024], "dtype": "float32"}},
)
GET_ARRAY = Endpoint(
    "GET",
    "/arrays/{array_id}",
    ArrayInfo,
    ARRAYS,
    "Arrays.get",
    headers=(RANGE, LEASE),
    answers={
        200: Answer("The file, or its metadata if the client accepts JSON.", media={SAFETENSORS: BYTES}, headers=(ETAG,)),
        206: Answer("The requested range.", False, {SAFETENSORS: BYTES}, (ETAG, Header("Content-Range", "Byte range of the response."))),
        304: Answer("Not modified: the `ETag` is in `If-None-Match`.", json=False),
    },
    errors={409: "The array is not complete yet.", 416: "The range is outside the file."},
)
PUT_ARRAY = Endpoint(
    "PUT",
    "/arrays/{array_id}",
    ArrayInfo,
    ARRAYS,
    "Arrays.put",
    media=dict.fromkeys(BINARY, BYTES),
    headers=(LEASE,),
    answers={200: Answer("The array already existed with the same contents."), 201: Answer()},
    errors={
        408: "The upload stalled for two minutes.",
        409: "An array with this id and other contents already exists.",
        422: "The body is not a safetensors file with one array.",
    },
)
DELETE_ARRAY = Endpoint(
    "DELETE",
    "/arrays/{array_id}",
    ArrayInfo,
    ARRAYS,
    "Arrays.delete",
    answers=CHANGED,
    errors={409: "The array belongs to another runtime."},
)
MARK_ARRAY_READY = Endpoint(
    "POST",
    "/arrays/{array_id}/ready",
    ArrayInfo,
    ARRAYS,
    headers=(LEASE,),
    answers=CHANGED,
    errors={409: "The array is already complete, or is being uploaded."},
)

LIST_SESSIONS = Endpoint("GET", "/sessions", Part(SessionList, lambda answer: answer.sessions), SESSIONS, "sessions")
FREE_SESSION = Endpoint("DELETE", "/sessions/{session_id}", Session, SESSIONS, "free_session", answers=CHANGED, errors=UNKNOWN_SESSION)
RESTART_SESSION = Endpoint(
    "POST", "/sessions/{session_id}/restart", Session, SESSIONS, "restart_session", answers=CHANGED, errors=UNKNOWN_SESSION
)

LIST_AGENTS = Endpoint("GET", "/ai/agents", ai.AgentList, AI, "agents")
LIST_WORKFLOWS = Endpoint("GET", "/ai/workflows", Part(ai.WorkflowList, lambda answer: answer.workflows), AI, "workflows")
SUBMIT_PROMPT = Endpoint(
    "POST",
    "/ai/tasks",
    ai.AiTask,
    AI,
    "ask",
    body=ai.AiRequest,
    headers=(PREFER, IDEMPOTENCY_KEY),
    answers={
        200: Answer(
            "The task has finished, possibly with a failure; see `status`. With `stream`, events with the text and then the task.",
            media={EVENT_STREAM: TOKENS},
            events=TOKEN_EVENTS,
            headers=(APPLIED, LOCATION),
        ),
        202: ASYNCHRONOUS,
    },
    errors={
        409: "The task is asynchronous, and the conversation still has a pending prompt.",
        503: "Temporarily unavailable: no model can be used, the server is starting or stopping, the queue is full, or the history cannot "
        "be written.",
    },
    examples={
        "Code generation": {
            "workflow_type": "code_generation",
            "prompt": "Create a Python function to calculate fibonacci numbers",
            "parameters": {"language": "python", "style": "functional"},
            "timeout": 30,
        },
        "Plain prompt, streamed": {
            "workflow_type": "model_inference",
            "prompt": "What is the capital of Germany?",
            "parameters": {"profile": "local", "max_tokens": 64, "temperature": 0},
            "stream": True,
        },
        "Analysis of the server's history": {
            "workflow_type": "system_analysis",
            "prompt": "Why did my tasks wait?",
            "parameters": {"timeframe": "6h", "conversation": "waiting"},
        },
        "Optimization of settings": {
            "workflow_type": "optimization",
            "prompt": "Many short tasks, few long ones.",
            "parameters": {"target": "settings"},
        },
    },
    seconds=20.0,  # a prompt may wait for the previous prompt of its conversation
)
STREAM_TOKENS = Endpoint(
    "GET",
    "/tasks/{task_id}/tokens",
    bytes,
    AI,
    "PromptHandle.pieces",
    query=TokensQuery,
    headers=(Header("Last-Event-ID", "The `id` of the last received event, instead of `since`."),),
    answers={200: Answer("Events with the text and then the task.", media={EVENT_STREAM: TOKENS}, events=TOKEN_EVENTS)},
)
ANALYSE_HISTORY = Endpoint(
    "POST",
    "/ai/insights",
    Insights,
    AI,
    "insights",
    body=InsightsRequest,
    examples={
        "The last hour": {"metric_type": "performance", "timeframe": "1h"},
        "Failures of a week, without a model": {"metric_type": "errors", "timeframe": "7d", "wording": "none"},
    },
    seconds=60.0,  # a model rewrites the findings
)
LIST_CONVERSATIONS = Endpoint(
    "GET", "/ai/conversations", Part(ai.ConversationList, lambda answer: answer.conversations), AI, "conversations", ConversationsQuery
)
GET_CONVERSATION = Endpoint("GET", "/ai/conversations/{name}", ai.Conversation, AI, "conversation", ConversationsQuery)
DELETE_CONVERSATION = Endpoint(
    "DELETE", "/ai/conversations/{name}", ai.Conversation, AI, "delete_conversation", ConversationsQuery, answers=CHANGED
)
LIST_MODELS = Endpoint("GET", "/models", ai.ModelList, AI, "models")
UNLOAD_MODEL = Endpoint(
    "DELETE",
    "/models/{name}",
    Part(ai.Unloaded, lambda answer: answer.unloaded),
    AI,
    "unload",
    errors={404: "The model is not in memory.", 409: "The model is processing a prompt."},
)

COMPLETE_CHAT = Endpoint(
    "POST",
    "/v1/chat/completions",
    ChatCompletion,
    OPENAI,
    body=ChatCompletionRequest,
    headers=tuple(
        Header(HEADERS[name], str(field.description), {"type": "integer", "minimum": 1, "maximum": 10} if name == "priority" else TEXT)
        for name, field in CompletionHeaders.model_fields.items()
    ),
    answers={
        200: Answer(
            "The response. With `stream`, chunks of it as events, and `[DONE]`. Comments keep the connection alive while the task waits.",
            media={
                EVENT_STREAM: {"type": "string", "description": "Events without a name; the data is a ChatCompletionChunk or `[DONE]`."}
            },
            events={"message": ChatCompletionChunk},
            headers=(Header("X-Request-Id", "Id of the task."),),
        )
    },
    errors={
        400: "Invalid JSON, field, value or header; `param` names it. Options that the model does not support are rejected as well.",
        401: "Missing or wrong token.",
        404: "Unknown model.",
        503: "Temporarily unavailable, or the task did not complete; `code` has the reason.",
    },
    error=OpenAiError,
    examples={
        "A question": {"model": "default", "messages": [{"role": "user", "content": "What is the capital of Germany?"}]},
    },
)
LIST_MODEL_ENTRIES = Endpoint("GET", "/v1/models", ModelEntries, OPENAI, errors={401: "Missing or wrong token."}, error=OpenAiError)
GET_MODEL_ENTRY = Endpoint("GET", "/v1/models/{model}", ModelEntry, OPENAI, errors={401: "Missing or wrong token."}, error=OpenAiError)

CONNECT_EVENTS = Endpoint(
    "GET",
    "/ws",
    bytes,
    EVENTS,
    "watch",
    query=EventsQuery,
    answers={101: Answer("The connection is now a WebSocket.")},
    errors={426: "The WebSocket version is not 13."},
    messages=(ClientMessage, ServerMessage),
)

GET_OPENAPI = Endpoint(
    "GET", "/openapi.json", bytes, ABOUT, answers={200: Answer("OpenAPI 3.1 document.", media={JSON: {"type": "object"}})}
)
GET_DOCS = Endpoint(
    "GET", "/docs", bytes, ABOUT, answers={200: Answer("Swagger UI, without resources of other hosts.", media={"text/html": TEXT})}
)
GET_DASHBOARD = Endpoint("GET", "/dashboard", bytes, ABOUT, answers={200: Answer("Live dashboard.", media={"text/html": TEXT})})

OPERATION_IDS: Mapping[Endpoint[Any], str] = {value: name.lower() for name, value in list(globals().items()) if isinstance(value, Endpoint)}
"""Operation id of each endpoint in the OpenAPI document: its name here in lower case, a verb with its object."""

ENDPOINTS: tuple[Endpoint[Any], ...] = tuple(OPERATION_IDS)
"""All endpoints, in the order of the OpenAPI document."""

REQUEST_HEADERS = tuple(sorted({header.name for each in ENDPOINTS for header in each.headers}))
"""Headers that pages of other origins may send, in addition to those of every Jupyter Server."""

_ANSWERS = [answer for each in ENDPOINTS for answer in each.answers.values()]
RESPONSE_HEADERS = tuple(sorted({VERSION_HEADER, RETRY_AFTER, *(header.name for answer in _ANSWERS for header in answer.headers)}))
"""Headers that pages of other origins may read."""
