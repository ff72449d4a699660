"""Selection of the model that rewrites insights, by caller."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from openruntime_jupyter.ai.insights.rewriting import Choose, Rewriter
from openruntime_jupyter.ai.model_selection import Choice
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.runtime.tasks.submission import Caller

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
