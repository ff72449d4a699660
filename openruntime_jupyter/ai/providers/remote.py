"""Prompts to remote providers: what the inline engine runs for the operation `chat`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from openruntime_jupyter.ai.keys import KeyNotFound
from openruntime_jupyter.ai.profiles import Profile, Profiles
from openruntime_jupyter.ai.providers.clients import Client, Clients, Secrets
from openruntime_jupyter.ai.providers.errors import Edge, one_line, told
from openruntime_jupyter.ai.providers.responses import NoAnswer, Reading
from openruntime_jupyter.errors import InvalidRequest, KeyMissing, OpenRuntimeError, ProviderBroken, ProviderRefused
from openruntime_jupyter.operations import chat

if TYPE_CHECKING:
    from openai import AsyncStream

log = logging.getLogger(__name__)

TAIL_SECONDS = 5.0
"""How long the figures may come after the end of the text."""
LARGEST_BODY = 32_000_000
"""Bytes of an answer that is not streamed."""


class Tells(Protocol):
    """What a prompt tells while it is answered; the inline engine's context is one."""

    def token(self, text: str) -> None:
        """A piece of the text."""


class RemoteProvider:
    """Asks the provider of a profile. Every method is called on the runtime's loop."""

    def __init__(self, profiles: Profiles, environ: Mapping[str, str] = os.environ) -> None:
        self._profiles = profiles
        self._clients = Clients(environ)

    async def close(self) -> None:
        """Close what is open; called once the runtime has stopped."""
        await self._clients.close()

    async def run(self, parameters: dict[str, Any], context: Tells) -> dict[str, Any]:
        """The fields of an `Answer`; raises `ProviderError` and its kinds, and `InvalidRequest`. A cancel closes the connection."""
        request = chat.operation.validate(parameters)
        assert isinstance(request, chat.Params)
        profile = self._profiles.find(request.profile)
        body = _body(request, profile)
        secrets = await self._secrets(profile)
        edge = Edge(profile, secrets.redactor)
        try:
            return await self._ask(profile, secrets, body, context)
        except NoAnswer as problem:
            raise edge.error(ProviderRefused if problem.refused else ProviderBroken, str(problem)) from None
        except OpenRuntimeError:
            raise
        except Exception as problem:
            # `from None`, here as above: what the libraries raise may have keys in it, and chains of causes are logged.
            known = edge.translate(problem)
            if known is None:
                log.error("A prompt failed:\n%s", secrets.redactor.clean(traceback.format_exc()))  # noqa: TRY400 - it would add the unredacted
                known = edge.error(ProviderBroken, f"could not be asked ({type(problem).__name__}: {one_line(str(problem))}): see the log")
            raise known from None

    async def _secrets(self, profile: Profile) -> Secrets:
        try:
            return await self._clients.secrets(profile)
        except KeyNotFound as problem:
            raise KeyMissing(f"The profile {profile.name!r} ({profile.host}) can't be used: {problem}.") from None

    async def _ask(self, profile: Profile, secrets: Secrets, body: dict[str, Any], context: Tells) -> dict[str, Any]:
        client = await self._clients.get(profile)
        headers = self._clients.headers(profile, secrets)
        reading = Reading(secrets.redactor, context.token)
        async with await _opened(client, body, headers) as stream:
            kind = stream.response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == "application/json":
                reading.take(await _whole(stream))
            elif kind == "text/html":
                page = one_line((await _text(stream))[:20_000])
                raise NoAnswer(f"answered with {page or 'a web page'}: check that base_url ends as it should (often in /v1)")
            else:
                await _read(stream, reading)
        return reading.answer(profile.name)


def _body(request: chat.Params, profile: Profile) -> dict[str, Any]:
    """What is sent, but for what makes it a stream; raises `InvalidRequest` where nothing names a model."""
    model = request.model or profile.model
    if model is None:
        raise InvalidRequest.of(
            "parameters.model", f"name one: the profile {profile.name!r} has none (for the profile env, OPENAI_MODEL sets it)"
        )
    given = {**profile.parameters, **request.parameters}
    return {
        "model": model,
        "messages": [message.model_dump() for message in request.messages],
        **{name: value for name, value in given.items() if value is not None},
    }


async def _opened(client: Client, body: dict[str, Any], headers: dict[str, Any]) -> AsyncStream[object]:
    """The stream of the answer. What the provider was found not to take is left out, or told in its other name.

    This is what `chat.completions.create` sends, but for its going through each message and making objects of each chunk, which took a
    quarter of the time: providers differ from what those objects promise, so that `Reading` trusts nothing anyhow.
    """
    from openai import AsyncStream, BadRequestError, UnprocessableEntityError

    model = body["model"]
    while True:
        sent = _fitted(body, {name for refusing, name in client.refuses if refusing == model})
        try:
            return await client.openai.post(
                "/chat/completions",
                cast_to=object,
                body={**sent, "stream": True},
                options={"headers": headers},
                stream=True,
                stream_cls=AsyncStream[object],
            )
        except (BadRequestError, UnprocessableEntityError) as problem:
            unwanted = _unwanted(f"{problem.param} {told(problem.body)} {problem.message}", sent)
            if unwanted is None or (model, unwanted) in client.refuses:
                raise
            client.refuses.add((model, unwanted))


def _fitted(body: dict[str, Any], refused: set[str]) -> dict[str, Any]:
    fitted = dict(body)
    if "stream_options" not in refused:
        fitted["stream_options"] = {"include_usage": True}
    if "max_tokens" in refused and "max_tokens" in fitted:
        fitted["max_completion_tokens"] = fitted.pop("max_tokens")
    return fitted


def _unwanted(said: str, sent: dict[str, Any]) -> str | None:
    """Which of what can be told otherwise a refusal is about."""
    if "stream_options" in sent and ("stream_options" in said or "include_usage" in said):
        return "stream_options"
    if "max_tokens" in sent and "max_completion_tokens" not in sent and "max_completion_tokens" in said:
        return "max_tokens"
    return None


async def _read(stream: AsyncStream[object], reading: Reading) -> None:
    while True:
        try:
            if reading.finish_reason is None:
                chunk = await anext(stream)
            else:
                chunk = await asyncio.wait_for(anext(stream), TAIL_SECONDS)
        except StopAsyncIteration:
            return
        except Exception as problem:
            if reading.finish_reason is None:
                raise
            log.info("The figures of an answer did not come: %s", type(problem).__name__)
            return  # the text is whole, and that is what was asked for
        reading.take(chunk)


async def _text(stream: AsyncStream[object]) -> str:
    taken = bytearray()
    async for part in stream.response.aiter_bytes():
        taken += part
        if len(taken) > LARGEST_BODY:
            raise NoAnswer(f"sent more than {LARGEST_BODY:,} bytes at once: check base_url in the profile")
    return taken.decode("utf-8", "replace")


async def _whole(stream: AsyncStream[object]) -> Any:
    """The answer of a provider that does not stream though it was asked to."""
    text = await _text(stream)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise NoAnswer(
            f"sent what is no JSON ({one_line(text) or 'nothing'}): check that base_url leads to an OpenAI-compatible server"
        ) from None
