"""Rewriting of findings by a model. Its text is used only if it contains exactly the same numbers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from openruntime_jupyter.ai.number_check import faithful
from openruntime_jupyter.schemas.insights import WordingChoice

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rewriter:
    """Model that can rewrite text."""

    model: str
    """Model name in responses."""
    ask: Callable[[str], Awaitable[str | None]]
    """Returns the model's response to a prompt, or None. Cancelling it cancels the prompt."""
    learn: Callable[[bool], None] = lambda fit: None
    """Called with whether the model's text was usable."""


ModelKind = Literal["resident", "local", "remote"]
"""Kind of a model: a loaded local one, any local one, or an allowed remote one."""
Choose = Callable[[ModelKind], "Rewriter | None"]
"""Function that selects a model of a kind. Returns None if unavailable."""

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
