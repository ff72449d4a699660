"""The openai package's clients: one for each profile, made at its first prompt, closed with the runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.ai.keys import Redactor, look_up
from openruntime_jupyter.ai.profiles import KEY, Profile

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PLACEHOLDER = "the-key-travels-with-each-request"
"""The package wants a key when a client is made, and would else take OPENAI_API_KEY, whoever the client is for."""
CONNECT_SECONDS = 10.0


@dataclass(slots=True)
class Secrets:
    """The headers of a profile that hold secrets, and what takes those out of texts."""

    headers: dict[str, str]
    redactor: Redactor


@dataclass(slots=True)
class Client:
    """A client, and what its provider was found not to take: `(model, parameter)`."""

    openai: AsyncOpenAI
    refuses: set[tuple[str, str]] = field(default_factory=set)


class Clients:
    """Makes clients, and closes them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._made: dict[str, asyncio.Future[Client]] = {}
        self._closed = False

    async def get(self, profile: Profile) -> Client:
        """The profile's client. The first takes the import of `openai` (0.8 s), in a thread: the loop goes on."""
        if self._closed:
            raise RuntimeError("the provider is closed")
        made = self._made.get(profile.name)
        if made is None or (made.done() and made.exception() is not None):
            made = asyncio.ensure_future(asyncio.to_thread(self._make, profile))
            self._made[profile.name] = made
        return await asyncio.shield(made)  # others may wait for the same one

    def _make(self, profile: Profile) -> Client:
        import openai

        timeout = openai.Timeout(profile.timeout, connect=min(profile.timeout, CONNECT_SECONDS))
        # A redirect would take the prompt, and headers with keys, to whomever the provider names.
        http = openai.DefaultAsyncHttpx2Client(trust_env=not profile.loopback, timeout=timeout, follow_redirects=False)
        client = openai.AsyncOpenAI(
            api_key=PLACEHOLDER, base_url=profile.base_url, timeout=timeout, max_retries=profile.max_retries, http_client=http
        )
        return Client(client)

    async def secrets(self, profile: Profile) -> Secrets:
        """What the profile's places hold now, so that a key that was changed is used at once; raises `KeyNotFound`."""
        places = profile.places
        if any(place.startswith("keyring:") for place in places.values()):
            return await asyncio.to_thread(self._look_up, places)
        return self._look_up(places)

    def _look_up(self, places: Mapping[str, str]) -> Secrets:
        found = {header: look_up(place, self._environ) for header, place in places.items()}
        key = {"Authorization": f"Bearer {found[KEY]}"} if KEY in found else {}
        return Secrets({**{name: value for name, value in found.items() if name != KEY}, **key}, Redactor(found.values()))

    def headers(self, profile: Profile, secrets: Secrets) -> dict[str, Any]:
        """The headers of a request. What the package would take from the environment for every profile alike is left out."""
        from openai import Omit

        ambient = [line.partition(":")[0].strip() for line in self._environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()]
        named = {"OpenAI-Organization": profile.organization, "OpenAI-Project": profile.project}
        left_out = {name: Omit() for name in (*filter(None, ambient), "Authorization", *named)}
        given = {name: value for name, value in named.items() if value}
        ours = {**given, **profile.headers, **secrets.headers}
        taken = {name.lower() for name in ours}
        return {**{name: value for name, value in left_out.items() if name.lower() not in taken}, **ours}

    async def close(self) -> None:
        """Close every connection; nothing can be asked afterwards."""
        self._closed = True
        made, self._made = list(self._made.values()), {}
        for client in await asyncio.gather(*made, return_exceptions=True):
            if isinstance(client, Client):
                await client.openai.close()
