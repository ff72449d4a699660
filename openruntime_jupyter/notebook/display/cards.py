"""Views of models and insights."""

from __future__ import annotations

from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.notebook.display.format import clock, duration, local_times
from openruntime_jupyter.notebook.display.html import Html, View, block, prose, table, tag, text_table
from openruntime_jupyter.schemas.ai import ModelInfo, ModelList
from openruntime_jupyter.schemas.insights import Finding, Insights

NO_MODELS = (
    "No model is available for prompts: `%openruntime pull` downloads a small local model, "
    "and OPENAI_API_KEY in the server's environment or a profile in its configuration sets up a provider"
)

SEVERITIES = {"warning": ("✕", "no"), "notice": ("!", "wa"), "info": ("·", "m")}


class ModelTable(View, list[ModelInfo]):
    """Local models of the runtime: a list of records that is displayed as a table. `profiles` are the remote providers."""

    COLUMNS = ("model", "kind", "size", "context", "in memory", "default")

    def __init__(self, found: ModelList) -> None:
        super().__init__(found.models)
        self.profiles = found.profiles

    def _rows(self) -> list[list[str]]:
        remote_first = any(profile.default for profile in self.profiles)
        local = [
            [
                model.name,
                model.kind or "",
                "" if model.bytes is None else gigabytes(model.bytes),
                "" if model.context_length is None else f"{model.context_length:,} tokens",
                "; ".join(_held(model)),
                "✓" if model.default and not remote_first else "",
            ]
            for model in self
        ]
        remote = [
            [f"{each.name}: {each.model or 'no model set'}", "profile", "", "", "remote", "✓" if each.default else ""]
            for each in self.profiles
        ]
        return [*local, *remote]

    def html(self) -> str:
        """Return the view as HTML."""
        rows = self._rows()
        return block(
            "OpenRuntime models",
            table("Models", self.COLUMNS, rows, wide=(0,), plain=(0, 1)) if rows else tag("div", NO_MODELS, class_="m"),
        )

    def text(self) -> str:
        """Return the view as plain text."""
        rows = self._rows()
        return text_table(self.COLUMNS, rows) if rows else NO_MODELS


def _held(model: ModelInfo) -> list[str]:
    held = []
    for worker in model.resident:
        size = "" if worker.resident_bytes is None else f", {gigabytes(worker.resident_bytes)}"
        if worker.idle_seconds is None:
            held.append(f"busy with {worker.task_id}{size}")
        else:
            held.append(f"idle{size}, for {duration(max(0.0, worker.keep_alive_seconds - worker.idle_seconds))} more")
    return held


class InsightsCard(View):
    """Findings from the recorded history, most important first. `insights` is the record."""

    def __init__(self, insights: Insights) -> None:
        self.insights = insights

    @property
    def findings(self) -> list[Finding]:
        """Findings with their metrics, times and tasks."""
        return self.insights.findings

    @property
    def _head(self) -> str:
        insights = self.insights
        return f"{insights.metric_type} over the last {insights.timeframe}, at {clock(insights.timestamp)}"

    def _prose(self, text: str) -> Html:
        """Return a text with local times and with names in code style."""
        return prose(local_times(text, self.insights.timestamp))

    def _finding(self, finding: Finding) -> Html:
        sign, colour = SEVERITIES[finding.severity]
        advice = tag("div", self._prose(finding.advice), class_="m") if finding.advice else ""
        mark = tag("span", sign, class_=colour, role="img", aria_label=finding.severity)
        return tag("div", mark, " ", self._prose(finding.text), advice)

    def html(self) -> str:
        """Return the view as HTML."""
        findings = [self._finding(finding) for finding in self.findings]
        worded = self.insights.worded_by != "none"
        text = [tag("div", self._prose(line)) for line in self.insights.insights.splitlines() if line.strip()] if worded else []
        return block("OpenRuntime insights", tag("strong", self._head), *(text or findings), kind="ort-c")

    def text(self) -> str:
        """Return the view as plain text."""
        return f"{self._head}\n{local_times(self.insights.insights, self.insights.timestamp)}"
