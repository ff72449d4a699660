"""From evidence to findings, and from findings to a text: without any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from openruntime_jupyter.ai.insights import levels, usage
from openruntime_jupyter.ai.insights.dataset import Dataset
from openruntime_jupyter.ai.insights.failures import OF_MEMORY, bursts, failures
from openruntime_jupyter.ai.insights.finding import Finder, FindingDraft
from openruntime_jupyter.ai.insights.formatting import TIMEFRAME_WORDS
from openruntime_jupyter.ai.insights.trends import LOAD, MEMORY, leaks, peaks, trends
from openruntime_jupyter.schemas.base import iso, timestamp
from openruntime_jupyter.schemas.insights import Basis, Finding, InsightsData, Mark, MetricType
from openruntime_jupyter.schemas.system import MetricsHistory, Timeframe

MOST_FINDINGS = 8

FINDERS: Mapping[MetricType, tuple[Finder, ...]] = {
    "performance": (
        *(levels.performance, peaks(MEMORY), peaks(LOAD), trends(MEMORY[:1]), trends(LOAD), leaks, bursts, failures()),
        *(usage.queueing, usage.underused, usage.slower, usage.short_tasks, usage.devices),
    ),
    "memory": (levels.memory, leaks, peaks(MEMORY), trends(MEMORY), failures(OF_MEMORY), usage.largest),
    "efficiency": (
        levels.efficiency,
        usage.idle,
        usage.queueing,
        usage.underused,
        usage.short_tasks,
        usage.wasted,
        usage.slower,
        usage.devices,
        trends(LOAD),
    ),
    "errors": (levels.errors, bursts, failures()),
}
"""What is looked for, by what is asked about."""


def drafts_of(evidence: Dataset, metric_type: MetricType) -> list[FindingDraft]:
    """The findings that matter, the weightiest first. It computes for some 10 ms: not on a loop."""
    found = [draft for finder in FINDERS[metric_type] for draft in finder(evidence)]
    leaking = any(draft.kind == "leak" and draft.figure for draft in found)
    # The same rise is not told twice, nor are the same failures.
    burst = max((draft.figures["failures"] or 0.0 for draft in found if draft.kind == "burst"), default=0.0)
    found = [draft for draft in found if not (leaking and draft.kind == "trend" and draft.figure == "worker_memory")]
    found = [draft for draft in found if draft.kind != "failures" or burst < (draft.figures["failures"] or 0.0)]
    little = levels.too_little(evidence)
    if little is not None:
        found.append(little)
    elif all(draft.severity == "info" for draft in found):
        found.append(levels.nothing(evidence))
    return sorted(found, key=lambda draft: -draft.rank)[:MOST_FINDINGS]


def text_of(timeframe: Timeframe, metric_type: MetricType, findings: Sequence[Finding]) -> str:
    """The findings as a numbered text, each with its advice, unless one before it has the same."""
    head = f"Based on the {TIMEFRAME_WORDS[timeframe]} of {'error' if metric_type == 'errors' else metric_type} data:"
    lines, told = [head, ""], set()
    for place, each in enumerate(findings, 1):
        again = each.advice is None or each.advice in told
        lines.append(f"{place}. {each.text}" if again else f"{place}. {each.text} {each.advice}")
        told.add(each.advice)
    return "\n".join(lines)


def data_of(drawn: MetricsHistory, drafts: Sequence[FindingDraft]) -> InsightsData:
    """The series to draw, and where the findings are in them."""
    marks = [
        Mark(
            finding=place,
            kind=draft.kind,
            severity=draft.severity,
            figure=draft.figure,
            start=timestamp(draft.start),
            end=timestamp(draft.end),
            at=iso(draft.at),
            value=draft.value,
        )
        for place, draft in enumerate(drafts, 1)
        if draft.start is not None and draft.end is not None
    ]
    # Tens of thousands of figures that were checked where they were made.
    return InsightsData.model_construct(**dict(drawn), marks=marks)


def basis_of(evidence: Dataset) -> Basis:
    """What the findings rest on."""
    return Basis(
        start=timestamp(evidence.begin),
        end=timestamp(evidence.end),
        span_s=evidence.end - evidence.begin,
        observed_s=float(evidence.columns.observed * evidence.columns.step),
        resolution_s=evidence.columns.step,
        tasks=evidence.ended.number,
        tasks_examined=len(evidence.ended.tasks),
        enough=evidence.enough,
    )
