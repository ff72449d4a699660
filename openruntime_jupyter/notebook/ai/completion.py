"""Tab completion for `ai` and `fix`: workflows, options and option values."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from openruntime_jupyter.ai.workflows import WORKFLOWS
from openruntime_jupyter.notebook.ai.options import OPTIONS
from openruntime_jupyter.notebook.completion import FIRST_WORDS, Candidates, PartialLine
from openruntime_jupyter.notebook.completion_sources import CompletionSources
from openruntime_jupyter.schemas.ai import LOCAL

VALUES: dict[str, Callable[[CompletionSources], Iterable[str]]] = {
    "profile": lambda sources: (LOCAL, *sources.profiles()),
    "model": lambda sources: sources.models(),
    "agent": lambda sources: sources.agents(),
    "conversation": lambda sources: sources.conversations(),
    "variable": lambda sources: sources.variables(),
    "variables": lambda sources: sources.variables(),
    "device": lambda sources: ("auto", "gpu", "cpu", *sources.devices()),
}
"""Completion source for each kind of option."""


def register() -> None:
    """Register the completers for `ai` and `fix`."""
    FIRST_WORDS.update(ai=_ai, fix=_options)


def _ai(sources: CompletionSources, typed: PartialLine) -> Candidates:
    found = _options(sources, typed)
    return found.offer(WORKFLOWS, "workflow") if len(typed.before) == 1 and not typed.current.startswith("-") else found


def _options(sources: CompletionSources, typed: PartialLine) -> Candidates:
    option = OPTIONS.get(typed.before[-1])
    if option is None or not option.kind or typed.current.startswith("-"):
        given = {word for word in typed.before if word in OPTIONS}
        return Candidates(typed.current).offer([name for name in OPTIONS if name not in given], "option")
    _, comma, fragment = typed.current.rpartition(",")
    listed = VALUES.get(option.kind)
    values = option.choices or (listed(sources) if listed is not None else ())
    return Candidates(fragment if comma and option.kind == "variables" else typed.current).offer(values, "value")
