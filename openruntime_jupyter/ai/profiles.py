"""Named profiles of remote providers: where each answers, which model it is asked for, and where its key is found."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from openruntime_jupyter.ai.keys import HOW, is_place, variable
from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations.base import invalid
from openruntime_jupyter.operations.chat import sendable
from openruntime_jupyter.operations.inputs import wrong
from openruntime_jupyter.schemas.ai import LOCAL, ProfileInfo

log = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
KEY = "api_key"
ENVIRONMENT = "env"
"""The profile that environment variables make."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
SECRET_HEADER = re.compile(r"(?:^|[-_])(?:api-?key|key|token|secret|password|auth|authorization|cookie)s?(?:$|[-_])", re.IGNORECASE)
OURS = ("content-type", "content-length", "host", "accept", "transfer-encoding", "connection")


def _base_url(text: str) -> str:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as problem:
        raise wrong(f"{problem}; give the address below which /chat/completions lies, such as {OPENAI}") from None
    if url.username or url.password:
        raise wrong(f"no name or password belongs in it: for api_key, {HOW}")
    if url.scheme not in ("http", "https") or not url.hostname or port == 0 or not (text.isascii() and text.isprintable()):
        raise wrong(f"give the address below which /chat/completions lies, such as {OPENAI} or http://127.0.0.1:8080/v1")
    if url.query or url.fragment:
        raise wrong("nothing may follow its path: give what would stand after ? as headers")
    return text.rstrip("/").removesuffix("/chat/completions")


def _place(text: str) -> str:
    if not is_place(text):
        raise wrong(HOW)
    return text


Place = Annotated[str, AfterValidator(_place)]


class Profile(BaseModel):
    """A remote provider. It holds no key, only the place of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    base_url: Annotated[str, AfterValidator(_base_url)] = Field(OPENAI, description="The address below which /chat/completions lies.")
    model: str | None = Field(None, description="What is asked for where a prompt names no model.", min_length=1, max_length=500)
    api_key: Place | None = Field(None, description="`env:NAME` or `keyring:SERVICE/USER`; null: none is sent.", repr=False)
    timeout: float = Field(300.0, description="Seconds of silence after which it is given up.", gt=0, le=86_400)
    max_retries: int = Field(2, description="How often a request is sent again where it was refused for load, or failed.", ge=0, le=5)
    parameters: dict[str, Any] = Field({}, description="Sent with every prompt that does not say otherwise.", repr=False)
    headers: dict[str, str] = Field({}, description="Sent with every request; secret ones as `env:` or `keyring:`.", repr=False)
    organization: str | None = Field(None, description="Sent as OpenAI-Organization.", max_length=200)
    project: str | None = Field(None, description="Sent as OpenAI-Project.", max_length=200)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not NAME.fullmatch(name) or name == LOCAL:
            raise wrong(f"{name!r} is no name: letters, digits, '_', '.' and '-', and not {LOCAL!r}, which is this machine")
        return name

    @field_validator("parameters")
    @classmethod
    def _can_be_sent(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        return sendable(parameters)

    @field_validator("headers")
    @classmethod
    def _are_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not HEADER.fullmatch(name):
                raise wrong(f"{name!r} is no name of a header")
            if name.lower() in OURS:
                raise wrong(f"{name} is not yours to set")
            if SECRET_HEADER.search(name) and not is_place(value):
                raise wrong(f"for {name}, {HOW}")
            if not (value.isascii() and value.isprintable()):
                raise wrong(f"the value of {name} has characters that no header has")
        return headers

    @property
    def host(self) -> str:
        """The host of `base_url`, with its port where it names one: what errors tell."""
        return urlsplit(self.base_url).netloc

    @property
    def loopback(self) -> bool:
        """Whether it answers on this machine, so that no proxy is asked for it."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    @property
    def places(self) -> dict[str, str]:
        """The places of its secrets: of the key, under `KEY`, and of secret headers, by their names."""
        key = {KEY: self.api_key} if self.api_key else {}
        return {**key, **{name: value for name, value in self.headers.items() if is_place(value)}}

    @property
    def secret_variables(self) -> set[str]:
        """The environment variables that hold its secrets."""
        return {found for place in self.places.values() if (found := variable(place))}


