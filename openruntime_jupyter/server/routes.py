"""Routes: the handlers of all endpoints, and the patterns of their paths."""

from __future__ import annotations

import re

from tornado import web

from openruntime_jupyter.schemas.endpoints import ENDPOINTS, Endpoint
from openruntime_jupyter.server.handlers import ai, arrays, batch, chat_completions, pages, system, tasks
from openruntime_jupyter.server.http.base import endpoint_of
from openruntime_jupyter.server.websocket import EventsSocket

Handler = type[web.RequestHandler]

ID = "([^/]+)"

HANDLERS: tuple[Handler, ...] = (
    *(system.RootHandler, system.HealthHandler, system.MetricsHandler, system.MetricsHistoryHandler),
    *(system.DevicesHandler, system.HostsHandler, system.WorkersHandler, system.OperationsHandler),
    *(tasks.TasksHandler, tasks.FollowedTaskHandler, batch.BatchHandler, batch.ResultsHandler),
    *(tasks.EnhancedTasksHandler, tasks.TaskHandler, tasks.OutputHandler, tasks.PayloadHandler),
    *(arrays.ArraysHandler, arrays.ArrayHandler, arrays.ArrayReadyHandler),
    *(system.SessionsHandler, system.SessionHandler, system.SessionRestartHandler),
    *(ai.AgentsHandler, ai.WorkflowsHandler, ai.AiTasksHandler, ai.TokensHandler, ai.InsightsHandler),
    *(ai.ConversationsHandler, ai.ConversationHandler, ai.ModelsHandler, ai.ModelHandler),
    *(chat_completions.ChatCompletionsHandler, chat_completions.ModelEntriesHandler, chat_completions.ModelEntryHandler),
    *(EventsSocket, pages.OpenApiHandler, pages.DocsHandler, pages.DashboardHandler),
)


def _handler_of(endpoint: Endpoint[object]) -> Handler:
    return next(handler for handler in HANDLERS if endpoint_of(handler, endpoint.method) is endpoint)


def pattern_of(path: str) -> str:
    """Return the regular expression of a path template; the root matches with and without a slash."""
    return re.sub(r"\{\w+\}", ID, path) if path != "/" else "/?"


ROUTES: tuple[tuple[str, Handler], ...] = tuple({pattern_of(each.path): _handler_of(each) for each in ENDPOINTS}.items())
"""Paths below the mount as regular expressions, and their handlers, in the order of the endpoints."""


def routes(mount: str) -> list[tuple[str, Handler]]:
    """Return the routes below `mount`, with a final route that returns 404 for other paths.

    `mount` is `/openruntime`, or empty for a stand-alone server, which needs Jupyter's route for `jupyter server stop` as well.
    """
    shutdown = [] if mount else [("/api/shutdown", system.ShutdownHandler)]
    page_files = (f"{mount}/({'|'.join(map(re.escape, pages.FILES))})", pages.PageFileHandler)
    others = [(f"{mount}/v1/.*", chat_completions.OtherPathsHandler), (f"{mount}/.*", system.NotFoundHandler)]
    return [*((mount + path, handler) for path, handler in ROUTES), page_files, *shutdown, *others]
