"""What a provider's chunks say, put together: text, figures, and whether it is a whole answer. It reads nothing itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from openruntime_jupyter.ai.keys import Redactor
from openruntime_jupyter.ai.providers.errors import one_line, told

LONGEST_ANSWER = 10_000_000
"""Characters past which a provider is taken to be out of its mind."""


class NoAnswer(Exception):
    """What came is no whole answer; `refused` tells that the provider did not want to give one."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class Reading:
    """Takes chunks as they come, and tells each piece of text to `tell`. It may be fed a whole completion, which is one large chunk."""

    def __init__(self, redactor: Redactor, tell: Callable[[str], None]) -> None:
        self._redactor = redactor
        self._tell = tell
        self._out = redactor.stream(self._told)
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
        """One more chunk: an object or a dict, which need not be what it should; raises `NoAnswer`."""
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
        elif usage is None:  # no chunk at all: told if nothing better comes
            self._odd = self._odd or told(chunk) or told(member(chunk, "error")) or told(member(chunk, "message")) or "it has no choices"

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
            raise NoAnswer(f"wrote more than {LONGEST_ANSWER:,} characters: give max_tokens")
        self._out.add(whole(text))

    def _told(self, text: str) -> None:
        self._pieces.append(text)
        self._tell(text)

    def answer(self, provider: str) -> dict[str, Any]:
        """The fields of an `Answer`, once the chunks have ended; raises `NoAnswer` where they are none."""
        self._out.end()
        reason = self.finish_reason
        if reason is None:
            raise NoAnswer(self._cut())
        if reason == "content_filter":
            raise NoAnswer(f"held the answer back by its content filter{self._so_far()}: ask otherwise", refused=True)
        if reason == "error":
            raise NoAnswer(f"ended the answer by an error of its own{self._so_far()}: try again")
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
            "prompt_tokens_per_second": None,  # how long it only read the prompt is not told
            "time_to_first_token_s": None if self._first_text is None else self._first_text - self._began,
        }

    def _rate(self, tokens: int | None) -> float | None:
        """Of what came after the first piece, which is one of as many as there were: null where all came at once."""
        if tokens is None or self._first_sign is None or self._signs < 2:
            return None
        seconds = self._last_sign - self._first_sign
        return tokens * (1 - 1 / self._signs) / seconds if seconds > 0 else None

    def _why_empty(self, reason: str) -> None:
        if self._refusal:
            raise NoAnswer(f"refused to answer: {one_line(self._refusal)}", refused=True)
        if self._tools:
            raise NoAnswer("wants to call tools, and nothing here runs any: ask for a model or server that was given none")
        if self._reasoned and reason == "length":
            raise NoAnswer("spent all its tokens on reasoning and wrote no answer: raise max_tokens")
        if self._reasoned:
            raise NoAnswer("reasoned and wrote no answer: ask again, or ask for less reasoning")

    def _cut(self) -> str:
        if self._odd and not self._length:
            return f"sent something that is no completion ({self._odd}): check that base_url leads to an OpenAI-compatible server"
        if not self._signs:
            return "ended without an answer: check that base_url leads to an OpenAI-compatible server, and look into its log"
        return f"ended in the middle of the answer{self._so_far()}: try again, and look into the provider's own log if it stays so"

    def _so_far(self) -> str:
        return f", after {self._length:,} characters" if self._length else ""


def member(thing: Any, name: str) -> Any:
    """A member of an object or a dict; None where there is none."""
    return thing.get(name) if isinstance(thing, dict) else getattr(thing, name, None)


def content(said: Any) -> str:
    """The text of a message's content, which some give as a list of parts."""
    if isinstance(said, str):
        return said
    if isinstance(said, (list, tuple)):
        parts = (member(part, "text") for part in said if member(part, "type") in (None, "text"))
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def whole(text: str) -> str:
    """`text` where halves of characters, which no file and no socket takes, are made whole or marked."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def count(figure: Any) -> int | None:
    """A number of tokens, where it is one."""
    return figure if isinstance(figure, int) and not isinstance(figure, bool) and figure >= 0 else None
