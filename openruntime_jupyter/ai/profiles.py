"""Named profiles of remote providers: URL, default model and reference to the key."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

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
    """Return the parent URL of /chat/completions without blanks around it. Keeps a query such as `?api-version=` of Azure."""
    text = text.strip()
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as problem:
        raise wrong(f"{problem}; use the parent URL of /chat/completions, such as {OPENAI}") from None
    if url.username or url.password:
        raise wrong(f"must not contain a user name or password: for api_key, {HOW}")
    if url.scheme not in ("http", "https") or not url.hostname or port == 0 or not (text.isascii() and text.isprintable()):
        raise wrong(f"use the parent URL of /chat/completions with http:// or https://, such as {OPENAI} or http://127.0.0.1:8080/v1")
    if url.fragment:
        raise wrong("must not have a fragment: remove the part from '#' on")
    secret = next((name for name, _ in parse_qsl(url.query, keep_blank_values=True) if SECRET_HEADER.search(name)), None)
    if secret is not None:
        raise wrong(f"must not contain a secret ({secret} in the query): send it as a header; in headers, {HOW}")
    path = url.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return url._replace(path=path).geturl()


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
    model: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)] | None = Field(
        None, description="Default model of prompts."
    )
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
    def query(self) -> dict[str, str]:
        """Return the parameters in the query of `base_url`, which each request gets."""
        return dict(parse_qsl(urlsplit(self.base_url).query, keep_blank_values=True))

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

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        default: str | None = None,
        invalid: Mapping[str, str] | None = None,
        skipped: tuple[str, ...] = (),
        other_secrets: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(profiles)
        self._other_secrets = other_secrets
        self.invalid = dict(invalid or {})
        """Errors of configured profiles by name. These profiles are omitted."""
        self.skipped = skipped
        """Problems of environment variables, which may be intended for other programs. Their profile is omitted."""
        names = {*self, *self.invalid}  # an invalid profile must not make another one the default
        only = next(iter(names)) if len(names) == 1 else None
        self.default = default or next((name for name in ("default", ENVIRONMENT) if name in names), only)

    def find(self, name: str | None = None) -> Profile:
        """Return the profile of that name, or the default one.

        Raises `InvalidRequest`, with the error of an invalid profile, else with the available profiles.
        """
        wanted = name or self.default
        if wanted is not None and wanted in self:
            return self[wanted]
        if wanted in self.invalid:
            raise InvalidRequest.of("parameters.profile", f"the profile {wanted!r} is invalid: {self.invalid[wanted]}")
        if not self:
            there = "no profile is configured: set OPENAI_API_KEY, or OpenRuntimeApp.profiles"
        else:
            there = f"available: {', '.join([LOCAL, *self])}. OpenRuntimeApp.profiles adds more"
        problem = f"unknown profile {wanted!r}" if wanted else "is required"
        raise InvalidRequest.of("parameters.profile", "; ".join([problem, there, *self.skipped]))

    @property
    def problems(self) -> list[str]:
        """Return the problems of the configuration, for `/health`."""
        problems = [f"{problem}. Prompts to this profile are rejected" for problem in self.invalid.values()]
        if self.default is not None and self.default not in {*self, *self.invalid, LOCAL}:
            problems.append(f"default_profile: unknown profile {self.default!r}; available: {', '.join(self) or 'none'}")
        return problems

    def info(self) -> list[ProfileInfo]:
        """Return their public data."""
        return [ProfileInfo(name=each.name, model=each.model, default=each.name == self.default) for each in self.values()]

    @property
    def secret_variables(self) -> frozenset[str]:
        """Return the environment variables that hold secrets, also those of omitted profiles, to hide them from workers."""
        return self._other_secrets.union(*(each.secret_variables for each in self.values()))


def profiles_from(configured: Mapping[str, Mapping[str, Any]], environ: Mapping[str, str], default: str = "") -> Profiles:
    """Return the configured profiles and the environment's profile. Invalid ones are omitted and logged, so that they disable no other."""
    found: dict[str, Profile] = {}
    invalid: dict[str, str] = {}
    skipped = []
    try:
        if (profile := from_environment(environ)) is not None:
            found[profile.name] = profile
    except InvalidRequest as problem:
        skipped.append(f"Skipped the AI provider of the environment: {problem}")
    for name, fields in configured.items():
        try:
            found[name] = profile_of(name, fields)
        except InvalidRequest as problem:
            found.pop(name, None)  # a configured profile replaces that of the environment even if it is invalid
            invalid[name] = str(problem)
    secrets = frozenset(each for name in invalid for each in _variables_in(configured[name]))
    profiles = Profiles(found, default or None, invalid, tuple(skipped), secrets)
    for text in (*profiles.problems, *skipped):
        log.warning("%s", text)
    return profiles


def _variables_in(value: Any) -> Iterator[str]:
    """Yield the environment variables of all references in the fields of an invalid profile, whatever their names."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _variables_in(each)
    elif isinstance(value, str) and (found := variable(value)) is not None:
        yield found


def profile_of(name: str, fields: Mapping[str, Any], prefix: str = "profiles.") -> Profile:
    """Return the profile of a configured name and its fields. Raises `InvalidRequest`, which names the invalid field."""
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
    return profile_of(ENVIRONMENT, fields, "the environment's profile ")
