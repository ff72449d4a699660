"""The wire types of insights: what `POST /ai/insights` takes and gives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from openruntime_jupyter.schemas.base import Timestamp, Wire
from openruntime_jupyter.schemas.system import Metrics, MetricsHistory, Timeframe

MetricType = Literal["performance", "memory", "efficiency", "errors"]

WordingChoice = Literal["auto", "none", "local", "remote"]

Severity = Literal["info", "notice", "warning"]

FindingKind = Literal[
    "levels",
    "peak",
    "trend",
    "leak",
    "failures",
    "burst",
    "idle",
    "queueing",
    "underused",
    "slower",
    "short_tasks",
    "largest",
    "wasted",
    "device",
    "too_little",
    "nothing",
]


class InsightsRequest(Wire):
    """What is asked about the past: the body of `POST /ai/insights`."""

    metric_type: MetricType = Field(description="What to look at: `performance` is everything that matters, the others are a part of it.")
    timeframe: Timeframe = Field(description="How far back from now.")
    wording: WordingChoice = Field(
        "auto",
        description="Who puts the findings into words: `none` no model; `local` one of this machine, loaded if need be; "
        "`remote` a model elsewhere, only where the settings allow it; `auto` a local model if one is loaded already, else a remote one "
        "where the settings allow it.",
    )


class TaskSeen(Wire):
    """A task that has to do with a finding."""

    task_id: str
    operation: str = Field(description="What kind of work it is.")
    name: str | None = Field(None, description="What people call it.")
    owner: str | None = Field(None, description="The user who submitted it; null without a login.")
    status: str = Field(description="Its state.")
    started_at: Timestamp | None = Field(None, description="When it was last started.")
    finished_at: Timestamp | None = Field(None, description="When it ended; null while it runs.")


class Finding(Wire):
    """One thing that the recorded figures tell."""

    kind: FindingKind = Field(description="What it is.")
    severity: Severity = Field(description="`warning` asks for something to be done, `notice` to be known, `info` describes.")
    text: str = Field(description="In a sentence or a few, with its figures, times and tasks.")
    advice: str | None = Field(None, description="What to do about it; null where nothing needs to be done.")
    figure: str | None = Field(None, description="The series of `data` that it is about; null where it is about tasks or several.")
    figures: dict[str, float | None] = Field(default_factory=dict, description="Its figures by name, in the units that the names say.")
    start: Timestamp | None = Field(None, description="From when; null for the whole time.")
    end: Timestamp | None = Field(None, description="Until when; null for the whole time.")
    at: Timestamp | None = Field(None, description="Its highest moment, where it has one.")
    tasks: list[TaskSeen] = Field(default_factory=list, description="Tasks that have to do with it, the weightiest first.")


class Mark(Wire):
    """Where in the drawn series a finding is."""

    finding: int = Field(description="Its number in the text; the first is 1.")
    kind: FindingKind
    severity: Severity
    figure: str | None = Field(None, description="The series that it is about; null for all.")
    start: Timestamp
    end: Timestamp
    at: Timestamp | None = Field(None, description="Its highest moment, where it has one.")
    value: float | None = Field(None, description="The figure then, in the unit of its series.")


class InsightsData(MetricsHistory):
    """What to draw: the series of `GET /metrics/history`, and where the findings are in them."""

    marks: list[Mark]


class Basis(Wire):
    """What the findings rest on."""

    start: Timestamp
    end: Timestamp
    span_s: float = Field(description="Seconds of the timeframe.")
    observed_s: float = Field(description="Seconds of it for which there are figures, in whole values of `resolution_s`.")
    resolution_s: int = Field(description="Seconds from one value that was looked at to the next.")
    tasks: int = Field(description="How many tasks ended.")
    tasks_examined: int = Field(description="How many of them were looked at one by one, drawn evenly where there are too many.")
    enough: bool = Field(description="Whether there is enough to tell peaks and trends from chance.")


class Insights(Wire):
    """`POST /ai/insights`."""

    insights: str = Field(description="The findings as a text, the weightiest first.")
    metrics: Metrics = Field(description="The figures of now.")
    timestamp: Timestamp
    metric_type: MetricType
    timeframe: Timeframe
    findings: list[Finding] = Field(description="In the order of the text, all computed: no model has a part in them.")
    data: InsightsData
    basis: Basis
    worded_by: str = Field(description="`none`, or the model that put the findings into words.")
    notice: str | None = Field(None, description="Why it was not worded as was asked.")
