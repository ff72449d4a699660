"""From a request to the messages that a model gets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from openruntime_jupyter.ai.workflows import Shared
from openruntime_jupyter.schemas.ai import Message, Turn

BYTES_PER_TOKEN = 3
"""Of UTF-8, at least, in most text: what counts is that a conversation is not cut too late."""
TOKENS_PER_MESSAGE = 8
"""What chat templates add."""
ANSWER_TOKENS = 512
"""Kept free for an answer where no `max_tokens` says how long it may be."""
UNKNOWN_CONTEXT = 16_384
"""Tokens that a model is taken to have room for where nobody says."""


def system_message(instructions: str | None, parameters: Shared, *parts: str) -> list[Message]:
    """The agent's instructions, or the caller's own in their place, and what else the model is told; nothing where that is empty."""
    first = parameters.system if parameters.system is not None else instructions
    text = "\n\n".join(part for part in (first, *parts) if part)
    return [Message(role="system", content=text)] if text else []


def user_message(prompt: str, parameters: Shared) -> Message:
    """The prompt, after the text that belongs to it."""
    return Message(role="user", content=prompt if parameters.context is None else f"{parameters.context}\n\n{prompt}")


def tokens_of(*texts: str) -> int:
    """About how many tokens messages of these texts have, rather more than less."""
    return sum(TOKENS_PER_MESSAGE + math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN) for text in texts)


def with_turns(
    system: Sequence[Message], turns: Sequence[Turn], user: Message, context_length: int | None, max_tokens: int | None
) -> tuple[list[Message], int]:
    """All messages, with as many of the newest turns as a model with a context of so many tokens has room for; how many are left out."""
    most = context_length or UNKNOWN_CONTEXT
    answer = max_tokens if max_tokens is not None else min(ANSWER_TOKENS, most // 4)
    room = most - answer - tokens_of(user.content, *(message.content for message in system))
    kept: list[Message] = []
    left_out = len(turns)
    for turn in reversed(turns):
        room -= tokens_of(turn.prompt, turn.answer)
        if room < 0:
            break
        kept[:0] = [Message(role="user", content=turn.prompt), Message(role="assistant", content=turn.answer)]
        left_out -= 1
    return [*system, *kept, user], left_out
