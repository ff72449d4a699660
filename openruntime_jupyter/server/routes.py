"""Route table."""

from __future__ import annotations

import re

from tornado import web

from openruntime_jupyter.server.handlers.ai import (
    AgentsHandler,
    AiTasksHandler,
    ConversationHandler,
    ConversationsHandler,
    ModelHandler,
    ModelsHandler,
    TokensHandler,
    WorkflowsHandler,
)
from openruntime_jupyter.server.handlers.arrays import ArrayHandler, ArrayReadyHandler, ArraysHandler
from openruntime_jupyter.server.handlers.batch import BatchHandler, ResultsHandler
from openruntime_jupyter.server.handlers.docs import FILES, DocsFileHandler, DocsHandler, OpenApiHandler
from openruntime_jupyter.server.handlers.insights import InsightsHandler
from openruntime_jupyter.server.handlers.sessions import SessionHandler, SessionRestartHandler, SessionsHandler
from openruntime_jupyter.server.handlers.system import (
    DevicesHandler,
    HealthHandler,
    MetricsHandler,
    MetricsHistoryHandler,
    NotFoundHandler,
    OperationsHandler,
    RootHandler,
    WorkersHandler,
)
from openruntime_jupyter.server.handlers.tasks import (
    EnhancedTasksHandler,
    FollowedTaskHandler,
    OutputHandler,
    PayloadHandler,
    TaskHandler,
    TasksHandler,
)
from openruntime_jupyter.server.websocket import EventsSocket

TASK_ID = "([^/]+)"

ROUTES: tuple[tuple[str, type[web.RequestHandler]], ...] = (
    ("/?", RootHandler),
    ("/health", HealthHandler),
    ("/metrics", MetricsHandler),
    ("/metrics/history", MetricsHistoryHandler),
    ("/devices", DevicesHandler),
    ("/workers", WorkersHandler),
    ("/operations", OperationsHandler),
    ("/tasks", TasksHandler),
    ("/tasks/output", FollowedTaskHandler),
    ("/tasks/batch", BatchHandler),
    ("/tasks/batch/results", ResultsHandler),
    ("/tasks/enhanced", EnhancedTasksHandler),
    (f"/tasks/{TASK_ID}", TaskHandler),
    (f"/tasks/{TASK_ID}/output", OutputHandler),
    (f"/tasks/{TASK_ID}/payload", PayloadHandler),
    ("/arrays", ArraysHandler),
    (f"/arrays/{TASK_ID}", ArrayHandler),
    (f"/arrays/{TASK_ID}/ready", ArrayReadyHandler),
    ("/sessions", SessionsHandler),
    (f"/sessions/{TASK_ID}", SessionHandler),
    (f"/sessions/{TASK_ID}/restart", SessionRestartHandler),
    ("/ai/agents", AgentsHandler),
    ("/ai/workflows", WorkflowsHandler),
    ("/ai/tasks", AiTasksHandler),
    (f"/tasks/{TASK_ID}/tokens", TokensHandler),
    ("/ai/insights", InsightsHandler),
    ("/ai/conversations", ConversationsHandler),
    (f"/ai/conversations/{TASK_ID}", ConversationHandler),
    ("/models", ModelsHandler),
    (f"/models/{TASK_ID}", ModelHandler),
    ("/ws", EventsSocket),
    ("/openapi.json", OpenApiHandler),
    ("/docs", DocsHandler),
)
"""Paths below the mount as regular expressions, and their handlers."""


def routes(mount: str, but_for: str = "") -> list[tuple[str, type[web.RequestHandler]]]:
    """Return the routes below `mount` (`/openruntime`, or empty for the root), with a final route that returns 404 for other paths.

    `but_for` is a path below the mount that Jupyter handles.
    """
    exception = f"(?!{but_for}$)" if but_for else ""
    page_files = (f"{mount}/docs/({'|'.join(map(re.escape, FILES))})", DocsFileHandler)
    return [*((mount + path, handler) for path, handler in ROUTES), page_files, (f"{mount}/{exception}.*", NotFoundHandler)]
