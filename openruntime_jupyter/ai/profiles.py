"""Named profiles of remote providers: URL, default model and reference to the key."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from openruntime_jupyter.ai.keys import HOW, is_reference, variable
from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations.base import invalid
from openruntime_jupyter.operations.chat import sendable
from openruntime_jupyter.schemas.ai import LOCAL, ProfileInfo
from openruntime_jupyter.schemas.base import wrong

log = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
KEY = "api_key"
ENVIRONMENT = "env"
"""Name of the profile from environment variables."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
SECRET_HEADER = re.compile(r"(?:^|[-_])(?:api-?key|key|token|secret|password|auth|authorization|cookie)s?(?:$|[-_])", re.IGNORECASE)
RESERVED_HEADERS = ("content-type", "content-length", "host", "accept", "transfer-encoding", "connection")


def _base_url(text: str) -> str:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as problem:
        raise wrong(f"{problem}; use the parent URL of /chat/completions, such as {OPENAI}") from None
    if url.username or url.password:
        raise wrong(f"must not contain a user name or password: for api_key, {HOW}")
    if url.scheme not in ("http", "https") or not url.hostname or port == 0 or not (text.isascii() and text.isprintable()):
        raise wrong(f"use the parent URL of /chat/completions, such as {OPENAI} or http://127.0.0.1:8080/v1")
    if url.query or url.fragment:
        raise wrong("must not have a query or fragment: use headers instead")
    return text.rstrip("/").removesuffix("/chat/completions")


def _reference(text: str) -> str:
    if not is_reference(text):
        raise wrong(HOW)
    return text


KeyReference = Annotated[str, AfterValidator(_reference)]


class Profile(BaseModel):
    """Remote provider. Contains only a reference to the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    base_url: Annotated[str, AfterValidator(_base_url)] = Field(OPENAI, description="Parent URL of /chat/completions.")
    model: str | None = Field(None, description="Default model of prompts.", min_length=1, max_length=500)
    api_key: KeyReference | None = Field(None, description="`env:NAME` or `keyring:SERVICE/USER`; null: no key.", repr=False)
    timeout: float = Field(300.0, description="Read timeout in seconds.", gt=0, le=86_400)
    max_retries: int = Field(2, description="Number of retries of a request that failed or was rejected because of load.", ge=0, le=5)
    parameters: dict[str, Any] = Field({}, description="Default parameters of prompts.", repr=False)
    headers: dict[str, str] = Field({}, description="Headers of every request; secret values as `env:` or `keyring:`.", repr=False)
    organization: str | None = Field(None, description="Sent as OpenAI-Organization.", max_length=200)
    project: str | None = Field(None, description="Sent as OpenAI-Project.", max_length=200)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not NAME.fullmatch(name) or name == LOCAL:
            raise wrong(f"invalid name {name!r}: use letters, digits, '_', '.' and '-'; {LOCAL!r} is reserved")
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
                raise wrong(f"{name!r} is not a valid header name")
            if name.lower() in RESERVED_HEADERS:
                raise wrong(f"{name} can't be set")
            if SECRET_HEADER.search(name) and not is_reference(value):
                raise wrong(f"for {name}, {HOW}")
            if not (value.isascii() and value.isprintable()):
                raise wrong(f"the value of {name} has characters that are not allowed in headers")
        return headers

    @property
    def host(self) -> str:
        """Return the host and port of `base_url`, for error messages."""
        return urlsplit(self.base_url).netloc

    @property
    def loopback(self) -> bool:
        """Return whether the host is a loopback address, which needs no proxy."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    @property
    def references(self) -> dict[str, str]:
        """Return the references to its secrets: the key, under `KEY`, and secret headers, by name."""
        key = {KEY: self.api_key} if self.api_key else {}
        return {**key, **{name: value for name, value in self.headers.items() if is_reference(value)}}

    @property
    def secret_variables(self) -> set[str]:
        """Return the environment variables that hold its secrets."""
        return {found for reference in self.references.values() if (found := variable(reference))}


class Profiles(dict[str, Profile]):
    """Profiles by name. `default` is the default profile, or None if there are several and none is configured as default."""

    def __init__(self, profiles: Mapping[str, Profile], default: str | None = None, problems: tuple[str, ...] = ()) -> None:
        super().__init__(profiles)
        self.problems = problems
        """Problems of the environment variables. A profile with problems is omitted."""
        only = next(iter(self)) if len(self) == 1 else None
        self.default = default or next((name for name in ("default", ENVIRONMENT) if name in self), only)

    def find(self, name: str | None = None) -> Profile:
        """Return the profile of that name, or the default one. Raises `InvalidRequest`, which lists the available profiles."""
        wanted = name or self.default
        if wanted is not None and wanted in self:
            return self[wanted]
        there = f"available: {', '.join(self)}" if self else "no profile is configured: set OPENAI_API_KEY, or OpenRuntimeApp.profiles"
        problem = f"unknown profile {wanted!r}; {there}" if wanted else f"is required; {there}"
        raise InvalidRequest.of("parameters.profile", problem)

    def info(self) -> list[ProfileInfo]:
        """Return their public data."""
        return [ProfileInfo(name=each.name, model=each.model, default=each.name == self.default) for each in self.values()]

    @property
    def secret_variables(self) -> set[str]:
        """Return the environment variables that hold secrets, to hide them from workers."""
        return set().union(*(each.secret_variables for each in self.values()))


def profiles_from(configured: Mapping[str, Mapping[str, Any]], environ: Mapping[str, str], default: str = "") -> Profiles:
    """Return the configured profiles and the environment's profile. Raises `InvalidRequest`, which names each invalid field.

    Problems of environment variables, which may be intended for other programs, are reported in `problems` instead.
    """
    found, problems = None, []
    try:
        found = from_environment(environ)
    except InvalidRequest as problem:
        problems.append(f"Skipped the AI provider of the environment: {problem}")
        log.warning("%s", problems[-1])
    profiles = {found.name: found} if found is not None else {}
    profiles |= {name: _profile(name, fields) for name, fields in configured.items()}
    if default and default != LOCAL and default not in profiles:
        there = ", ".join(profiles) or "none"
        raise InvalidRequest.of("default_profile", f"unknown profile {default!r}; available: {there}")
    return Profiles(profiles, default or None, tuple(problems))


def _profile(name: str, fields: Mapping[str, Any], prefix: str = "profiles.") -> Profile:
    if not isinstance(fields, Mapping):
        raise InvalidRequest.of(f"{prefix}{name}", "must be a dictionary of fields")
    if "name" in fields:
        raise InvalidRequest.of(f"{prefix}{name}.name", "must not be set: the dictionary key is the name")
    try:
        return Profile.model_validate({"name": name, **fields})
    except ValidationError as problem:
        raise invalid(problem, f"{prefix}{name}") from None


def from_environment(environ: Mapping[str, str]) -> Profile | None:
    """Return the profile `env` if environment variables configure a provider. Raises `InvalidRequest`.

    `OPENRUNTIME_AI_BASE_URL`, `_API_KEY` and `_MODEL` take precedence over `OPENAI_*`. The two families are never mixed, so that the
    key of one provider is not sent to another.
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
