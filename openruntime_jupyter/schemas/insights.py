"""Wire types of insights: request and response of `POST /ai/insights`."""

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
    """Request to analyse recorded metrics: the body of `POST /ai/insights`."""

    metric_type: MetricType = Field(
        description="Area to analyse: `performance` covers all important findings, the other values a part of them."
    )
    timeframe: Timeframe = Field(description="Length of the analysed period, which ends now.")
    wording: WordingChoice = Field(
        "auto",
        description="Model that rewrites the findings: `none` uses no model; `local` uses a local model and loads it if necessary; "
        "`remote` uses a remote model if the settings allow it; `auto` uses a local model if one is loaded, otherwise a remote model "
        "if the settings allow it.",
    )


class TaskSeen(Wire):
    """Task related to a finding."""

    task_id: str = Field(description="Id of the task.")
    operation: str = Field(description="Name of the operation.")
    name: str | None = Field(None, description="Display name.")
    owner: str | None = Field(None, description="User who submitted the task; null without a login.")
    status: str = Field(description="State of the task.")
    started_at: Timestamp | None = Field(None, description="Time of the last start.")
    finished_at: Timestamp | None = Field(None, description="Time of completion; null while the task runs.")


class Finding(Wire):
    """Finding in the recorded metrics."""

    kind: FindingKind = Field(description="Type of the finding.")
    severity: Severity = Field(description="`warning` needs action, `notice` needs attention, `info` is descriptive.")
    text: str = Field(description="Description of the finding with its numbers, times and tasks.")
    advice: str | None = Field(None, description="Recommended action; null if no action is needed.")
    figure: str | None = Field(
        None, description="Name of the affected series of `data`; null if the finding is about tasks or several series."
    )
    figures: dict[str, float | None] = Field(
        default_factory=dict, description="Numbers of the finding by name; the name includes the unit."
    )
    start: Timestamp | None = Field(None, description="Start of the finding; null for the whole period.")
    end: Timestamp | None = Field(None, description="End of the finding; null for the whole period.")
    at: Timestamp | None = Field(None, description="Time of the maximum, if there is one.")
    tasks: list[TaskSeen] = Field(default_factory=list, description="Related tasks, most important first.")


class Mark(Wire):
    """Position of a finding in the plotted series."""

    finding: int = Field(description="Number of the finding in the text, starting at 1.")
    kind: FindingKind = Field(description="Type of the finding.")
    severity: Severity = Field(description="Severity of the finding.")
    figure: str | None = Field(None, description="Name of the affected series; null for all series.")
    start: Timestamp = Field(description="Start of the finding.")
    end: Timestamp = Field(description="End of the finding.")
    at: Timestamp | None = Field(None, description="Time of the maximum, if there is one.")
    value: float | None = Field(None, description="Value at that time, in the unit of the series.")


class InsightsData(MetricsHistory):
    """Data to plot: the series of `GET /metrics/history` and the positions of the findings."""

    marks: list[Mark] = Field(description="Positions of the findings.")


class Basis(Wire):
    """Amount of analysed data."""

    start: Timestamp = Field(description="Start of the timeframe.")
    end: Timestamp = Field(description="End of the timeframe.")
    span_s: float = Field(description="Length of the timeframe in seconds.")
    observed_s: float = Field(description="Seconds of the timeframe with recorded metrics, a multiple of `resolution_s`.")
    resolution_s: int = Field(description="Seconds between two analysed values.")
    tasks: int = Field(description="Number of finished tasks.")
    tasks_examined: int = Field(
        description="Number of finished tasks that were analysed individually. If there are too many, an even sample is used."
    )
    enough: bool = Field(description="true if there is enough data to distinguish peaks and trends from noise.")


class Insights(Wire):
    """Response of `POST /ai/insights`."""

    insights: str = Field(description="Text of all findings, most important first.")
    metrics: Metrics = Field(description="Current metrics.")
    timestamp: Timestamp = Field(description="Current time.")
    metric_type: MetricType = Field(description="As in the request.")
    timeframe: Timeframe = Field(description="As in the request.")
    findings: list[Finding] = Field(description="Findings in the order of the text. They are computed without a model.")
    data: InsightsData = Field(description="Data to plot: the recorded series, and `marks` with the positions of the findings.")
    basis: Basis = Field(description="Amount of data behind the findings.")
    worded_by: str = Field(description="`none`, or the name of the model that rewrote the findings.")
    notice: str | None = Field(None, description="Reason why the requested `wording` was not used.")
