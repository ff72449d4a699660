"""What the recorded history tells."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING

from jupyter_server.auth.decorator import authorized
from tornado import web

from openruntime_jupyter.schemas.insights import Insights, InsightsRequest
from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.openapi.decorator import described

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.runtime import Runtime

EXAMPLES = {
    "The last hour": {"metric_type": "performance", "timeframe": "1h"},
    "Failures of a week, in no model's words": {"metric_type": "errors", "timeframe": "7d", "wording": "none"},
}


class InsightsHandler(Handler):
    """`POST /ai/insights`."""

    @described("AI", Insights, body=InsightsRequest, examples=EXAMPLES)
    @web.authenticated
    @authorized
    async def post(self) -> None:
        """What the recorded history tells about performance, memory, efficiency or errors.

        Peaks, trends, leaks, bursts of failures, queueing and more, each with figures, times and the tasks that ran then, computed
        from what was recorded. A model may put them into words, but adds nothing: a wording that lacks a figure, or has one of its
        own, is not taken.
        """
        request = self.body(InsightsRequest)
        runtime = await self.runtime()
        self.reply(await self.while_connected(self._tell(runtime, request)))

    async def _tell(self, runtime: Runtime, request: InsightsRequest) -> Insights:
        choose = (await self.ai()).worders(await self.caller())
        # On a thread and not at the top: most servers are never asked, and NumPy takes its time.
        answer = await asyncio.to_thread(import_module, "openruntime_jupyter.ai.insights.response")
        found: Insights = await answer.insights(runtime, request, choose)
        return found
