"""Prompts to remote providers, run by the inline engine for the operation `chat`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import traceback
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from openruntime_jupyter.ai.keys import KeyNotFound, Redactor, look_up
from openruntime_jupyter.ai.profiles import KEY, Profile, Profiles
from openruntime_jupyter.ai.providers.adaptation import REASONING, adapted, missing_adaptation
from openruntime_jupyter.ai.providers.checks import check
from openruntime_jupyter.ai.providers.errors import ErrorTranslator, error_text, one_line
from openruntime_jupyter.ai.providers.responses import IncompleteResponse, ResponseParser
from openruntime_jupyter.errors import InvalidRequest, KeyMissing, OpenRuntimeError, ProviderBroken, ProviderRefused
from openruntime_jupyter.local_models.response_text import ResponseReceiver
from openruntime_jupyter.operations import chat
from openruntime_jupyter.schemas.ai import Message

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream

log = logging.getLogger(__name__)

TAIL_SECONDS = 5.0
"""Seconds to wait for the usage data after the end of the text."""
LARGEST_BODY = 32_000_000
"""Maximum bytes of a response that is not streamed."""
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
    """Client, with the adaptations that each model requires."""

    openai: AsyncOpenAI
    adaptations: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


class TokenReceiver(ResponseReceiver, Protocol):
    """Receiver of a response and its progress, such as the inline engine's context."""

    def progress(self, n: float, total: float | None = None, message: str | None = None) -> None:
        """Receive the progress."""


class RemoteProvider:
    """Client of the profiles' providers. All methods are called on the runtime's loop."""

    def __init__(self, profiles: Profiles, environ: Mapping[str, str] = os.environ) -> None:
        self.profiles = profiles
        self._environ = environ
        self._clients: dict[str, asyncio.Future[Client]] = {}
        """Clients by profile, each created at the first prompt."""
        self._closed = False

    async def close(self) -> None:
        """Close all connections. Later requests fail. Called after the runtime has stopped."""
        self._closed = True
        clients, self._clients = list(self._clients.values()), {}
        for client in await asyncio.gather(*clients, return_exceptions=True):
            if isinstance(client, Client):
                await client.openai.close()

    async def run(self, parameters: dict[str, Any], context: TokenReceiver) -> dict[str, Any]:
        """Return the fields of an `Answer`. Raises `ProviderError` and `InvalidRequest`. Cancelling it closes the connection."""
        request = chat.operation.validate(parameters)
        assert isinstance(request, chat.Params)
        profile = self.profiles.find(request.profile)
        body = _body(request, profile)
        secrets = await self._secrets(profile)
        translator = ErrorTranslator(profile, secrets.redactor)
        try:
            return await self._ask(profile, secrets, body, context)
        except IncompleteResponse as problem:
            raise translator.error(ProviderRefused if problem.refused else ProviderBroken, str(problem)) from None
        except OpenRuntimeError:
            raise
        except Exception as problem:
            # `from None`, here as above: exceptions of the libraries may contain keys, and logs include chained causes.
            known = translator.translate(problem)
            if known is None:
                log.error("A prompt failed:\n%s", secrets.redactor.clean(traceback.format_exc()))  # noqa: TRY400 - it would add the unredacted
                known = translator.error(
                    ProviderBroken, f"could not be called ({type(problem).__name__}: {one_line(str(problem))}): see the log"
                )
            raise known from None

    async def _secrets(self, profile: Profile) -> Secrets:
        """Return the current secrets of the profile, so that changed keys take effect immediately."""
        try:
            if any(reference.startswith("keyring:") for reference in profile.references.values()):
                return await asyncio.to_thread(self._look_up, profile)
            return self._look_up(profile)
        except KeyNotFound as problem:
            raise KeyMissing(f"The profile {profile.name!r} ({profile.host}) can't be used: {problem}") from None

    def _look_up(self, profile: Profile) -> Secrets:
        headers = {header: look_up(reference, self._environ) for header, reference in profile.references.items()}
        redactor = Redactor(headers.values())
        if KEY in headers:
            headers["Authorization"] = f"Bearer {headers.pop(KEY)}"
        return Secrets(headers, redactor)

    async def _ask(self, profile: Profile, secrets: Secrets, body: dict[str, Any], context: TokenReceiver) -> dict[str, Any]:
        client = await self._client(profile)
        headers = self._headers(profile, secrets)
        parser = ResponseParser(secrets.redactor, context, lambda pieces, doing: context.progress(pieces, None, doing))
        async with await _opened(client, body, headers) as stream:
            kind = stream.response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == "application/json":
                parser.take(await _whole(stream))
            elif kind == "text/html":
                page = one_line((await _text(stream))[:20_000])
                raise IncompleteResponse(f"responded with {page or 'a web page'}: check the end of base_url (often /v1)")
            else:
                await _read(stream, parser)
        answer = parser.answer(profile.name)
        if "response_format" in body:
            await asyncio.to_thread(check, body, answer)
        else:
            check(body, answer)
        return answer

    async def _client(self, profile: Profile) -> Client:
        """Return the profile's client. The first call imports `openai` (0.8 s) in a thread, without blocking the loop."""
        if self._closed:
            raise RuntimeError("The provider is closed")
        client = self._clients.get(profile.name)
        if client is None or (client.done() and client.exception() is not None):
            client = self._clients[profile.name] = asyncio.ensure_future(asyncio.to_thread(_make_client, profile))
        return await asyncio.shield(client)  # other callers may await the same client

    def _headers(self, profile: Profile, secrets: Secrets) -> dict[str, Any]:
        """Return the headers of a request, without values that the package would take from the environment for all profiles."""
        from openai import Omit

        ambient = [line.partition(":")[0].strip() for line in self._environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()]
        named = {"OpenAI-Organization": profile.organization, "OpenAI-Project": profile.project}
        ours = {**{name: value for name, value in named.items() if value}, **profile.headers, **secrets.headers}
        taken = {name.lower() for name in ours}
        return {**{name: Omit() for name in (*filter(None, ambient), "Authorization", *named) if name.lower() not in taken}, **ours}


