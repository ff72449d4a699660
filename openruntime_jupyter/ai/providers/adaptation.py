"""Adaptation of requests to providers and models that reject an option, a parameter's name or a role."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from openruntime_jupyter.local_models.system_role import without_system_role

Body = dict[str, Any]

REASONING = "reasoning_content"
"""Name of the reasoning in a message. Some models need it to continue after tool calls, and some providers reject it."""
UNSUPPORTED = (
    r"\W+(?:(?:is|are|was|were) )?(?:(?:not|n't) (?:\w+ )?(?:supported|enabled|allowed|available|valid)\b(?! (?:to|in)\b)|unsupported)"
)
NO_SYSTEM_ROLE = re.compile(
    r"roles must alternate"
    r"|only user\b[^.]*\broles (?:are|is) supported"
    r"|(?:unexpected|unknown|unsupported|invalid) role\W+system\b"
    r"|(?:not|n't) support\W+(?:the |a |any )?system\b(?!-)"
    r"|'system' is not one of"
    rf"|(?:system (?:role|message|prompt|instruction)|role\W+system|developer instruction)s?{UNSUPPORTED}",
    re.IGNORECASE,
)
"""Errors of chat templates and providers without a system role. Other errors mention it too, for example of a long system prompt."""

NO_MAX_TOKENS = re.compile(
    r"max_tokens\W.*(?:unsupported|not supported|unknown|unrecognized|not permitted|not allowed)", re.IGNORECASE | re.DOTALL
)
"""Errors of providers that only know `max_completion_tokens`."""


@dataclass(frozen=True)
class Adaptation:
    """Change of a request. `rejected(body, message)` is true if a provider's error message asks for it."""

    rejected: Callable[[Body, str], bool]
    change: Callable[[Body], None]


def _omit_stream_options(body: Body) -> None:
    del body["stream_options"]


def _rename_max_tokens(body: Body) -> None:
    if "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")


def _omit_reasoning(body: Body) -> None:
    body["messages"] = [{name: value for name, value in each.items() if name != REASONING} for each in body["messages"]]


def _rename_developer(body: Body) -> None:
    body["messages"] = [{**each, "role": "system"} if each["role"] == "developer" else each for each in body["messages"]]


def _move_instructions(body: Body) -> None:
    body["messages"] = without_system_role(body["messages"])


def _max_tokens_rejected(body: Body, message: str) -> bool:
    return "max_tokens" in body and ("max_completion_tokens" in message or NO_MAX_TOKENS.search(message) is not None)


def _has_role(body: Body, *roles: str) -> bool:
    return any(message["role"] in roles for message in body["messages"])


ADAPTATIONS = {
    "stream_options": Adaptation(
        lambda body, message: "stream_options" in body and ("stream_options" in message or "include_usage" in message),
        _omit_stream_options,
    ),
    "max_tokens": Adaptation(_max_tokens_rejected, _rename_max_tokens),
    REASONING: Adaptation(
        lambda body, message: REASONING in message and any(REASONING in each for each in body["messages"]),
        _omit_reasoning,
    ),
    "developer role": Adaptation(lambda body, message: _has_role(body, "developer") and "developer" in message.lower(), _rename_developer),
    "system role": Adaptation(
        lambda body, message: NO_SYSTEM_ROLE.search(message) is not None and without_system_role(body["messages"]) != body["messages"],
        _move_instructions,
    ),
}
"""Adaptations by name, in the order in which they are tried."""


def adapted(body: Body, names: Iterable[str]) -> Body:
    """Return the body of a streamed request with these adaptations."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    for name in sorted(names, key=list(ADAPTATIONS).index):
        ADAPTATIONS[name].change(body)
    return body


def missing_adaptation(body: Body, message: str) -> str | None:
    """Return the name of the adaptation that a provider's error message asks for, or None."""
    return next((name for name, each in ADAPTATIONS.items() if each.rejected(body, message)), None)
