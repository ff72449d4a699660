"""Handler of insights into the recorded history."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING

from openruntime_jupyter.schemas.endpoints import ANALYSE_HISTORY
from openruntime_jupyter.schemas.insights import Insights, InsightsRequest
from openruntime_jupyter.server.http.base import Handler, serves

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.runtime import Runtime


class InsightsHandler(Handler):
    """Handler of `POST /ai/insights`."""

    @serves(ANALYSE_HISTORY)
    async def post(self) -> None:
        """Analyse the recorded history for performance, memory, efficiency or errors.

        Findings are peaks, trends, leaks, bursts of failures, queueing and more, with numbers, times and the tasks that ran at the time.
        They are computed from recorded data. A model may rewrite the text but adds no information: texts with missing or additional
        numbers are rejected.
        """
        request = self.body(InsightsRequest)
        runtime = await self.runtime()
        self.reply(await self.while_connected(self._insights(runtime, request)))

    async def _insights(self, runtime: Runtime, request: InsightsRequest) -> Insights:
        choose = (await self.ai()).worders(await self.caller())
        # Imported on a thread at the first request, because most servers get none and NumPy is slow to import.
        answer = await asyncio.to_thread(import_module, "openruntime_jupyter.ai.insights.report")
        found: Insights = await answer.insights(runtime, request, choose)
        return found
