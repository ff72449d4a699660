"""Statistics in the status line of an answer."""

from __future__ import annotations

from typing import Any

from openruntime_jupyter.notebook.ai.live_answer import statistics

ANSWER: dict[str, Any] = {
    "completion_tokens": 1_200,
    "tokens_per_second": 31.4,
    "model_used": "tiny",
    "provider": "local",
    "prompt_tokens": 1_000,
}


def test_reused_tokens_are_shown_beside_those_of_the_prompt() -> None:
    assert statistics({**ANSWER, "cached_tokens": 900}) == ["1,200 tokens", "31.4 tokens/s", "900 of 1,000 prompt tokens cached", "tiny"]
    for without in (0, None):
        assert statistics({**ANSWER, "cached_tokens": without}) == ["1,200 tokens", "31.4 tokens/s", "tiny"]
