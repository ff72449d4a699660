"""Insights of a real runtime with a history that was written before it started."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.ai.insights.report import insights
from openruntime_jupyter.ai.insights.rewriting import Choose, Rewriter
from openruntime_jupyter.ai.number_check import figures_of
from openruntime_jupyter.errors import Stopping
from openruntime_jupyter.runtime.metrics.counters import METRICS
from openruntime_jupyter.schemas.insights import Insights, InsightsRequest
from openruntime_jupyter.schemas.system import Metrics
from tests.ai.insights.synthetic import planted
from tests.ai.insights.test_rewriting import no_model
from tests.runtime.history_support import opened
from tests.runtimes import runtime_in


async def report(folder: Path, choose: Choose = no_model, **asked: Any) -> Insights:
    async with opened(folder) as history:
        await planted("1h", time.time()).tell(history)
    async with runtime_in(folder) as runtime:
        return await insights(runtime, InsightsRequest(**{"metric_type": "performance", "timeframe": "1h", **asked}), choose)


async def test_response_has_text_findings_and_marks(tmp_path: Path) -> None:
    answer = Insights.model_validate((await report(tmp_path)).model_dump())
    assert answer.insights.startswith("Based on the last hour of performance data:\n\n1. ")
    for number, finding in enumerate(answer.findings, 1):
        assert f"\n{number}. {finding.text}" in answer.insights
        assert finding.advice is None or finding.advice in answer.insights
    assert isinstance(answer.metrics, Metrics)
    assert (answer.worded_by, answer.notice, answer.basis.enough) == ("none", None, True)
    assert set(answer.data.series) == {figure.name for figure in METRICS}
    assert {"burst", "leak", "peak"} <= {mark.kind for mark in answer.data.marks}
    for mark in answer.data.marks:
        finding = answer.findings[mark.finding - 1]
        assert (mark.kind, mark.severity, mark.start, mark.end) == (finding.kind, finding.severity, finding.start, finding.end)
        assert answer.data.start <= mark.start <= mark.end <= answer.data.end
    order = {"warning": 0, "notice": 1, "info": 2}
    assert [order[finding.severity] for finding in answer.findings] == sorted(order[finding.severity] for finding in answer.findings)


async def test_rewriting_changes_only_the_text(tmp_path: Path) -> None:
    prompts = []

    async def ask(prompt: str) -> str:
        prompts.append(prompt)
        return prompt.rpartition("\n\nBased")[0] and "Here it is, b" + prompt[prompt.index("ased on the last") :]

    answer = await report(tmp_path, lambda which: Rewriter("m", ask) if which == "resident" else None)
    assert answer.worded_by == "m"
    assert answer.insights.startswith("Here it is, based on")
    assert len(prompts) == 1
    assert all(set(figures_of(finding.text)) <= set(figures_of(answer.insights)) for finding in answer.findings)
    assert not any("Here it is" in finding.text for finding in answer.findings)


async def test_stopped_runtime_is_reported(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        await runtime.stop()
        with pytest.raises(Stopping):
            await insights(runtime, InsightsRequest(metric_type="errors", timeframe="5m"), no_model)
