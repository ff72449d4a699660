"""Assembly of a provider's chunks into a response: text, usage data and completeness. Does no I/O."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from openruntime_jupyter.ai.keys import RedactedStream, Redactor
from openruntime_jupyter.ai.providers.errors import error_text, one_line
from openruntime_jupyter.local_models.characters import Trimmed, WholeCharacters, joined
from openruntime_jupyter.local_models.reasoning import ReasoningSplitter, split_unopened
from openruntime_jupyter.local_models.response_text import ResponseReceiver
from openruntime_jupyter.local_models.tool_calls import ToolCalls
from openruntime_jupyter.schemas.ai import TokenLogprob
from openruntime_jupyter.schemas.values import ToolCallPiece

PROGRESS_SECONDS = 0.25
"""Minimum interval between progress reports."""
LONGEST_ANSWER = 10_000_000
"""Maximum characters of a response. Longer responses are treated as malfunctions."""


class IncompleteResponse(Exception):
    """Incomplete or missing response. `refused` is true if the provider declined to respond."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class _CleanStream:
    """Text in pieces that is passed to `emit` with whole characters and without secrets."""

    def __init__(self, redactor: Redactor, emit: Callable[[str], None]) -> None:
        self._characters = WholeCharacters()
        self._out = RedactedStream(redactor, emit)

    def add(self, text: str) -> None:
        """Add a piece of text."""
        self._out.add(self._characters.add(text))

    def end(self) -> None:
        """Pass on the rest."""
        self._out.add(self._characters.end(cut=False))
        self._out.end()


