"""Findings of a dataset and their text, computed without a model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from openruntime_jupyter.ai.insights import metric_findings, task_findings
from openruntime_jupyter.ai.insights.dataset import Dataset, Environment, gather
from openruntime_jupyter.ai.insights.finding import TIMEFRAME_WORDS, FindingDraft
from openruntime_jupyter.ai.insights.metric_findings import LOAD, MEMORY
from openruntime_jupyter.ai.insights.rewriting import Choose, rewrite
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.storage import insights as questions
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.base import iso, timestamp
from openruntime_jupyter.schemas.insights import Basis, Finding, Insights, InsightsData, InsightsRequest, Mark, MetricType
from openruntime_jupyter.schemas.system import MetricsHistory, Timeframe

MOST_FINDINGS = 8


FINDERS: Mapping[MetricType, Sequence[Callable[[Dataset], list[FindingDraft]]]] = {
    "performance": (
        metric_findings.performance_levels,
        partial(metric_findings.peaks, metrics=(*MEMORY, *LOAD)),
        partial(metric_findings.trends, metrics=(MEMORY[0], *LOAD)),
        metric_findings.leaks,
        task_findings.bursts,
        task_findings.failures,
        task_findings.queueing,
        metric_findings.underused,
        task_findings.slower,
        task_findings.short_tasks,
        task_findings.devices,
    ),
    "memory": (
        metric_findings.memory_levels,
        metric_findings.leaks,
        partial(metric_findings.peaks, metrics=MEMORY),
        partial(metric_findings.trends, metrics=MEMORY),
        partial(task_findings.failures, kinds=task_findings.OF_MEMORY),
        task_findings.largest,
    ),
    "efficiency": (
        metric_findings.efficiency_levels,
        metric_findings.idle,
        task_findings.queueing,
        metric_findings.underused,
        task_findings.short_tasks,
        task_findings.wasted,
        task_findings.slower,
        task_findings.devices,
        partial(metric_findings.trends, metrics=LOAD),
    ),
    "errors": (metric_findings.error_levels, task_findings.bursts, task_findings.failures),
}
"""Functions that compute the findings of a metric type."""


def drafts_of(dataset: Dataset, metric_type: MetricType) -> list[FindingDraft]:
    """Return the most important findings, highest rank first. Takes some 10 ms, so don't call it on an event loop."""
    found = [draft for finder in FINDERS[metric_type] for draft in finder(dataset)]
    leaking = any(draft.kind == "leak" and draft.figure for draft in found)
    # Report each rise and each group of failures only once.
    burst = max((draft.figures["failures"] or 0.0 for draft in found if draft.kind == "burst"), default=0.0)
    found = [draft for draft in found if not (leaking and draft.kind == "trend" and draft.figure == "worker_memory")]
    found = [draft for draft in found if draft.kind != "failures" or burst < (draft.figures["failures"] or 0.0)]
    if not dataset.enough:
        found.append(metric_findings.too_little(dataset))
    elif all(draft.severity == "info" for draft in found):
        found.append(metric_findings.nothing(dataset))
    return sorted(found, key=lambda draft: -draft.rank)[:MOST_FINDINGS]


def text_of(timeframe: Timeframe, metric_type: MetricType, findings: Sequence[Finding]) -> str:
    """Return the findings as a numbered text with advice. Repeated advice is omitted."""
    head = f"Based on the {TIMEFRAME_WORDS[timeframe]} of {'error' if metric_type == 'errors' else metric_type} data:"
    lines, given = [head, ""], set()
    for position, each in enumerate(findings, 1):
        again = each.advice is None or each.advice in given
        lines.append(f"{position}. {each.text}" if again else f"{position}. {each.text} {each.advice}")
        given.add(each.advice)
    return "\n".join(lines)


def data_of(drawn: MetricsHistory, drafts: Sequence[FindingDraft]) -> InsightsData:
    """Return the series to plot, with the positions of the findings."""
    marks = [
        Mark(
            finding=position,
            kind=draft.kind,
            severity=draft.severity,
            figure=draft.figure,
            start=timestamp(draft.start),
            end=timestamp(draft.end),
            at=iso(draft.at),
            value=draft.value,
        )
        for position, draft in enumerate(drafts, 1)
        if draft.start is not None and draft.end is not None
    ]
    # Unchecked construction: tens of thousands of values that were validated earlier.
    return InsightsData.model_construct(**dict(drawn), marks=marks)


def basis_of(dataset: Dataset) -> Basis:
    """Return the amount of data that the findings are based on."""
    return Basis(
        start=timestamp(dataset.begin),
        end=timestamp(dataset.end),
        span_s=dataset.end - dataset.begin,
        observed_s=float(dataset.columns.observed * dataset.columns.step),
        resolution_s=dataset.columns.step,
        tasks=dataset.ended.number,
        tasks_examined=len(dataset.ended.tasks),
        enough=dataset.enough,
    )


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
            ran = await history.look(partial(questions.around, begin=draft.start, end=draft.end))
            draft.attach(ran, draft.start, draft.end)
