"""Rewriting of findings by a model. Its text is used only if it contains exactly the same numbers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from openruntime_jupyter.ai.model_selection import Choice
from openruntime_jupyter.ai.number_check import faithful
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.runtime.tasks.submission import Caller
from openruntime_jupyter.schemas.insights import WordingChoice

log = logging.getLogger(__name__)

Rewrite = Callable[[str], Awaitable["str | None"]]
"""Function that returns a model's response to a prompt, or None. Cancelling it cancels the prompt."""


@dataclass(frozen=True, slots=True)
class Rewriter:
    """Model that can rewrite text."""

    model: str
    """Model name in responses."""
    ask: Rewrite
    learn: Callable[[bool], None] = lambda fit: None
    """Called with whether the model's text was usable."""


Choose = Callable[[Literal["resident", "local", "remote"]], "Rewriter | None"]
"""Function that selects a model: a loaded local one, any local one, or an allowed remote one. Returns None if unavailable."""


SECONDS = 20.0
"""Time limit for a model. After that the computed text is returned."""

PROMPT = """Rewrite this report about a compute server in clear, friendly English for the person who runs it.
Keep the first line, the numbered points and their order. Keep every number, unit, time, task id and setting exactly as it is.
Add no number, no fact and no advice that is not there. Answer with the report alone.

{text}"""


async def rewrite(text: str, wording: WordingChoice, choose: Choose, limit: float = SECONDS) -> tuple[str, str, str | None]:
    """Return the rewritten text, its author and the reason if it was not rewritten. Falls back to the text, by `"none"`."""
    rewriter, problem = _rewriter(wording, choose)
    if rewriter is None:
        return text, "none", problem
    rewritten, problem = await _rewritten(text, rewriter, limit)
    rewriter.learn(rewritten is not None)
    return (text, "none", problem) if rewritten is None else (rewritten, rewriter.model, None)


async def _rewritten(text: str, rewriter: Rewriter, limit: float) -> tuple[str | None, str | None]:
    """Return the text rewritten by this model, or None and the reason."""
    try:
        answer = await asyncio.wait_for(rewriter.ask(PROMPT.format(text=text)), limit)
    except asyncio.TimeoutError:
        return None, f"{rewriter.model} took longer than {limit:g} s to rewrite the findings: using the computed text"
    except Exception as error:  # a failing model must not lose the findings
        log.warning("%s could not rewrite the insights: %s", rewriter.model, error)
        return None, f"{rewriter.model} could not rewrite the findings ({type(error).__name__}): using the computed text"
    if not answer or not faithful(answer, text):
        return None, f"{rewriter.model} changed numbers of the findings: using the computed text"
    return answer.strip(), None


def _rewriter(wording: WordingChoice, choose: Choose) -> tuple[Rewriter | None, str | None]:
    if wording == "none":
        return None, None
    if wording == "auto":
        return choose("resident") or choose("remote"), None
    rewriter = choose(wording)
    if rewriter is not None:
        return rewriter, None
    if wording == "local":
        return None, "No local model to rewrite the findings: `jupyter openruntime pull` downloads one"
    return None, (
        "Remote models may not rewrite the findings, which would leave this machine: set OpenRuntimeApp.insights_wording to `remote`, "
        "configure a provider and log in"
    )


if TYPE_CHECKING:
    from openruntime_jupyter.ai.service import AiService


def rewriters(service: AiService, caller: Caller) -> Choose:
    """Return the model selection for `insights`. By default it uses only models that `insights_wording` allows; remote ones always need it.

    A model whose last text was unusable is skipped by default, because each response would wait for it in vain.
    """

    def choose(which: Literal["resident", "local", "remote"]) -> Rewriter | None:
        allowed = service.config.insights_wording
        if which == "local":
            choice = _local(service, caller)
        elif which == "resident":
            choice = _resident(service) if allowed != "none" else None
        else:
            choice = _remote(service, caller) if allowed == "remote" else None
        if choice is None:
            return None
        model = choice.model or choice.profile or "the default model"
        if which == "resident" and model in service.unfit:
            return None
        return Rewriter(model, partial(service.ask, choice=choice, caller=caller), partial(_learn, service.unfit, model))

    return choose


def _resident(service: AiService) -> Choice | None:
    loaded = {report.name for report in service.runtime.engine.models()}
    return next((Choice(None, each.name, each.context_length) for each in service.runtime.catalog.known() if each.name in loaded), None)


def _local(service: AiService, caller: Caller) -> Choice | None:
    try:
        choice = service.chooser.local(None, caller)
    except OpenRuntimeError:  # unavailable, or not permitted for this caller
        return None
    known = service.runtime.catalog.known()
    return choice if choice.model is not None or not known else Choice(None, known[0].name, choice.context_length)


def _remote(service: AiService, caller: Caller) -> Choice | None:
    default = service.chooser.default
    return Choice(default, None, None) if default is not None and caller.may_spend else None


def _learn(unfit: set[str], model: str, fit: bool) -> None:
    (unfit.discard if fit else unfit.add)(model)
