from __future__ import annotations

import logging
from typing import Any

import pytest

from openruntime_jupyter.ai.profiles import OPENAI, profile_of, profiles_from
from openruntime_jupyter.errors import InvalidRequest

KEY = "sk-0123456789abcdef"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"base_url": "localhost:8080"}, "base_url: use the parent URL of /chat/completions"),
        ({"base_url": "http://x:99999/v1"}, "base_url: "),
        ({"base_url": f"https://me:{KEY}@x/v1"}, "base_url: must not contain a user name or password"),
        ({"base_url": f"https://x/v1?api-key={KEY}"}, "base_url: must not contain a secret (api-key in the query)"),
        ({"base_url": "https://x/v1#top"}, "base_url: must not have a fragment"),
        ({"api_key": KEY}, "api_key: use a reference, `env:NAME`"),
        ({"headers": {"api-key": KEY}}, "headers: for api-key, use a reference"),
        ({"headers": {"Authorization": f"Bearer {KEY}"}}, "headers: for Authorization, use a reference"),
        ({"headers": {"Bad Name": "x"}}, "headers: 'Bad Name' is not a valid header name"),
        ({"headers": {"X-Title": "a\nb"}}, "headers: the value of X-Title"),
        ({"headers": {"Host": "x"}}, "headers: Host can't be set"),
        ({"parameters": {"stream": False}}, "parameters: stream is not allowed here"),
        ({"parameters": {"api_key": KEY}}, "parameters: api_key is not allowed here"),
        ({"max_retries": 100}, "max_retries: "),
        ({"modell": "x"}, "modell: "),
        ({"name": "q"}, "name: must not be set"),
    ],
)
def test_invalid_field_is_named_without_showing_keys(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        profile_of("p", fields)
    assert str(raised.value).startswith(f"profiles.p.{said}")
    assert KEY not in f"{raised.value!r} {raised.value.details}"
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize("name", ["local", "", "a b", "../x", "x" * 100])
def test_invalid_name_is_rejected(name: str) -> None:
    with pytest.raises(InvalidRequest, match="invalid name"):
        profile_of(name, {})


def test_repr_hides_headers_and_parameters() -> None:
    fields = {"headers": {"X-Title": "mine"}, "parameters": {"user": "me"}, "api_key": "env:THE_KEY"}
    profiles = profiles_from({"p": fields}, {"THE_KEY": KEY})
    shown = f"{profiles!r} {profiles['p']!r} {profiles['p']} {profiles.info()!r}"
    assert not [hidden for hidden in ("mine", "'me'", KEY) if hidden in shown]


def test_base_url_is_normalized() -> None:
    for given in (
        "https://x.test/v1",
        " https://x.test/v1/ ",
        "https://x.test/v1/chat/completions",
        "https://x.test/v1/chat/completions/\n",
    ):
        assert profile_of("p", {"base_url": given}).base_url == "https://x.test/v1"
    assert profile_of("p", {"model": " m\n"}).model == "m"
    azure = profile_of("p", {"base_url": "https://x.test/openai/deployments/m/chat/completions?api-version=2024-10-21"})
    assert azure.base_url == "https://x.test/openai/deployments/m?api-version=2024-10-21"
    assert azure.query == {"api-version": "2024-10-21"}


def test_openai_variables_make_a_profile() -> None:
    environ = {"OPENAI_API_KEY": KEY, "OPENAI_MODEL": "m", "OPENAI_ORG_ID": "o", "OPENAI_PROJECT_ID": "q"}
    profile = profiles_from({}, environ).find()
    assert (profile.name, profile.base_url, profile.api_key, profile.model) == ("env", OPENAI, "env:OPENAI_API_KEY", "m")
    assert (profile.organization, profile.project) == ("o", "q")
    local = profiles_from({}, {"OPENAI_BASE_URL": "http://127.0.0.1:8080/v1"}).find()
    assert (local.api_key, local.base_url) == (None, "http://127.0.0.1:8080/v1")


def test_openruntime_variables_take_precedence_and_are_not_mixed() -> None:
    environ = {"OPENAI_API_KEY": KEY, "OPENAI_MODEL": "m", "OPENRUNTIME_AI_BASE_URL": "http://127.0.0.1:8080/v1"}
    profile = profiles_from({}, environ).find()
    assert (profile.base_url, profile.api_key, profile.model, profile.organization) == ("http://127.0.0.1:8080/v1", None, None, None)
    with_key = profiles_from({}, {**environ, "OPENRUNTIME_AI_API_KEY": "x", "OPENRUNTIME_AI_MODEL": "mine"}).find()
    assert (with_key.api_key, with_key.model) == ("env:OPENRUNTIME_AI_API_KEY", "mine")


def test_invalid_variables_are_reported_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        profiles = profiles_from({"p": {}}, {"OPENAI_BASE_URL": f"http://me:{KEY}@x/v1"})
    assert list(profiles) == ["p"]
    assert "base_url" in profiles.skipped[0]
    assert profiles.skipped[0] in caplog.text
    assert not profiles.problems
    assert KEY not in caplog.text


def test_invalid_profile_leaves_the_others_usable(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        profiles = profiles_from({"bad": {"base_url": "localhost/v1"}, "good": {}, "env": {"modell": "x"}}, {"OPENAI_API_KEY": KEY})
    assert list(profiles) == ["good"]
    assert profiles.find("good").name == "good"
    with pytest.raises(InvalidRequest, match=r"the profile 'bad' is invalid: profiles\.bad\.base_url: .*http://"):
        profiles.find("bad")
    with pytest.raises(InvalidRequest, match=r"the profile 'env' is invalid"):
        profiles.find()  # the default stays, so that no prompt reaches another provider
    assert [name for name in ("bad", "env") if f"profiles.{name}" in caplog.text] == ["bad", "env"]
    assert len(profiles.problems) == 2


def test_default_profile() -> None:
    environ = {"OPENAI_API_KEY": KEY}
    assert profiles_from({"a": {}, "b": {}}, environ, "b").default == "b"
    assert profiles_from({"a": {}, "default": {}}, environ).default == "default"
    assert profiles_from({"a": {}, "b": {}}, environ).default == "env"
    assert profiles_from({"a": {}}, {}).default == "a"
    several = profiles_from({"a": {}, "b": {}}, {})
    assert several.default is None
    with pytest.raises(InvalidRequest, match="is required; available: local, a, b"):
        several.find()
    unknown = profiles_from({"a": {}}, {}, "c")
    assert unknown.problems == ["default_profile: unknown profile 'c'; available: a"]
    with pytest.raises(InvalidRequest, match="unknown profile 'c'; available: local, a"):
        unknown.find()
    assert profiles_from({"a": {}, "b": {"modell": "x"}}, {}).default is None


def test_configured_profile_replaces_environment() -> None:
    assert profiles_from({"env": {"model": "mine"}}, {"OPENAI_API_KEY": KEY})["env"].api_key is None


def test_secret_variables_are_collected() -> None:
    fields = {"api_key": "env:MINE", "headers": {"X-Token": "env:GATE", "X-Key": "keyring:a/b", "X-Title": "t"}}
    assert profiles_from({"p": fields}, {"OPENAI_API_KEY": KEY}).secret_variables == {"MINE", "GATE", "OPENAI_API_KEY"}
    invalid = {"base_url": "localhost", "apikey": "env:MISSPELLED", "headers": {"X-Token": "env:GATE"}}
    assert profiles_from({"p": {"api_key": "env:MINE"}, "bad": invalid}, {}).secret_variables == {"MINE", "MISSPELLED", "GATE"}
