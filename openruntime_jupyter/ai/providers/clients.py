"""Clients of the openai package: one per profile, created at its first prompt and closed with the runtime."""

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
"""Placeholder key. Without a key, the package would use OPENAI_API_KEY for every profile."""
CONNECT_SECONDS = 10.0


@dataclass(slots=True)
class Secrets:
    """Secret headers of a profile, with their redactor."""

    headers: dict[str, str]
    redactor: Redactor


@dataclass(slots=True)
class Client:
    """Client, with the parameters that its provider rejected as `(model, parameter)`."""

    openai: AsyncOpenAI
    refuses: set[tuple[str, str]] = field(default_factory=set)


class Clients:
    """Factory and owner of the clients."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._made: dict[str, asyncio.Future[Client]] = {}
        self._closed = False

    async def get(self, profile: Profile) -> Client:
        """Return the profile's client. The first call imports `openai` (0.8 s) in a thread, without blocking the loop."""
        if self._closed:
            raise RuntimeError("The provider is closed")
        made = self._made.get(profile.name)
        if made is None or (made.done() and made.exception() is not None):
            made = asyncio.ensure_future(asyncio.to_thread(self._make, profile))
            self._made[profile.name] = made
        return await asyncio.shield(made)  # other callers may await the same client

    def _make(self, profile: Profile) -> Client:
        import openai

        timeout = openai.Timeout(profile.timeout, connect=min(profile.timeout, CONNECT_SECONDS))
        # A redirect would send the prompt and headers with keys to another host.
        http = openai.DefaultAsyncHttpx2Client(trust_env=not profile.loopback, timeout=timeout, follow_redirects=False)
        client = openai.AsyncOpenAI(
            api_key=PLACEHOLDER, base_url=profile.base_url, timeout=timeout, max_retries=profile.max_retries, http_client=http
        )
        return Client(client)

    async def secrets(self, profile: Profile) -> Secrets:
        """Return the current secrets of the profile, so that changed keys take effect immediately. Raises `KeyNotFound`."""
        references = profile.references
        if any(reference.startswith("keyring:") for reference in references.values()):
            return await asyncio.to_thread(self._look_up, references)
        return self._look_up(references)

    def _look_up(self, references: Mapping[str, str]) -> Secrets:
        found = {header: look_up(reference, self._environ) for header, reference in references.items()}
        key = {"Authorization": f"Bearer {found[KEY]}"} if KEY in found else {}
        return Secrets({**{name: value for name, value in found.items() if name != KEY}, **key}, Redactor(found.values()))

    def headers(self, profile: Profile, secrets: Secrets) -> dict[str, Any]:
        """Return the headers of a request, without values that the package would take from the environment for all profiles."""
        from openai import Omit

        ambient = [line.partition(":")[0].strip() for line in self._environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()]
        named = {"OpenAI-Organization": profile.organization, "OpenAI-Project": profile.project}
        left_out = {name: Omit() for name in (*filter(None, ambient), "Authorization", *named)}
        given = {name: value for name, value in named.items() if value}
        ours = {**given, **profile.headers, **secrets.headers}
        taken = {name.lower() for name in ours}
        return {**{name: value for name, value in left_out.items() if name.lower() not in taken}, **ours}

    async def close(self) -> None:
        """Close all connections. Later requests fail."""
        self._closed = True
        made, self._made = list(self._made.values()), {}
        for client in await asyncio.gather(*made, return_exceptions=True):
            if isinstance(client, Client):
                await client.openai.close()
