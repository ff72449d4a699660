from __future__ import annotations

from dataclasses import dataclass

import pytest

from openruntime_jupyter.ai.choosing import Choice, Chooser
from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.ai_models import ModelSource
from openruntime_jupyter.errors import InvalidRequest, NotAllowed, Unavailable
from openruntime_jupyter.runtime.submission import Caller

STRANGER = Caller(None, may_execute=False, trusted=False, may_spend=False)
ME = Caller("me")


@dataclass
class Profile:
    name: str
    model: str | None = "m"
    context_length: int | None = 1000


@dataclass
class Profiles:
    profiles: tuple[Profile, ...] = ()
    of_environment: Profile | None = None

    def known(self) -> list[Profile]:
        return [*self.profiles, *([self.of_environment] if self.of_environment else [])]

    def default(self) -> Profile | None:
        return self.of_environment


@dataclass
class Models:
    sources: tuple[ModelSource, ...] = ()

    def known(self) -> list[ModelSource]:
        return list(self.sources)

    def resolve(self, name: str | None, caller: Caller) -> ModelSource:
        for source in self.sources:
            if name in (None, source.name):
                return source
        raise InvalidRequest.of("parameters.model", f"there is no model {name!r}")


PULLED = Models((ModelSource("small", "/m/small.gguf", "gguf", context_length=8192), ModelSource("other", "/m/other", "mlx")))
CLOUD = Profiles((Profile("cloud"),), Profile("openai"))


def chooser(remote: Profiles = CLOUD, local: Models = PULLED, **config: str) -> Chooser:
    return Chooser(AiConfig(**config), remote, local)  # type: ignore[arg-type]


def test_a_profile_that_is_named_answers_with_the_model_that_is_named() -> None:
    assert chooser().choose("cloud", None, ME) == Choice("cloud", None, 1000)
    assert chooser().choose("cloud", "small", ME) == Choice("cloud", "small", 1000)


def test_local_names_this_machine() -> None:
    assert chooser().choose("local", None, ME) == Choice(None, None, 8192)
    assert chooser().choose("local", "other", ME) == Choice(None, "other", None)


def test_a_model_of_this_machine_is_found_by_its_name_and_another_is_asked_of_the_provider() -> None:
    assert chooser().choose(None, "other", ME).profile is None
    assert chooser().choose(None, "gpt-x", ME) == Choice("openai", "gpt-x", 1000)
    with pytest.raises(InvalidRequest, match="no model 'gpt-x'"):
        chooser(Profiles()).choose(None, "gpt-x", ME)


def test_the_configured_default_goes_before_the_environments_and_that_before_a_local_model() -> None:
    assert chooser(default_profile="cloud").choose(None, None, ME).profile == "cloud"
    assert chooser().choose(None, None, ME).profile == "openai"
    assert chooser(Profiles((Profile("cloud"),))).choose(None, None, ME) == Choice(None, None, 8192)
    assert chooser(default_profile="local", default_model="other").choose(None, None, ME) == Choice(None, "other", None)


def test_with_neither_the_message_names_both_ways_out() -> None:
    with pytest.raises(Unavailable, match=r"OPENAI_API_KEY.*profile.*jupyter openruntime pull"):
        chooser(Profiles(), Models()).choose(None, None, ME)


def test_an_unknown_profile_names_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match=r"parameters\.profile: there is no profile 'x'; there are local, cloud, openai"):
        chooser().choose("x", None, ME)
    with pytest.raises(InvalidRequest, match="default_profile: there is no profile 'x'"):
        chooser(default_profile="x").choose(None, None, ME)


def test_who_may_not_spend_gets_a_local_model_and_is_refused_a_remote_one_that_was_asked_for() -> None:
    assert chooser().choose(None, None, STRANGER) == Choice(None, None, 8192)
    for profile, model in (("cloud", None), (None, "gpt-x")):
        with pytest.raises(NotAllowed, match=r"costs its owner money.*log in.*jupyter openruntime pull"):
            chooser().choose(profile, model, STRANGER)
    with pytest.raises(NotAllowed, match="'openai' costs its owner money"):
        chooser(local=Models()).choose(None, None, STRANGER)