class ResponseParser:
    """Parser of chunks that passes each piece of the response to `receiver`. Also accepts a complete response as one large chunk.

    Reasoning is separate, whether the provider separates it or leaves it in the text between tags. A response with reasoning calls
    `on_progress` now and then, with the number of pieces so far and what the model writes.
    """

    def __init__(self, redactor: Redactor, receiver: ResponseReceiver, on_progress: Callable[[int, str], None]) -> None:
        self._redactor = redactor
        self._receiver = receiver
        self._on_progress = on_progress
        self._next_progress = 0.0
        self._out = RedactedStream(redactor, self._emit)
        self._characters = WholeCharacters()
        self._splitter = ReasoningSplitter(self._respond, self._reason)
        self._began = time.perf_counter()
        self._first_sign: float | None = None
        self._first_text: float | None = None
        self._last_sign = 0.0
        self._signs = 0
        self._pieces: list[str] = []
        self._length = 0
        self._reasoning: list[str] = []
        self._reasoned = False
        self._trimmed = Trimmed()
        self._reasoning_out = _CleanStream(redactor, self._emit_reasoning)
        self._tool_calls = ToolCalls(self._call)
        self._arguments_out: list[_CleanStream] = []
        self._logprobs: list[Any] = []
        self._refusal = ""
        self._odd = ""
        self._model: str | None = None
        self._usage: Any = None
        self.finish_reason: str | None = None

    def take(self, chunk: Any) -> None:
        """Process the next chunk, an object or a dict, which may be malformed. Raises `IncompleteResponse`."""
        choices = member(chunk, "choices")
        usage = member(chunk, "usage")
        if usage is not None:
            self._usage = usage
        model = member(chunk, "model")
        if isinstance(model, str) and model:
            self._model = model
        if isinstance(choices, (list, tuple)):
            for choice in choices:
                if not member(choice, "index"):
                    self._choice(choice)
        elif usage is None:  # not a chunk: reported unless valid chunks follow
            self._odd = (
                self._odd or error_text(chunk) or error_text(member(chunk, "error")) or error_text(member(chunk, "message")) or "no choices"
            )

    def _choice(self, choice: Any) -> None:
        delta = member(choice, "delta") or member(choice, "message")
        text = content(member(delta, "content")) or content(member(choice, "text"))
        reasoning = content(member(delta, "reasoning_content")) or content(member(delta, "reasoning")) or thinking(member(delta, "content"))
        function = member(delta, "function_call")
        called = self._tool_calls.add(member(delta, "tool_calls") or ([{"function": function}] if function else ()))
        if text or reasoning or called:
            self._sign()
            self._limit(len(text) + len(reasoning) + called)
        self._reason(reasoning)
        logprobs = member(member(choice, "logprobs"), "content")
        if isinstance(logprobs, (list, tuple)):
            self._logprobs += logprobs
        refusal = member(delta, "refusal")
        if isinstance(refusal, str):
            self._refusal = (self._refusal + refusal)[:10_000]
        if text:
            self._splitter.add(self._characters.add(text))
        reason = member(choice, "finish_reason")
        if isinstance(reason, str) and reason:
            self.finish_reason = reason

    def _sign(self) -> None:
        self._last_sign = time.perf_counter()
        self._signs += 1
        if self._first_sign is None:
            self._first_sign = self._last_sign

    def _limit(self, characters: int) -> None:
        self._length += characters
        if self._length > LONGEST_ANSWER:
            raise IncompleteResponse(f"wrote more than {LONGEST_ANSWER:,} characters: give max_tokens")

    def _reason(self, text: str) -> None:
        if not text:
            return
        self._reasoned = True
        self._reasoning_out.add(text)
        if self._first_text is None and self._last_sign >= self._next_progress:
            self._next_progress = self._last_sign + PROGRESS_SECONDS
            self._on_progress(self._signs, "reasoning")

    def _respond(self, text: str) -> None:
        if text and self._first_text is None:
            self._first_text = time.perf_counter()
            if self._reasoned:
                self._on_progress(self._signs, "responding")
        self._out.add(text)

    def _emit(self, text: str) -> None:
        self._pieces.append(text)
        self._receiver.token(text)

    def _emit_reasoning(self, text: str) -> None:
        if shown := self._trimmed.add(text):
            self._reasoning.append(shown)
            self._receiver.reasoning(shown)

    def _call(self, piece: ToolCallPiece) -> None:
        if piece.name is not None:
            name, call_id = (self._redactor.clean(joined(text or "")) for text in (piece.name, piece.id))
            self._receiver.tool_call(ToolCallPiece(piece.index, id=call_id, name=name))
            index = piece.index
            self._arguments_out.append(_CleanStream(self._redactor, lambda text: self._receiver.tool_call(ToolCallPiece(index, text))))
        self._arguments_out[piece.index].add(piece.arguments)

    def answer(self, provider: str) -> dict[str, Any]:
        """Return the fields of an `Answer` after the last chunk. Raises `IncompleteResponse` for an incomplete response."""
        reason = self.finish_reason
        self._splitter.add(self._characters.end(cut=reason == "length"))
        self._splitter.end()
        self._out.end()
        for stream in (self._reasoning_out, *self._arguments_out):
            stream.end()
        reasoning, text = "".join(self._reasoning), "".join(self._pieces)
        if not reasoning:
            reasoning, text = split_unopened(text)
        if reason is None:
            raise IncompleteResponse(self._cut(text))
        if reason == "content_filter":
            raise IncompleteResponse(f"blocked the response by its content filter{so_far(text)}: rephrase the prompt", refused=True)
        if reason == "error":
            raise IncompleteResponse(f"ended the response with an error{so_far(text)}: try again")
        calls = self._tool_calls.finished()
        if not text and not calls:
            self._why_empty(reason, bool(reasoning.strip()))
        prompt, completion = (count(member(self._usage, name)) for name in ("prompt_tokens", "completion_tokens"))
        total = count(member(self._usage, "total_tokens"))
        if total is None and prompt is not None and completion is not None:
            total = prompt + completion
        return {
            "text": text,
            "reasoning": reasoning or None,
            "tool_calls": [self._redacted(call) for call in calls] or None,
            "logprobs": [each for each in map(token_logprob, self._logprobs) if each is not None] or None,
            "model_used": None if self._model is None else self._redactor.clean(self._model[:500]),
            "provider": provider,
            "finish_reason": self._redactor.clean(reason[:100]),
            "prompt_tokens": prompt,
            "cached_tokens": self._cached(),
            "completion_tokens": completion,
            "tokens_used": total,
            "tokens_per_second": self._rate(completion),
            "prompt_tokens_per_second": None,  # providers do not report the prompt processing time
            "time_to_first_token_s": None if self._first_text is None else self._first_text - self._began,
        }

    def _cached(self) -> int | None:
        details = member(self._usage, "prompt_tokens_details")
        cached = count(member(details, "cached_tokens"))
        return cached if cached is not None else count(member(self._usage, "prompt_cache_hit_tokens"))

    def _redacted(self, call: dict[str, Any]) -> dict[str, Any]:
        texts = {name: self._redactor.clean(joined(text)) for name, text in call["function"].items()}
        return {**call, "id": self._redactor.clean(joined(call["id"])), "function": texts}

    def _rate(self, tokens: int | None) -> float | None:
        """Return the rate after the first piece, which counts as an average piece, or None if there was only one."""
        if tokens is None or self._first_sign is None or self._signs < 2:
            return None
        seconds = self._last_sign - self._first_sign
        return tokens * (1 - 1 / self._signs) / seconds if seconds > 0 else None

    def _why_empty(self, reason: str, reasoned: bool) -> None:
        if self._refusal:
            raise IncompleteResponse(f"declined to respond: {one_line(self._refusal)}", refused=True)
        if reasoned and reason == "length":
            raise IncompleteResponse("used all tokens for reasoning and wrote no text: raise max_tokens")
        if reasoned:
            raise IncompleteResponse("returned reasoning but no text: try again, or lower the reasoning effort")

    def _cut(self, text: str) -> str:
        if self._odd and not text:
            return f"sent an invalid completion ({self._odd}): check that base_url is that of an OpenAI-compatible server (often with /v1)"
        if not self._signs:
            return "sent no response: check that base_url points to an OpenAI-compatible server, and check its log"
        return f"ended the response early{so_far(text)}: try again, and check the provider's log if it happens again"


def member(thing: Any, name: str) -> Any:
    """Return a member of an object or a dict, or None."""
    return thing.get(name) if isinstance(thing, dict) else getattr(thing, name, None)


def content(value: Any) -> str:
    """Return the text of a message's content, which may be a list of parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        parts = (member(part, "text") for part in value if member(part, "type") in (None, "text"))
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def thinking(value: Any) -> str:
    """Return the reasoning in a message's content that is a list of parts."""
    parts = value if isinstance(value, (list, tuple)) else ()
    return "".join(content(member(part, "thinking")) for part in parts if member(part, "type") == "thinking")


def token_logprob(value: Any) -> dict[str, Any] | None:
    """Return the fields of a `TokenLogprob`, or None for a malformed one."""
    try:
        return TokenLogprob.model_validate(value).model_dump()
    except ValidationError:
        return None


def so_far(text: str) -> str:
    """Return the length of an incomplete response for an error message."""
    return f", after {len(text):,} characters" if text else ""


def count(figure: Any) -> int | None:
    """Return a valid number of tokens, or None."""
    return figure if isinstance(figure, int) and not isinstance(figure, bool) and figure >= 0 else None
