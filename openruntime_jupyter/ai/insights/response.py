"""The answer of `POST /ai/insights`."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from openruntime_jupyter.ai.insights.dataset import Place, gather
from openruntime_jupyter.ai.insights.finding import FindingDraft
from openruntime_jupyter.ai.insights.report import basis_of, data_of, drafts_of, text_of
from openruntime_jupyter.ai.insights.rewriting import Choose, word
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.storage import insights as questions
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.insights import Insights, InsightsRequest


async def insights(runtime: Runtime, request: InsightsRequest, choose: Choose) -> Insights:
    """What the history tells; `choose` finds a model to word it.

    Raises `StorageUnavailable` where the history can't be read. Runs on the runtime's loop, which it never holds for long: the
    reading is done by the history's thread, the computing by another.
    """
    loop = asyncio.get_running_loop()
    place = Place(runtime.devices(), runtime.settings, runtime.memory().total)
    drawn = await runtime.metrics_service.history(request.timeframe)
    evidence = await gather(runtime.history, request.timeframe, time.time(), place)
    drafts = await loop.run_in_executor(None, drafts_of, evidence, request.metric_type)
    await name_tasks(runtime.history, drafts)
    findings = [draft.finding() for draft in drafts]
    computed = text_of(request.timeframe, request.metric_type, findings)
    text, worded_by, notice = await word(computed, request.wording, choose)
    return Insights.model_construct(
        insights=text,
        metrics=runtime.metrics(),
        timestamp=timestamp(time.time()),
        metric_type=request.metric_type,
        timeframe=request.timeframe,
        findings=findings,
        data=data_of(drawn, drafts),
        basis=basis_of(evidence),
        worded_by=worded_by,
        notice=notice,
    )


async def name_tasks(history: History, drafts: list[FindingDraft]) -> None:
    """Add the tasks that ran then to those findings which want them."""
    for draft in drafts:
        if draft.around is not None and draft.start is not None and draft.end is not None:
            draft.place(await history.look(partial(questions.around, begin=draft.start, end=draft.end)))
