"""Messages of a prompt: system message, conversation turns and user message."""

from __future__ import annotations

import math
from collections.abc import Sequence

from openruntime_jupyter.ai.workflows import Shared
from openruntime_jupyter.schemas.ai import Message, Turn

BYTES_PER_TOKEN = 3
"""Lower bound for UTF-8 in most text. A low value truncates conversations early enough."""
TOKENS_PER_MESSAGE = 8
"""Overhead of chat templates."""
ANSWER_TOKENS = 512
"""Tokens reserved for the response without `max_tokens`."""
UNKNOWN_CONTEXT = 16_384
"""Assumed context length in tokens if it is unknown."""


def system_message(instructions: str | None, parameters: Shared, *parts: str) -> list[Message]:
    """Return the system message: the caller's or the agent's instructions, and `parts`. Empty without any text."""
    first = parameters.system if parameters.system is not None else instructions
    text = "\n\n".join(part for part in (first, *parts) if part)
    return [Message(role="system", content=text)] if text else []


def user_message(prompt: str, parameters: Shared) -> Message:
    """Return the prompt, preceded by its context."""
    return Message(role="user", content=prompt if parameters.context is None else f"{parameters.context}\n\n{prompt}")


def tokens_of(*texts: str) -> int:
    """Return an upper estimate of the number of tokens of messages with these texts."""
    return sum(TOKENS_PER_MESSAGE + math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN) for text in texts)


def with_turns(
    system: Sequence[Message], turns: Sequence[Turn], user: Message, context_length: int | None, max_tokens: int | None
) -> tuple[list[Message], int]:
    """Return all messages with the newest turns that fit `context_length` tokens, and the number of omitted turns."""
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
