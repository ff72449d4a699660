"""Which model answers a prompt: the one that is named, else a remote provider that is set up, else one of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.ai_models import LOCAL, ModelSource
from openruntime_jupyter.errors import InvalidRequest, NotAllowed, Unavailable
from openruntime_jupyter.runtime.submission import Caller

NOTHING = (
    "No model answers prompts here yet. Set up a remote provider (OPENAI_API_KEY in the environment, or a profile by "
    "OpenRuntimeApp.profiles), or fetch a model for this machine: jupyter openruntime pull"
)
NOBODY = (
    "The remote provider {!r} costs its owner money, and you are not logged in: log in or send the server's token, or ask a model of this "
    "machine (`profile` `local`; `jupyter openruntime pull` fetches one)"
)


class RemoteProfile(Protocol):
    """A remote provider."""

    @property
    def name(self) -> str:
        """By which it is named."""

    @property
    def model(self) -> str | None:
        """What it asks for, unless the prompt names another."""

    @property
    def context_length(self) -> int | None:
        """Tokens that it has room for, where that was said."""


class RemoteProfiles(Protocol):
    """The remote providers that are set up."""

    def known(self) -> Sequence[RemoteProfile]:
        """All of them, those of the environment included."""

    def default(self) -> RemoteProfile | None:
        """What the environment sets up; None where it does not."""


class LocalModels(Protocol):
    """The models of this machine: `runtime/model_catalog.py`."""

    def known(self) -> list[ModelSource]:
        """Those that anybody may ask for, the default one first."""

    def resolve(self, name: str | None, caller: Caller) -> ModelSource:
        """What a name stands for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Who answers: a profile, or with None a model of this machine. `model` None is the default one; `context_length` is in tokens."""

    profile: str | None
    model: str | None
    context_length: int | None


class Chooser:
    """Decides by what is set up and what is there now."""

    def __init__(self, config: AiConfig, remote: RemoteProfiles, local: LocalModels) -> None:
        self._config = config
        self._remote = remote
        self._local = local

    def choose(self, profile: str | None, model: str | None, caller: Caller) -> Choice:
        """Who answers this caller; raises `InvalidRequest`, `NotAllowed`, and `Unavailable` where there is nobody."""
        if profile == LOCAL:
            return self.local(model, caller)
        if profile is not None:
            return self._asked(self._profile(profile), model, caller)
        default = self.default()
        if default is None or (model is not None and self._is_local(model)):
            return self.local(model, caller)
        if model is not None or caller.may_spend:
            return self._asked(default, model, caller)
        # Nobody asked for the provider by name: who may not spend gets what costs nothing.
        if not self._local.known():
            raise NotAllowed(NOBODY.format(default.name))
        return self.local(None, caller)

    def local(self, model: str | None, caller: Caller) -> Choice:
        """A model of this machine."""
        name = model or self._config.default_model or None
        if name is None and not self._local.known():
            raise Unavailable(NOTHING, retry_after=60.0)
        source = self._local.resolve(name, caller)
        return Choice(None, name, source.context_length)

    def default(self) -> RemoteProfile | None:
        """The provider that answers where none is named: the configured one, else the environment's; None: this machine."""
        name = self._config.default_profile
        if name == LOCAL:
            return None
        return self._profile(name, "default_profile") if name else self._remote.default()

    def _asked(self, profile: RemoteProfile, model: str | None, caller: Caller) -> Choice:
        if not caller.may_spend:
            raise NotAllowed(NOBODY.format(profile.name))
        return Choice(profile.name, model, profile.context_length)

    def _profile(self, name: str, field: str = "parameters.profile") -> RemoteProfile:
        found = next((each for each in self._remote.known() if each.name == name), None)
        if found is None:
            there = ", ".join([LOCAL, *(each.name for each in self._remote.known())])
            raise InvalidRequest.of(field, f"there is no profile {name!r}; there are {there}: OpenRuntimeApp.profiles sets up more")
        return found

    def _is_local(self, model: str) -> bool:
        """Whether a name without a profile is one of this machine's: names of remote models are the provider's business."""
        return Path(model).is_absolute() or model.startswith("~") or any(each.name == model for each in self._local.known())
