"""A model puts the findings into words; its text is taken only if every figure is still there and none was added."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from openruntime_jupyter.ai.number_check import faithful
from openruntime_jupyter.schemas.insights import WordingChoice

log = logging.getLogger(__name__)

Wording = Callable[[str], Awaitable["str | None"]]
"""Gives a model's answer to a prompt; None where it gave none. It ends what it does when it is cancelled."""


@dataclass(frozen=True, slots=True)
class Worder:
    """A model that can put text into words."""

    model: str
    """As an answer names it."""
    ask: Wording
    learn: Callable[[bool], None] = lambda fit: None
    """Is told whether what it gave could be used."""


Choose = Callable[[Literal["resident", "local", "remote"]], "Worder | None"]
"""The model to ask: a local one that is loaded, a local one whether or not, a remote one that the settings allow; None: there is none."""


SECONDS = 20.0
"""How long a model may take; by then the computed text is the better answer."""

PROMPT = """Rewrite this report about a compute server in clear, friendly English for the person who runs it.
Keep the first line, the numbered points and their order. Keep every number, unit, time, task id and setting exactly as it is.
Add no number, no fact and no advice that is not there. Answer with the report alone.

{text}"""


async def word(text: str, wording: WordingChoice, choose: Choose, limit: float = SECONDS) -> tuple[str, str, str | None]:
    """The text in a model's words, whose they are, and why not where it was asked for; falls back to the text, by `"none"`."""
    worder, problem = _worder(wording, choose)
    if worder is None:
        return text, "none", problem
    worded, problem = await _worded(text, worder, limit)
    worder.learn(worded is not None)
    return (text, "none", problem) if worded is None else (worded, worder.model, None)


async def _worded(text: str, worder: Worder, limit: float) -> tuple[str | None, str | None]:
    """The text in this model's words, or None and why not."""
    try:
        answer = await asyncio.wait_for(worder.ask(PROMPT.format(text=text)), limit)
    except asyncio.TimeoutError:
        return None, f"{worder.model} took longer than {limit:g} s to word the findings: they are told as they were computed."
    except Exception as error:  # whatever a model does wrong, the findings are there
        log.warning("%s could not word the insights: %s", worder.model, error)
        return None, f"{worder.model} could not word the findings ({type(error).__name__}): they are told as they were computed."
    if not answer or not faithful(answer, text):
        return None, f"{worder.model} did not keep to the figures: the findings are told as they were computed."
    return answer.strip(), None


def _worder(wording: WordingChoice, choose: Choose) -> tuple[Worder | None, str | None]:
    if wording == "none":
        return None, None
    if wording == "auto":
        return choose("resident") or choose("remote"), None
    worder = choose(wording)
    if worder is not None:
        return worder, None
    if wording == "local":
        return None, "There is no local model to word the findings: `jupyter openruntime pull` fetches one."
    return None, (
        "No remote model may word the findings, which would leave this machine: OpenRuntimeApp.insights_wording allows it by `remote`, "
        "where a provider is set up, to whoever is logged in."
    )
