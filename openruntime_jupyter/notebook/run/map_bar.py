"""Progress bar of `client.map` in a notebook."""

from __future__ import annotations

from collections.abc import Iterable

from openruntime_jupyter.client.map_progress import MapProgress, MapState
from openruntime_jupyter.notebook.display.format import duration, rough
from openruntime_jupyter.notebook.display.html import Styled, View, joined, sign, tag
from openruntime_jupyter.notebook.display.tasks import progress_bar
from openruntime_jupyter.notebook.run.follow import LiveDisplay

SIGNS: dict[MapState, tuple[str, str]] = {
    "running": ("●", "go"),
    "completed": ("✓", "ok"),
    "cancelled": ("■", "m"),
    "failed": ("✕", "no"),
    "no longer watched": ("!", "wa"),
}
"""Sign and colour by state."""


class MapLine(View):
    """One-line view of a map with a progress bar."""

    def __init__(self, progress: MapProgress) -> None:
        self.progress = progress
        self.label = f"OpenRuntime {progress.title}: {progress.state}"

    def content(self) -> Iterable[Styled]:
        """Return the line and the bar."""
        progress = self.progress
        mark, colour = SIGNS[progress.state]
        if progress.state == "completed" and progress.failed:
            mark, colour = "!", "wa"
        facts = joined(
            [
                f"{progress.done:,} of {progress.total:,} items",
                f"{progress.failed:,} failed" if progress.failed else None,
                duration(progress.seconds),
                f"about {rough(progress.remaining)} left" if progress.remaining else None,
            ]
        )
        words = tag("span", sign(mark, colour), " ", progress.state)
        html = tag("div", words, " ", tag("strong", progress.title), " ", tag("span", facts, class_="m"), class_="ort-h")
        return [
            Styled(f"{mark} {progress.state} · {progress.title} · {facts}", html),
            progress_bar(progress.done / progress.total, colour),
        ]


class MapBar(LiveDisplay):
    """Observer of a map that updates one display. The final state is saved with the notebook."""

    def __call__(self, progress: MapProgress) -> None:
        """Show the progress."""
        self.update(MapLine(progress), final=progress.state != "running")
