from __future__ import annotations

from dataclasses import dataclass

import pytest

from openruntime_jupyter.ai.model_selection import Choice, Chooser
from openruntime_jupyter.errors import InvalidRequest, NotAllowed, Unavailable
from openruntime_jupyter.runtime.tasks.submission import Caller
from openruntime_jupyter.schemas.ai import ProfileInfo
from openruntime_jupyter.schemas.values import ModelSource

STRANGER = Caller(None, may_execute=False, trusted=False, may_spend=False)
ME = Caller("me")


class Profiles(dict[str, ProfileInfo]):
    def __init__(self, *names: str, default: str | None = None) -> None:
        super().__init__({name: ProfileInfo(name=name, model=None if name == "bare" else "m") for name in names})
        self.default = default

    def info(self) -> list[ProfileInfo]:
        return list(self.values())


@dataclass
class Models:
    sources: tuple[ModelSource, ...] = ()

    def known(self) -> list[ModelSource]:
        return list(self.sources)

    def named(self, name: str) -> ModelSource | None:
        return next((source for source in self.sources if source.name == name), None)

    def resolve(self, name: str | None, caller: Caller) -> ModelSource:
        for source in self.sources:
            if name in (None, source.name):
                return source
        raise InvalidRequest.of("parameters.model", f"there is no model {name!r}")


PULLED = Models((ModelSource("small", "/m/small.gguf", "gguf", context_length=8192), ModelSource("other", "/m/other", "mlx")))
CLOUD = Profiles("cloud", "env", default="env")


def chooser(remote: Profiles = CLOUD, local: Models = PULLED, default_model: str = "") -> Chooser:
    return Chooser(remote, local, default_model)


def test_a_profile_that_is_named_answers_with_the_model_that_is_named() -> None:
    assert chooser().choose("cloud", None, ME) == Choice("cloud", None, None)
    assert chooser().choose("cloud", "small", ME) == Choice("cloud", "small", None)


def test_local_names_this_machine() -> None:
    assert chooser().choose("local", None, ME) == Choice(None, None, 8192)
    assert chooser().choose("local", "other", ME) == Choice(None, "other", None)


def test_a_model_of_this_machine_is_found_by_its_name_and_another_is_asked_of_the_provider() -> None:
    assert chooser().choose(None, "other", ME).profile is None
    assert chooser().choose(None, "gpt-x", ME) == Choice("env", "gpt-x", None)
    with pytest.raises(InvalidRequest, match="no model 'gpt-x'"):
        chooser(Profiles()).choose(None, "gpt-x", ME)


def test_where_nothing_is_named_the_default_provider_answers_and_without_one_a_local_model() -> None:
    assert chooser().choose(None, None, ME) == Choice("env", None, None)
    assert chooser(Profiles()).choose(None, None, ME) == Choice(None, None, 8192)
    assert chooser(Profiles("a", "b")).choose(None, None, ME) == Choice(None, None, 8192)
    assert chooser(Profiles("a", default="local"), default_model="other").choose(None, None, ME) == Choice(None, "other", None)


def test_several_providers_without_a_default_and_without_a_model_here_are_to_be_named() -> None:
    with pytest.raises(InvalidRequest, match=r"parameters\.profile: is required: a, b .*default_profile"):
        chooser(Profiles("a", "b"), Models()).choose(None, None, ME)


def test_with_neither_the_message_names_both_ways_out() -> None:
    with pytest.raises(Unavailable, match=r"OPENAI_API_KEY.*profile.*jupyter openruntime pull"):
        chooser(Profiles(), Models()).choose(None, None, ME)


def test_an_unknown_profile_names_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match=r"parameters\.profile: unknown profile 'x'; available: local, cloud, env"):
        chooser().choose("x", None, ME)


def test_a_profile_without_a_model_wants_one_named() -> None:
    bare = chooser(Profiles("bare"))
    with pytest.raises(InvalidRequest, match=r"parameters\.model: is required: the profile 'bare'"):
        bare.choose("bare", None, ME)
    assert bare.choose("bare", "m", ME) == Choice("bare", "m", None)


def test_who_may_not_spend_gets_a_local_model_and_is_refused_a_remote_one_that_was_asked_for() -> None:
    assert chooser().choose(None, None, STRANGER) == Choice(None, None, 8192)
    for profile, model in (("cloud", None), (None, "gpt-x")):
        with pytest.raises(NotAllowed, match=r"costs its owner money.*log in.*jupyter openruntime pull"):
            chooser().choose(profile, model, STRANGER)
    with pytest.raises(NotAllowed, match="'env' costs its owner money"):
        chooser(local=Models()).choose(None, None, STRANGER)
