"""Workers that keep a model: real processes whose "model" is the object stored in `context.resident`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import cloudpickle
import psutil
import pytest

from openruntime_jupyter.engines.local import LocalEngine, LocalOptions
from openruntime_jupyter.engines.protocol import Completed, Job, ModelUse, Stopped, StopReason
from openruntime_jupyter.schemas.values import ModelSource, ResponsePiece
from tests.runtimes import pickled, until

LANE = "device_0"


class Deaf:
    """Observer that records events."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.text = ""

    def started(self, worker: str) -> None:
        pass

    def waiting(self, reason: str | None) -> None:
        pass

    def progressed(self, progress: dict[str, Any]) -> None:
        self.begun.set()

    def generated(self, piece: ResponsePiece) -> None:
        self.text += piece.text

    def printed(self, stream: str, text: str, omitted: int = 0) -> None:
        pass

    def displayed(self, item: dict[str, Any]) -> None:
        pass


def answer(how: str) -> tuple[int, int]:
    """Run a task with a model, loaded if needed, and return its number of uses and its worker."""
    import os
    import time

    from openruntime_jupyter.current_task import current

    context = current()
    assert context is not None
    assert context.model is not None
    context.resident["answers"] = context.resident.get("answers", 0) + 1
    context.token(context.model.name)
    if how == "for long":
        context.progress(1)
        time.sleep(600)
    return context.resident["answers"], os.getpid()


def source(name: str) -> ModelSource:
    return ModelSource(name, f"/models/{name}", "mlx")


@pytest.fixture(scope="module")
def shared(jp_asyncio_loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    """Engine that keeps up to two models, which all tests share."""
    folder = tmp_path_factory.mktemp("engine")

    async def started() -> LocalEngine:
        engine = LocalEngine(LocalOptions(folder, folder, max_models=2))
        await engine.start()
        await engine.devices()
        return engine

    engine = jp_asyncio_loop.run_until_complete(started())
    yield engine
    jp_asyncio_loop.run_until_complete(engine.stop(5.0))


@pytest.fixture
def engine(shared: LocalEngine, jp_asyncio_loop: asyncio.AbstractEventLoop) -> Iterator[LocalEngine]:
    """The shared engine, without models of other tests."""
    yield shared
    jp_asyncio_loop.run_until_complete(shared.models.unload(None))


_numbers = iter(range(1000))


def job(model: str, how: str = "", keep_alive: float = 60.0) -> Job:
    task_id = f"task_{next(_numbers)}"
    parameters = json.dumps(pickled(answer, how)).encode()
    return Job(task_id, "call", parameters, LANE, "cpu", 0, None, 1 << 40, 1, f"{task_id}.1", model=ModelUse(source(model), keep_alive))


async def answered(engine: LocalEngine, model: str, **how: Any) -> tuple[int, int]:
    outcome = await engine.run(job(model, **how), Deaf())
    assert isinstance(outcome, Completed), outcome
    assert outcome.payload is not None
    found: tuple[int, int] = cloudpickle.loads(outcome.payload)
    return found


def names(engine: LocalEngine) -> list[str]:
    return [model.name for model in engine.models.reports()]


async def test_model_stays_loaded_between_tasks(engine: LocalEngine) -> None:
    first, worker = await answered(engine, "a")
    again, same = await answered(engine, "a")
    assert (first, again) == (1, 2)
    assert worker == same
    plain = Job("task_x", "python", b'{"code": "import os; os.getpid()"}', LANE, "cpu", 0, None, 1 << 40, 1, "task_x.1")
    outcome = await engine.run(plain, Deaf())
    assert isinstance(outcome, Completed)
    assert int(outcome.output["value"]) != worker, "only tasks with this model run there"
    (report,) = engine.models.reports()
    assert (report.name, report.state, report.lane) == ("a", "idle", LANE)
    assert report.resident
    assert report.idle_seconds is not None
    assert engine.models.holds(LANE, source("a")) == report.resident
    assert engine.models.holds(LANE, source("b")) == 0


async def test_least_recently_used_model_is_unloaded_over_limit(engine: LocalEngine) -> None:
    for model in ("a", "b", "a", "c"):
        await answered(engine, model)
    assert names(engine) == ["a", "c"]


async def test_model_is_unloaded_after_keep_alive(engine: LocalEngine) -> None:
    _, at_once = await answered(engine, "a", keep_alive=0.0)
    _, soon = await answered(engine, "b", keep_alive=0.2)
    await until(lambda: not psutil.pid_exists(at_once) and not psutil.pid_exists(soon), what="the end of both workers")
    assert names(engine) == []


async def test_unload_waits_for_worker_to_end(engine: LocalEngine) -> None:
    _, worker = await answered(engine, "a")
    assert await engine.models.unload("b") == []
    assert await engine.models.unload(None) == ["a"]
    assert not psutil.pid_exists(worker)
    assert (await answered(engine, "a"))[0] == 1


async def test_make_room_unloads_one_idle_model_except_requested(engine: LocalEngine) -> None:
    for model in ("a", "b"):
        await answered(engine, model)
    assert engine.models.make_room(LANE, source("a")) == "b"
    assert engine.models.make_room(LANE, source("a")) == "b", "it has not ended yet"
    await until(lambda: engine.models.make_room(LANE, source("a")) is None, what="the end of b")
    assert names(engine) == ["a"]


async def test_cancelled_task_keeps_model_loaded(engine: LocalEngine) -> None:
    _, worker = await answered(engine, "a")
    long, deaf = job("a", "for long"), Deaf()
    running = asyncio.ensure_future(engine.run(long, deaf))
    await deaf.begun.wait()
    assert deaf.text == "a"
    assert engine.models.reports()[0].task_id == long.task_id
    assert engine.models.make_room(LANE, None) is None, "it is busy"
    engine.halt(long.task_id, StopReason.CANCELLED)
    assert isinstance(await running, Stopped)
    assert await answered(engine, "a") == (3, worker)
