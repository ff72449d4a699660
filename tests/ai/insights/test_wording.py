"""Rewriting by a model keeps every number, adds none, and has a time limit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from openruntime_jupyter.ai.insights.rewriting import Choose, Rewriter, rewrite
from tests.runtimes import live

COMPUTED = """Based on the last hour of performance data:

1. Memory usage spiked to 92% at 14:30:10Z, from 14:30:00Z to 2026-01-01T14:31Z (1,250 s). Then ran task_01kdw8m3s0 (`python`).
2. GPU utilization averaged 75.5%. Raise OpenRuntimeApp.gpu_slots (now 1)."""
WORDED = """Here is the last hour of performance data:

1. At 14:30:10, memory jumped to 92% (14:30:00Z until 2026-01-01T14:31Z, so 1250 s); task_01kdw8m3s0 was running.
2. With 75.5% the GPU was well used. You might raise OpenRuntimeApp.gpu_slots above 1."""


def one(which: str, ask: Any, model: str = "a-model") -> Choose:
    """Return a selection with only this kind of model."""
    return lambda wanted: Rewriter(model, ask) if wanted == which else None


def says(answer: str | None) -> Any:
    async def ask(prompt: str) -> str | None:
        assert COMPUTED in prompt
        return answer

    return ask


async def hangs(prompt: str) -> str | None:
    await asyncio.sleep(60)
    return WORDED


async def breaks(prompt: str) -> str | None:
    raise RuntimeError("secret")


@pytest.mark.parametrize(
    ("wording", "which", "asked"),
    [
        ("auto", "resident", True),
        ("auto", "remote", True),
        ("auto", "local", False),
        ("local", "local", True),
        ("local", "remote", False),
        ("local", "resident", False),
        ("remote", "remote", True),
        ("remote", "local", False),
        ("none", "resident", False),
        ("none", "remote", False),
    ],
)
def test_whom_to_ask_is_what_the_caller_says(wording: Any, which: str, asked: bool) -> None:
    text, by, notice = live(rewrite(COMPUTED, wording, one(which, says(WORDED))))
    assert (text, by) == ((WORDED, "a-model") if asked else (COMPUTED, "none"))
    assert (notice is None) == (asked or wording in ("auto", "none"))


def test_a_loaded_local_model_is_asked_before_a_remote_one() -> None:
    def choose(which: str) -> Rewriter | None:
        return {"resident": Rewriter("here", says(WORDED)), "remote": Rewriter("there", says(WORDED))}.get(which)

    assert live(rewrite(COMPUTED, "auto", choose))[1] == "here"


@pytest.mark.parametrize("ask", [hangs, breaks, says(None), says(""), says("All is well."), says(WORDED.replace("92", "93"))])
def test_whatever_a_model_does_wrong_the_computed_text_is_the_answer(ask: Any) -> None:
    text, by, notice = live(rewrite(COMPUTED, "local", one("local", ask), 0.05))
    assert (text, by) == (COMPUTED, "none")
    assert notice is not None
    assert "a-model" in notice
    assert "secret" not in notice


@pytest.mark.parametrize(("ask", "fit"), [(says(WORDED), True), (says("All is well."), False), (hangs, False), (breaks, False)])
def test_whether_a_models_words_could_be_used_is_told(ask: Any, fit: bool) -> None:
    learnt: list[bool] = []
    live(rewrite(COMPUTED, "auto", lambda _: Rewriter("a-model", ask, learnt.append), 30.0 if fit else 0.05))
    assert learnt == [fit]


def test_a_model_that_takes_too_long_is_cancelled() -> None:
    ended = []

    async def slow(prompt: str) -> str | None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)
        return None

    live(rewrite(COMPUTED, "local", one("local", slow), 0.02))
    assert ended == [True]


def nobody(which: str) -> None:
    """Return None: no model is available."""


def test_where_there_is_no_model_the_notice_says_what_to_do() -> None:
    assert "openruntime pull" in (live(rewrite(COMPUTED, "local", nobody))[2] or "")
    assert "insights_wording" in (live(rewrite(COMPUTED, "remote", nobody))[2] or "")
