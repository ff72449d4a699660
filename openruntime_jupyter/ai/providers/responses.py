"""Assembly of a provider's chunks into a response: text, usage data and completeness. Does no I/O."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from openruntime_jupyter.ai.keys import RedactedStream, Redactor
from openruntime_jupyter.ai.providers.errors import error_text, one_line

LONGEST_ANSWER = 10_000_000
"""Maximum characters of a response. Longer responses are treated as malfunctions."""


class IncompleteResponse(Exception):
    """Incomplete or missing response. `refused` is true if the provider declined to respond."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class ResponseParser:
    """Parser of chunks that passes each piece of text to `on_text`. Also accepts a complete response as one large chunk."""

    def __init__(self, redactor: Redactor, on_text: Callable[[str], None]) -> None:
        self._redactor = redactor
        self._on_text = on_text
        self._out = RedactedStream(redactor, self._emit)
        self._began = time.perf_counter()
        self._first_sign: float | None = None
        self._first_text: float | None = None
        self._last_sign = 0.0
        self._signs = 0
        self._pieces: list[str] = []
        self._length = 0
        self._reasoned = False
        self._tools = False
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
        reasoning = member(delta, "reasoning_content") or member(delta, "reasoning")
        if text or reasoning:
            self._sign()
        self._reasoned |= bool(reasoning)
        self._tools |= bool(member(delta, "tool_calls") or member(delta, "function_call"))
        refusal = member(delta, "refusal")
        if isinstance(refusal, str):
            self._refusal = (self._refusal + refusal)[:10_000]
        if text:
            self._text(text)
        reason = member(choice, "finish_reason")
        if isinstance(reason, str) and reason:
            self.finish_reason = reason

    def _sign(self) -> None:
        self._last_sign = time.perf_counter()
        self._signs += 1
        if self._first_sign is None:
            self._first_sign = self._last_sign

    def _text(self, text: str) -> None:
        if self._first_text is None:
            self._first_text = time.perf_counter()
        self._length += len(text)
        if self._length > LONGEST_ANSWER:
            raise IncompleteResponse(f"wrote more than {LONGEST_ANSWER:,} characters: give max_tokens")
        self._out.add(whole(text))

    def _emit(self, text: str) -> None:
        self._pieces.append(text)
        self._on_text(text)

    def answer(self, provider: str) -> dict[str, Any]:
        """Return the fields of an `Answer` after the last chunk. Raises `IncompleteResponse` for an incomplete response."""
        self._out.end()
        reason = self.finish_reason
        if reason is None:
            raise IncompleteResponse(self._cut())
        if reason == "content_filter":
            raise IncompleteResponse(f"blocked the response by its content filter{self._so_far()}: rephrase the prompt", refused=True)
        if reason == "error":
            raise IncompleteResponse(f"ended the response with an error{self._so_far()}: try again")
        if not self._length:
            self._why_empty(reason)
        prompt, completion = (count(member(self._usage, name)) for name in ("prompt_tokens", "completion_tokens"))
        total = count(member(self._usage, "total_tokens"))
        if total is None and prompt is not None and completion is not None:
            total = prompt + completion
        return {
            "text": "".join(self._pieces),
            "model_used": None if self._model is None else self._redactor.clean(self._model[:500]),
            "provider": provider,
            "finish_reason": self._redactor.clean(reason[:100]),
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "tokens_used": total,
            "tokens_per_second": self._rate(completion),
            "prompt_tokens_per_second": None,  # providers do not report the prompt processing time
            "time_to_first_token_s": None if self._first_text is None else self._first_text - self._began,
        }

    def _rate(self, tokens: int | None) -> float | None:
        """Return the rate after the first piece, which counts as an average piece, or None if there was only one."""
        if tokens is None or self._first_sign is None or self._signs < 2:
            return None
        seconds = self._last_sign - self._first_sign
        return tokens * (1 - 1 / self._signs) / seconds if seconds > 0 else None

    def _why_empty(self, reason: str) -> None:
        if self._refusal:
            raise IncompleteResponse(f"declined to respond: {one_line(self._refusal)}", refused=True)
        if self._tools:
            raise IncompleteResponse("requested tool calls, which are not supported: use a model or server without tools")
        if self._reasoned and reason == "length":
            raise IncompleteResponse("used all tokens for reasoning and wrote no text: raise max_tokens")
        if self._reasoned:
            raise IncompleteResponse("returned reasoning but no text: try again, or lower the reasoning effort")

    def _cut(self) -> str:
        if self._odd and not self._length:
            return f"sent an invalid completion ({self._odd}): check that base_url points to an OpenAI-compatible server"
        if not self._signs:
            return "sent no response: check that base_url points to an OpenAI-compatible server, and check its log"
        return f"ended the response early{self._so_far()}: try again, and check the provider's log if it happens again"

    def _so_far(self) -> str:
        return f", after {self._length:,} characters" if self._length else ""


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


def whole(text: str) -> str:
    """Return `text` with surrogate pairs joined and lone surrogates replaced, because they can't be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def count(figure: Any) -> int | None:
    """Return a valid number of tokens, or None."""
    return figure if isinstance(figure, int) and not isinstance(figure, bool) and figure >= 0 else None
