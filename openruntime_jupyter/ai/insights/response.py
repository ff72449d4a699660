"""Response of `POST /ai/insights`."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from openruntime_jupyter.ai.insights.dataset import Environment, gather
from openruntime_jupyter.ai.insights.finding import FindingDraft
from openruntime_jupyter.ai.insights.report import basis_of, data_of, drafts_of, text_of
from openruntime_jupyter.ai.insights.rewriting import Choose, rewrite
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.storage import insights as questions
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.insights import Insights, InsightsRequest


async def insights(runtime: Runtime, request: InsightsRequest, choose: Choose) -> Insights:
    """Return findings about the history. `choose` selects a model to rewrite them.

    Raises `StorageUnavailable` if the history can't be read. Runs on the runtime's loop without blocking it: queries and
    computations run in other threads.
    """
    loop = asyncio.get_running_loop()
    environment = Environment(runtime.devices(), runtime.settings, runtime.memory().total)
    drawn = await runtime.metrics_service.history(request.timeframe)
    dataset = await gather(runtime.history, request.timeframe, time.time(), environment)
    drafts = await loop.run_in_executor(None, drafts_of, dataset, request.metric_type)
    await name_tasks(runtime.history, drafts)
    findings = [draft.finding() for draft in drafts]
    computed = text_of(request.timeframe, request.metric_type, findings)
    text, worded_by, notice = await rewrite(computed, request.wording, choose)
    return Insights.model_construct(
        insights=text,
        metrics=runtime.metrics(),
        timestamp=timestamp(time.time()),
        metric_type=request.metric_type,
        timeframe=request.timeframe,
        findings=findings,
        data=data_of(drawn, drafts),
        basis=basis_of(dataset),
        worded_by=worded_by,
        notice=notice,
    )


async def name_tasks(history: History, drafts: list[FindingDraft]) -> None:
    """Add related tasks to the findings that request them."""
    for draft in drafts:
        if draft.around is not None and draft.start is not None and draft.end is not None:
            draft.attach(await history.look(partial(questions.around, begin=draft.start, end=draft.end)))
