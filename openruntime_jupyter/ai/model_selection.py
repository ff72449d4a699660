"""Selection of the model for a prompt: the requested one, else a configured remote provider, else a local model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from openruntime_jupyter.ai.profiles import Profiles
from openruntime_jupyter.errors import InvalidRequest, NoModel, NotAllowed, OpenRuntimeError
from openruntime_jupyter.runtime.tasks.submission import Caller
from openruntime_jupyter.schemas.ai import LOCAL
from openruntime_jupyter.schemas.values import ModelSource

NOTHING = (
    "No model is available. Configure a remote provider (OPENAI_API_KEY in the environment, or a profile in "
    "OpenRuntimeApp.profiles), or download a local model: jupyter openruntime pull"
)
LOGIN_REQUIRED = (
    "The remote provider {!r} costs its owner money and requires a login: log in or send the server's token, or use a local "
    "model (`profile` `local`; `jupyter openruntime pull` downloads one)"
)

DEFAULT = "default"
"""Id of the default model, unless a local model has this name."""


class LocalModels(Protocol):
    """Local models; see `local_models/catalog.py`."""

    def known(self) -> list[ModelSource]:
        """Return the models that all users may use, default first."""

    def named(self, name: str) -> ModelSource | None:
        """Return the known model of a name, or None."""

    def resolve(self, name: str | None, caller: Caller) -> ModelSource:
        """Return the model of a name or path, or the default model."""

    def may_be_on_hub(self, name: str) -> bool:
        """Return whether an unknown name may be that of a model on the Hugging Face hub."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Selected model. `profile` None is a local model, `model` None the default one; `context_length` is in tokens."""

    profile: str | None
    model: str | None
    context_length: int | None


class Chooser:
    """Selector of models among the configured and available ones. `default_model` is the default local model; empty: the first."""

    def __init__(self, remote: Profiles, local: LocalModels, default_model: str = "") -> None:
        self._remote = remote
        self._local = local
        self._default_model = default_model

    def choose(self, profile: str | None, model: str | None, caller: Caller) -> Choice:
        """Return the model for this caller. Raises `InvalidRequest`, `NotAllowed`, and `NoModel` without a model."""
        if profile == LOCAL:
            return self.local(model, caller)
        if profile is not None:
            return self._remote_choice(profile, model, caller)
        default = self.default
        if default is None or (model is not None and self._is_local(model)):
            return self.local(model, caller)
        if model is not None or caller.may_spend:
            return self._remote_choice(default, model, caller)
        # No provider was requested: callers without permission to spend get a free local model.
        if not self._local.known():
            raise NotAllowed(LOGIN_REQUIRED.format(default))
        return self.local(None, caller)

    def named(self, name: str | None, caller: Caller) -> Choice:
        """Return the model with an id as in `names`. Other names and paths are chosen like a model without a profile; see `choose`.

        Raises `InvalidRequest` of the field `parameters.model`, also for an invalid profile.
        """
        profile, model = None, name or None
        if model is not None and not self._is_local(model):
            first, _, rest = model.partition("/")
            if model == DEFAULT:
                model = None
            elif first == LOCAL or first in self._remote or first in self._remote.invalid:
                profile, model = first, rest or None
            elif self.default is None and not self._local.may_be_on_hub(model):
                available = ", ".join(self.names(caller)) or "none"
                raise InvalidRequest.of("parameters.model", f"unknown model {model!r}; available: {available}")
        try:
            return self.choose(profile, model, caller)
        except InvalidRequest as problem:
            raise InvalidRequest.of("parameters.model", problem.details[0]["problem"]) from None

    def name_of(self, choice: Choice, caller: Caller) -> str:
        """Return the id of a chosen model."""
        if choice.profile is None:
            return self._local.resolve(choice.model, caller).name
        return f"{choice.profile}/{choice.model or self._remote[choice.profile].model}"

    def names(self, caller: Caller) -> dict[str, str]:
        """Return the providers of the models that this caller may use, by the id of the model, a usable default first."""
        found = {each.name: LOCAL for each in self._local.known()}
        if caller.may_spend:
            found |= {f"{name}/{profile.model}": name for name, profile in self._remote.items() if profile.model is not None}
        try:
            default = self.choose(None, None, caller)
        except OpenRuntimeError:  # none is available, or this caller may not use it
            return found
        return {DEFAULT: default.profile or LOCAL, **found}

    def local(self, model: str | None, caller: Caller) -> Choice:
        """Return a local model."""
        name = model or self._default_model or None
        if name is None and not self._local.known():
            raise self._no_model()
        return Choice(None, name, self._local.resolve(name, caller).context_length)

    @property
    def default(self) -> str | None:
        """Return the default provider, or None for a local model."""
        return None if self._remote.default == LOCAL else self._remote.default

    def _remote_choice(self, profile: str, model: str | None, caller: Caller) -> Choice:
        found = self._remote.find(profile)
        if not caller.may_spend:
            raise NotAllowed(LOGIN_REQUIRED.format(profile))
        if model is None and found.model is None:
            raise InvalidRequest.of("parameters.model", f"is required: the profile {profile!r} has no default model")
        return Choice(profile, model, None)

    def _no_model(self) -> InvalidRequest | NoModel:
        profiles = ", ".join(self._remote)
        if profiles:
            return InvalidRequest.of("parameters.profile", f"is required: {profiles} (set a default in OpenRuntimeApp.default_profile)")
        return NoModel(NOTHING)

    def _is_local(self, model: str) -> bool:
        """Return whether a model name without a profile is local. Names of remote models are not checked."""
        return Path(model).is_absolute() or model.startswith("~") or self._local.named(model) is not None
