from __future__ import annotations

from dataclasses import dataclass

import pytest

from openruntime_jupyter.ai.model_selection import Choice, Chooser
from openruntime_jupyter.ai.profiles import Profiles, profiles_from
from openruntime_jupyter.errors import InvalidRequest, NotAllowed, Unavailable
from openruntime_jupyter.runtime.tasks.submission import Caller
from openruntime_jupyter.schemas.values import ModelSource

STRANGER = Caller(None, may_execute=False, trusted=False, may_spend=False)
ME = Caller("me")


def remote(*names: str, default: str = "") -> Profiles:
    return profiles_from({name: {} if name == "bare" else {"model": "m"} for name in names}, {}, default)


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

    def may_be_on_hub(self, name: str) -> bool:
        return False


PULLED = Models((ModelSource("small", "/m/small.gguf", "gguf", context_length=8192), ModelSource("other", "/m/other", "mlx")))
CLOUD = remote("cloud", "env", default="env")


def chooser(profiles: Profiles = CLOUD, local: Models = PULLED, default_model: str = "") -> Chooser:
    return Chooser(profiles, local, default_model)


def test_requested_profile_and_model_are_used() -> None:
    assert chooser().choose("cloud", None, ME) == Choice("cloud", None, None)
    assert chooser().choose("cloud", "small", ME) == Choice("cloud", "small", None)


def test_local_selects_local_models() -> None:
    assert chooser().choose("local", None, ME) == Choice(None, None, 8192)
    assert chooser().choose("local", "other", ME) == Choice(None, "other", None)


def test_local_model_name_precedes_provider() -> None:
    assert chooser().choose(None, "other", ME).profile is None
    assert chooser().choose(None, "gpt-x", ME) == Choice("env", "gpt-x", None)
    with pytest.raises(InvalidRequest, match="no model 'gpt-x'"):
        chooser(remote()).choose(None, "gpt-x", ME)


def test_default_is_provider_then_local_model() -> None:
    assert chooser().choose(None, None, ME) == Choice("env", None, None)
    assert chooser(remote()).choose(None, None, ME) == Choice(None, None, 8192)
    assert chooser(remote("a", "b")).choose(None, None, ME) == Choice(None, None, 8192)
    assert chooser(remote("a", default="local"), default_model="other").choose(None, None, ME) == Choice(None, "other", None)


def test_several_profiles_without_default_require_one() -> None:
    with pytest.raises(InvalidRequest, match=r"parameters\.profile: is required: a, b .*default_profile"):
        chooser(remote("a", "b"), Models()).choose(None, None, ME)


def test_no_model_is_unavailable_with_advice() -> None:
    with pytest.raises(Unavailable, match=r"OPENAI_API_KEY.*profile.*jupyter openruntime pull"):
        chooser(remote(), Models()).choose(None, None, ME)


def test_unknown_profile_lists_profiles() -> None:
    with pytest.raises(InvalidRequest, match=r"parameters\.profile: unknown profile 'x'; available: local, cloud, env"):
        chooser().choose("x", None, ME)


def test_profile_without_model_requires_one() -> None:
    bare = chooser(remote("bare"))
    with pytest.raises(InvalidRequest, match=r"parameters\.model: is required: the profile 'bare'"):
        bare.choose("bare", None, ME)
    assert bare.choose("bare", "m", ME) == Choice("bare", "m", None)


def test_caller_without_permission_to_spend_gets_local_model() -> None:
    assert chooser().choose(None, None, STRANGER) == Choice(None, None, 8192)
    for profile, model in (("cloud", None), (None, "gpt-x")):
        with pytest.raises(NotAllowed, match=r"costs its owner money.*log in.*jupyter openruntime pull"):
            chooser().choose(profile, model, STRANGER)
    with pytest.raises(NotAllowed, match="'env' costs its owner money"):
        chooser(local=Models()).choose(None, None, STRANGER)


def test_id_of_an_unknown_model_lists_the_ids() -> None:
    local = chooser(remote("cloud", "bare", default="local"))
    for name in ("clod/m", "x", "a/b/c"):
        with pytest.raises(InvalidRequest, match=rf"parameters\.model: unknown model '{name}'; available: default, small, other, cloud/m$"):
            local.named(name, ME)
    with pytest.raises(InvalidRequest, match=r"available: default, small, other$"):
        local.named("clod/m", STRANGER)
    with pytest.raises(InvalidRequest, match=r"parameters\.model: is required: the profile 'bare'"):
        local.named("bare", ME)
    assert local.named("cloud/big", ME) == Choice("cloud", "big", None)
    assert chooser().named("vendor/model", ME) == Choice("env", "vendor/model", None), "the default provider may have it"


def test_id_of_an_invalid_profile_tells_its_problem() -> None:
    broken = chooser(profiles_from({"broken": {"base_url": "ftp://x"}, "cloud": {"model": "m"}}, {}, "local"))
    with pytest.raises(InvalidRequest, match=r"parameters\.model: the profile 'broken' is invalid: .*base_url"):
        broken.named("broken/m", ME)
    with pytest.raises(InvalidRequest, match=r"parameters\.model: is required: a, b"):
        chooser(remote("a", "b"), Models()).named("default", ME)


def test_owner_of_the_default_model_is_the_one_that_answers() -> None:
    assert chooser().names(ME) == {"default": "env", "small": "local", "other": "local", "cloud/m": "cloud", "env/m": "env"}
    assert chooser().names(STRANGER) == {"default": "local", "small": "local", "other": "local"}
    assert chooser(local=Models()).names(STRANGER) == {}
    assert list(chooser(remote("a", "b"), Models()).names(ME)) == ["a/m", "b/m"], "no default model"
