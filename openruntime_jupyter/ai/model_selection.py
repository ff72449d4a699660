"""Which model answers a prompt: the one that is named, else a remote provider that is set up, else one of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from openruntime_jupyter.errors import InvalidRequest, NotAllowed, Unavailable
from openruntime_jupyter.runtime.tasks.validation import Caller
from openruntime_jupyter.schemas.ai import LOCAL, ProfileInfo
from openruntime_jupyter.schemas.values import ModelSource

NOTHING = (
    "No model answers prompts here yet. Set up a remote provider (OPENAI_API_KEY in the environment, or a profile by "
    "OpenRuntimeApp.profiles), or fetch a model for this machine: jupyter openruntime pull"
)
NOBODY = (
    "The remote provider {!r} costs its owner money, and you are not logged in: log in or send the server's token, or ask a model of this "
    "machine (`profile` `local`; `jupyter openruntime pull` fetches one)"
)


class RemoteProfiles(Protocol):
    """The remote providers that are set up: `ai/profiles.py`."""

    default: str | None
    """The one that answers where none is named; `local`: a model of this machine."""

    def __iter__(self) -> Iterator[str]:
        """Their names."""

    def __contains__(self, name: object) -> bool:
        """Whether there is one of that name."""

    def info(self) -> list[ProfileInfo]:
        """What may be told of them."""


class LocalModels(Protocol):
    """The models of this machine: `local_models/catalog.py`."""

    def known(self) -> list[ModelSource]:
        """Those that anybody may ask for, the default one first."""

    def named(self, name: str) -> ModelSource | None:
        """The one of those that a name stands for."""

    def resolve(self, name: str | None, caller: Caller) -> ModelSource:
        """What a name or a path stands for; None: the default one."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Who answers: a profile, or with None a model of this machine. `model` None is the default one; `context_length` is in tokens."""

    profile: str | None
    model: str | None
    context_length: int | None


class Chooser:
    """Decides by what is set up and what is there now. Where no local model is named, `default_model` is asked; empty: the first."""

    def __init__(self, remote: RemoteProfiles, local: LocalModels, default_model: str = "") -> None:
        self._remote = remote
        self._local = local
        self._default_model = default_model

    def choose(self, profile: str | None, model: str | None, caller: Caller) -> Choice:
        """Who answers this caller; raises `InvalidRequest`, `NotAllowed`, and `Unavailable` where there is nobody."""
        if profile == LOCAL:
            return self.local(model, caller)
        if profile is not None:
            return self._asked(profile, model, caller)
        default = self.default
        if default is None or (model is not None and self._is_local(model)):
            return self.local(model, caller)
        if model is not None or caller.may_spend:
            return self._asked(default, model, caller)
        # Nobody asked for the provider by name: who may not spend gets what costs nothing.
        if not self._local.known():
            raise NotAllowed(NOBODY.format(default))
        return self.local(None, caller)

    def local(self, model: str | None, caller: Caller) -> Choice:
        """A model of this machine."""
        name = model or self._default_model or None
        if name is None and not self._local.known():
            raise self._nothing()
        return Choice(None, name, self._local.resolve(name, caller).context_length)

    @property
    def default(self) -> str | None:
        """The provider that answers where none is named; None: a model of this machine does."""
        return None if self._remote.default == LOCAL else self._remote.default

    def _asked(self, profile: str, model: str | None, caller: Caller) -> Choice:
        if profile not in self._remote:
            there = ", ".join([LOCAL, *self._remote])
            problem = f"there is no profile {profile!r}; there are {there}: OpenRuntimeApp.profiles sets up more"
            raise InvalidRequest.of("parameters.profile", problem)
        if not caller.may_spend:
            raise NotAllowed(NOBODY.format(profile))
        if model is None and all(each.model is None for each in self._remote.info() if each.name == profile):
            raise InvalidRequest.of("parameters.model", f"name one: the profile {profile!r} has none")
        return Choice(profile, model, None)

    def _nothing(self) -> InvalidRequest | Unavailable:
        profiles = ", ".join(self._remote)
        if profiles:
            return InvalidRequest.of("parameters.profile", f"name one of {profiles}: none is the default (OpenRuntimeApp.default_profile)")
        return Unavailable(NOTHING, retry_after=60.0)

    def _is_local(self, model: str) -> bool:
        """Whether a name without a profile is one of this machine's: names of remote models are the provider's business."""
        return Path(model).is_absolute() or model.startswith("~") or self._local.named(model) is not None
