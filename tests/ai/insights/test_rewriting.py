"""Rewriting by a model keeps every number, adds none, and has a time limit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from openruntime_jupyter.ai.insights.rewriting import Choose, Rewriter, rewrite

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


cancelled = asyncio.Event()


async def hangs(prompt: str) -> str | None:
    try:
        await asyncio.sleep(60)
    finally:
        cancelled.set()
    return WORDED


async def breaks(prompt: str) -> str | None:
    raise RuntimeError("secret")


def no_model(which: str) -> None:
    """Return None: no model is available."""


@pytest.mark.parametrize(
    ("wording", "which", "notice"),
    [
        ("auto", "resident", None),
        ("auto", "remote", None),
        ("local", "local", None),
        ("remote", "remote", None),
        ("local", "remote", "openruntime pull"),
        ("local", "resident", "openruntime pull"),
        ("remote", "local", "insights_wording"),
    ],
)
async def test_wording_selects_the_kind_of_model(wording: Any, which: str, notice: str | None) -> None:
    text, author, problem = await rewrite(COMPUTED, wording, one(which, says(WORDED)))
    assert (text, author) == ((WORDED, "a-model") if notice is None else (COMPUTED, "none"))
    assert problem is None if notice is None else notice in (problem or "")


@pytest.mark.parametrize(("wording", "which"), [("auto", "local"), ("none", "resident"), ("none", "remote")])
async def test_other_models_are_not_asked(wording: Any, which: str) -> None:
    assert await rewrite(COMPUTED, wording, one(which, says(WORDED))) == (COMPUTED, "none", None)


async def test_loaded_local_model_precedes_remote_model() -> None:
    assert (await rewrite(COMPUTED, "auto", lambda which: Rewriter(which, says(WORDED))))[1] == "resident"


@pytest.mark.parametrize("ask", [hangs, breaks, says(None), says(""), says("All is well."), says(WORDED.replace("92", "93")), says(WORDED)])
async def test_unusable_text_is_replaced_by_computed_text_and_remembered(ask: Any) -> None:
    learnt: list[bool] = []
    text, author, notice = await rewrite(COMPUTED, "local", lambda _: Rewriter("a-model", ask, learnt.append), 0.2)
    if text == WORDED:
        assert (author, notice, learnt) == ("a-model", None, [True])
    else:
        assert (text, author, learnt) == (COMPUTED, "none", [False])
        assert "a-model" in (notice or "")
        assert "secret" not in (notice or "")
    assert ask is not hangs or cancelled.is_set()