def _make_client(profile: Profile) -> Client:
    import openai

    timeout = openai.Timeout(profile.timeout, connect=min(profile.timeout, CONNECT_SECONDS))
    # A redirect would send the prompt and headers with keys to another host.
    http = openai.DefaultAsyncHttpx2Client(trust_env=not profile.loopback, timeout=timeout, follow_redirects=False)
    client = openai.AsyncOpenAI(
        api_key=PLACEHOLDER,
        base_url=profile.base_url.partition("?")[0],
        default_query=profile.query,
        timeout=timeout,
        max_retries=profile.max_retries,
        http_client=http,
    )
    return Client(client)


def _body(request: chat.Params, profile: Profile) -> dict[str, Any]:
    """Return the request body without its streaming options. Raises `InvalidRequest` without a model."""
    model = request.model or profile.model
    if model is None:
        raise InvalidRequest.of(
            "parameters.model", f"is required: the profile {profile.name!r} has no default model (OPENAI_MODEL sets it for the profile env)"
        )
    given = {**profile.parameters, **request.parameters}
    return {
        "model": model,
        "messages": [_message(message) for message in request.messages],
        **{name: value for name, value in given.items() if value is not None},
    }


def _message(message: Message) -> dict[str, Any]:
    fields = message.model_dump()
    return {REASONING if name == "reasoning" else name: value for name, value in fields.items()}


async def _opened(client: Client, body: dict[str, Any], headers: dict[str, Any]) -> AsyncStream[object]:
    """Return the response stream. The request has the adaptations with which earlier prompts to the model succeeded.

    Sends the same request as `chat.completions.create`, which additionally processes each message and creates an object per chunk.
    That took a quarter of the time, and providers deviate from its types, so `ResponseParser` checks everything itself.
    """
    from openai import APIStatusError, AsyncStream

    known = client.adaptations[body["model"]]
    tried = set(known)
    while True:
        sent = adapted(body, tried)
        try:
            stream = await client.openai.post(
                "/chat/completions",
                cast_to=object,
                body=sent,
                options={"headers": headers},
                stream=True,
                stream_cls=AsyncStream[object],
            )
        except APIStatusError as problem:
            # Servers whose chat template fails respond with 400, 404, 422 or 500.
            if problem.status_code in (401, 403, 429):
                raise
            missing = missing_adaptation(sent, f"{problem.param} {error_text(problem.body)} {problem.message}")
            if missing is None or missing in tried:
                raise
            tried.add(missing)
        else:
            known |= tried
            return stream


async def _read(stream: AsyncStream[object], parser: ResponseParser) -> None:
    while True:
        try:
            if parser.finish_reason is None:
                chunk = await anext(stream)
            else:
                chunk = await asyncio.wait_for(anext(stream), TAIL_SECONDS)
        except StopAsyncIteration:
            return
        except Exception as problem:
            if parser.finish_reason is None:
                raise
            log.info("The usage data of a response is missing: %s", type(problem).__name__)
            return  # the text is complete, only the usage data is missing
        parser.take(chunk)


async def _text(stream: AsyncStream[object]) -> str:
    taken = bytearray()
    async for part in stream.response.aiter_bytes():
        taken += part
        if len(taken) > LARGEST_BODY:
            raise IncompleteResponse(f"sent more than {LARGEST_BODY:,} bytes at once: check base_url in the profile")
    return taken.decode("utf-8", "replace")


async def _whole(stream: AsyncStream[object]) -> Any:
    """Return the response of a provider that ignores the streaming option."""
    text = await _text(stream)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise IncompleteResponse(
            f"sent invalid JSON ({one_line(text) or 'nothing'}): check that base_url points to an OpenAI-compatible server"
        ) from None
