from __future__ import annotations

import asyncio
from typing import Any

import pytest

from openruntime_jupyter.engines.inline import InlineContext, InlineEngine
from openruntime_jupyter.engines.protocol import Completed, Died, Job, RaisedError, Stage, Stopped, StopReason
from openruntime_jupyter.errors import NotAllowed
from tests.engines.test_model_pool import Deaf


def job(task_id: str = "task_1", parameters: bytes = b'{"words": "hello"}', operation: str = "echo") -> Job:
    return Job(task_id, operation, parameters, "remote", "remote", 0, None, 0, 1, f"{task_id}.1")


async def echo(parameters: dict[str, Any], context: InlineContext) -> dict[str, Any]:
    for letter in parameters["words"]:
        context.token(letter)
    context.progress(1, 1)
    return {"text": parameters["words"]}


async def never_ending(parameters: dict[str, Any], context: InlineContext) -> dict[str, Any]:
    context.progress(0)
    await asyncio.Event().wait()
    return {}


async def test_coroutine_gets_parameters_and_returns_output() -> None:
    deaf = Deaf()
    outcome = await InlineEngine({"echo": echo}).run(job(), deaf)
    assert isinstance(outcome, Completed)
    assert outcome.output == {"text": "hello"}
    assert deaf.text == "hello"


@pytest.mark.parametrize(
    ("problem", "expected"), [(NotAllowed("log in"), "log in"), (ZeroDivisionError("by nought"), "fault in openruntime")]
)
async def test_exception_of_coroutine_fails_task(problem: Exception, expected: str, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(parameters: dict[str, Any], context: InlineContext) -> dict[str, Any]:
        raise problem

    outcome = await InlineEngine({"echo": fails}).run(job(), Deaf())
    assert isinstance(outcome, RaisedError)
    assert outcome.failure.type == type(problem).__name__
    assert expected in outcome.failure.message
    assert bool(caplog.records) == (expected != str(problem)), "only internal errors are logged"


@pytest.mark.parametrize("reason", [StopReason.CANCELLED, StopReason.TIMED_OUT])
async def test_halt_cancels_coroutine(reason: StopReason) -> None:
    engine, deaf = InlineEngine({"echo": never_ending}), Deaf()
    running = asyncio.ensure_future(engine.run(job(), deaf))
    await deaf.begun.wait()
    engine.halt("task_2", reason)
    engine.halt("task_1", reason)
    outcome = await running
    assert isinstance(outcome, Stopped)
    assert (outcome.reason, outcome.stage) == (reason, Stage.INTERRUPT)


async def test_ignored_cancellation_is_repeated() -> None:
    async def stubborn(parameters: dict[str, Any], context: InlineContext) -> dict[str, Any]:
        context.progress(0)
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue
        await asyncio.Event().wait()
        return {}

    engine, deaf = InlineEngine({"echo": stubborn}, grace=0.01), Deaf()
    running = asyncio.ensure_future(engine.run(job(), deaf))
    await deaf.begun.wait()
    engine.halt("task_1", StopReason.CANCELLED)
    assert isinstance(await asyncio.wait_for(running, 5.0), Stopped)


async def test_stop_ends_running_tasks_and_rejects_new_ones() -> None:
    engine, deaf = InlineEngine({"echo": never_ending}), Deaf()
    running = asyncio.ensure_future(engine.run(job(), deaf))
    await deaf.begun.wait()
    await engine.stop(5.0)
    for outcome in (await running, await engine.run(job("task_2"), Deaf())):
        assert isinstance(outcome, Stopped)
        assert outcome.reason is StopReason.ENDED


async def test_unknown_operation_fails() -> None:
    outcome = await InlineEngine({}).run(job(), Deaf())
    assert isinstance(outcome, Died)
    assert "another release" in outcome.failure.message
    assert not outcome.retry
