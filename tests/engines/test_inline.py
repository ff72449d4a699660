from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.engines.inline import InlineContext, InlineEngine
from openruntime_jupyter.engines.protocol import Completed, Died, Job, RaisedError, Stage, Stopped, StopReason
from openruntime_jupyter.errors import NotAllowed
from tests.engines.test_residents import Deaf
from tests.runtimes import live


def job(task_id: str = "task_1", parameters: bytes = b'{"words": "hello"}', operation: str = "echo") -> Job:
    return Job(task_id, operation, parameters, "remote", "remote", 0, None, 0, 1, f"{task_id}.1")


async def echo(parameters: dict[str, Any], context: InlineContext) -> dict[str, Any]:
    for letter in parameters["words"]:
        context.token(letter)
    context.progress(1, 1)
    return {"text": parameters["words"]}


async def for_ever(parameters: dict[str, Any], context: InlineContext) -> dict[str, Any]:
    context.progress(0)
    await asyncio.Event().wait()
    return {}


def test_a_coroutine_gets_its_parameters_and_its_output_is_the_tasks() -> None:
    async def body() -> None:
        deaf = Deaf()
        outcome = await InlineEngine({"echo": echo}).run(job(), deaf)
        assert isinstance(outcome, Completed)
        assert outcome.output == {"text": "hello"}
        assert deaf.text == "hello"

    live(body())


@pytest.mark.parametrize(("problem", "said"), [(NotAllowed("log in"), "log in"), (ZeroDivisionError("by nought"), "fault in openruntime")])
def test_what_a_coroutine_raises_fails_its_task_in_words(problem: Exception, said: str, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(parameters: dict[str, Any], context: InlineContext) -> dict[str, Any]:
        raise problem

    outcome = live(InlineEngine({"echo": fails}).run(job(), Deaf()))
    assert isinstance(outcome, RaisedError)
    assert outcome.failure.type == type(problem).__name__
    assert said in outcome.failure.message
    assert bool(caplog.records) == (said != str(problem)), "only a fault of ours is logged"


@pytest.mark.parametrize("reason", [StopReason.CANCELLED, StopReason.TIMED_OUT])
def test_a_halt_cancels_the_coroutine(reason: StopReason) -> None:
    async def body() -> None:
        engine, deaf = InlineEngine({"echo": for_ever}), Deaf()
        running = asyncio.ensure_future(engine.run(job(), deaf))
        await deaf.begun.wait()
        engine.halt("task_2", reason)
        engine.halt("task_1", reason)
        outcome = await running
        assert isinstance(outcome, Stopped)
        assert (outcome.reason, outcome.stage) == (reason, Stage.INTERRUPT)

    live(body())


def test_a_coroutine_that_swallows_a_cancel_is_cancelled_again() -> None:
    async def stubborn(parameters: dict[str, Any], context: InlineContext) -> dict[str, Any]:
        context.progress(0)
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue
        await asyncio.Event().wait()
        return {}

    async def body() -> None:
        engine, deaf = InlineEngine({"echo": stubborn}, grace=0.01), Deaf()
        running = asyncio.ensure_future(engine.run(job(), deaf))
        await deaf.begun.wait()
        engine.halt("task_1", StopReason.CANCELLED)
        assert isinstance(await asyncio.wait_for(running, 5.0), Stopped)

    live(body())


def test_a_stop_ends_what_runs_and_takes_nothing_more() -> None:
    async def body() -> None:
        engine, deaf = InlineEngine({"echo": for_ever}), Deaf()
        running = asyncio.ensure_future(engine.run(job(), deaf))
        await deaf.begun.wait()
        await engine.stop(5.0)
        for outcome in (await running, await engine.run(job("task_2"), Deaf())):
            assert isinstance(outcome, Stopped)
            assert outcome.reason is StopReason.ENDED

    live(body())


def test_an_operation_that_nothing_runs_says_so(tmp_path: Path) -> None:
    outcome = live(InlineEngine({}).run(job(), Deaf()))
    assert isinstance(outcome, Died)
    assert "another release" in outcome.failure.message
    assert not outcome.retry
