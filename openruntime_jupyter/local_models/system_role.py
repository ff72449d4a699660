"""Messages for models whose chat template has no system role, such as Gemma, or requires users and assistants in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

INSTRUCTING = ("system", "developer")
"""Roles of instructions."""


def without_system_role(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with instructions as the user's text, and adjacent texts of one role joined to one turn.

    Parameters
    ----------
    messages
        Messages in OpenAI's form. Tool calls and their results are unchanged.
    """
    turns: list[dict[str, Any]] = []
    for message in messages:
        turn = {**message, "role": "user"} if message["role"] in INSTRUCTING else dict(message)
        if turns and _is_text(turn) and _is_text(turns[-1]) and turns[-1]["role"] == turn["role"]:
            turns[-1]["content"] = "\n\n".join(text for text in (turns[-1]["content"], turn["content"]) if text)
        else:
            turns.append(turn)
    return turns


def _is_text(message: Mapping[str, Any]) -> bool:
    return message["role"] in ("user", "assistant") and not message.get("tool_calls")