class Profiles(Mapping[str, Profile]):
    """Every profile by name. `default` answers where a prompt names none; it is None where several are there and none was chosen."""

    def __init__(self, profiles: Mapping[str, Profile], default: str | None = None, problems: tuple[str, ...] = ()) -> None:
        self._profiles = dict(profiles)
        self.problems = problems
        """What is wrong with the environment's variables, in sentences; a profile that they would have made is not there."""
        only = next(iter(self._profiles)) if len(self._profiles) == 1 else None
        self.default = default or next((name for name in ("default", ENVIRONMENT) if name in self._profiles), only)

    def __getitem__(self, name: str) -> Profile:
        return self._profiles[name]

    def __iter__(self) -> Any:
        return iter(self._profiles)

    def __len__(self) -> int:
        return len(self._profiles)

    def __repr__(self) -> str:
        return f"Profiles({', '.join(self)})"

    def find(self, name: str | None = None) -> Profile:
        """The profile of that name, or the default one; raises `InvalidRequest`, which lists those that there are."""
        wanted = name or self.default
        if wanted is not None and wanted in self._profiles:
            return self._profiles[wanted]
        there = f"there are {', '.join(self)}" if self else "none is configured: set OPENAI_API_KEY, or OpenRuntimeApp.profiles"
        problem = f"there is no profile {wanted!r}; {there}" if wanted else f"name one; {there}"
        raise InvalidRequest.of("parameters.profile", problem)

    def info(self) -> list[ProfileInfo]:
        """What may be told of them."""
        return [ProfileInfo(name=each.name, model=each.model, default=each.name == self.default) for each in self.values()]

    @property
    def secret_variables(self) -> set[str]:
        """The environment variables that hold secrets, which no worker needs to see."""
        return set().union(*(each.secret_variables for each in self.values()))


def profiles_from(configured: Mapping[str, Mapping[str, Any]], environ: Mapping[str, str], default: str = "") -> Profiles:
    """The configured profiles, and the one of the environment; raises `InvalidRequest`, which names each wrong field.

    What is wrong with the environment raises nothing, as its variables may be meant for others: it is told by `problems`.
    """
    profiles: dict[str, Profile] = {}
    problems: list[str] = []
    try:
        found = from_environment(environ)
        if found is not None:
            profiles[found.name] = found
    except InvalidRequest as problem:
        problems.append(f"The environment's AI provider was left out: {problem}")
        log.warning("%s", problems[-1])
    for name, fields in configured.items():
        profiles[name] = _profile(name, fields)
    if default and default != LOCAL and default not in profiles:
        there = ", ".join(profiles) or "none"
        raise InvalidRequest.of("default_profile", f"there is no profile {default!r}, there are: {there}")
    return Profiles(profiles, default or None, tuple(problems))


def _profile(name: str, fields: Mapping[str, Any], prefix: str = "profiles.") -> Profile:
    if not isinstance(fields, Mapping):
        raise InvalidRequest.of(f"{prefix}{name}", "give its fields as a dictionary")
    if "name" in fields:
        raise InvalidRequest.of(f"{prefix}{name}.name", "its name is the key that it stands under")
    try:
        return Profile.model_validate({"name": name, **fields})
    except ValidationError as problem:
        raise invalid(problem, f"{prefix}{name}") from None


def from_environment(environ: Mapping[str, str]) -> Profile | None:
    """The profile `env` where a variable says that there is a provider; raises `InvalidRequest`.

    `OPENRUNTIME_AI_BASE_URL`, `_API_KEY` and `_MODEL` come first. The two families are never mixed, lest the key of one provider be
    sent to another.
    """
    family = next(
        (each for each in ("OPENRUNTIME_AI", "OPENAI") if environ.get(f"{each}_BASE_URL") or environ.get(f"{each}_API_KEY")), None
    )
    if family is None:
        return None
    fields: dict[str, Any] = {
        "base_url": environ.get(f"{family}_BASE_URL") or OPENAI,
        "model": environ.get(f"{family}_MODEL") or None,
        "api_key": f"env:{family}_API_KEY" if environ.get(f"{family}_API_KEY") else None,
    }
    if family == "OPENAI":
        fields.update(organization=environ.get("OPENAI_ORG_ID") or None, project=environ.get("OPENAI_PROJECT_ID") or None)
    return _profile(ENVIRONMENT, fields, "the environment's profile ")
