"""Factory of a runtime's folders, local engine and remote lane."""

from __future__ import annotations

import os
from collections.abc import Callable

from openruntime_jupyter.engines.inline import LANE, REPORT, InlineEngine
from openruntime_jupyter.engines.local import LocalEngine, LocalOptions
from openruntime_jupyter.engines.protocol import Engine, SessionUse
from openruntime_jupyter.environment import at_start, changed_by_now
from openruntime_jupyter.errors import ModelNotFound, StorageUnavailable, TaskConflict
from openruntime_jupyter.runtime.arrays.store import ArrayStore
from openruntime_jupyter.runtime.permissions import private_folder
from openruntime_jupyter.runtime.queue.lane import Lane
from openruntime_jupyter.runtime.settings import Settings


def make_folders(settings: Settings) -> None:
    """Create the data folders with mode 0700; raise `StorageUnavailable`."""
    try:
        for folder in (settings.data_dir, settings.payloads, settings.temporary):
            private_folder(folder)
    except OSError as problem:
        raise StorageUnavailable(
            f"The data folder {settings.data_dir} can't be used ({problem.strerror}): make it writable for this user, "
            "or choose another by OPENRUNTIME_DATA_DIR",
            retry_after=60.0,
        ) from problem


def local_engine(settings: Settings, arrays: ArrayStore, session_ended: Callable[[SessionUse, str], None]) -> LocalEngine:
    """Return the engine of worker processes for these settings."""
    return LocalEngine(
        LocalOptions(
            payloads=settings.payloads,
            temporary=settings.temporary,
            arrays=arrays,
            blas=settings.blas,
            cancel_grace=settings.cancel_grace,
            spare_workers=settings.spare_workers,
            idle_worker_seconds=settings.idle_worker_seconds,
            start_timeout=settings.start_timeout,
            max_models=settings.max_models,
            secret_variables=frozenset(settings.secret_variables),
            # A kernel's tasks bring the variables that changed since its start.
            session_ended=session_ended,
            environment=at_start() if settings.embedded else dict(os.environ),
            own_variables=changed_by_now() if settings.embedded else (),
        )
    )


def remote_lane(settings: Settings, engine: InlineEngine) -> Lane:
    """Return the lane of operations that need no device."""
    return Lane(LANE, REPORT, settings.remote_slots, settings.aging_seconds, engine)


async def unload(engine: Engine, name: str | None) -> list[str]:
    """Unload a model; raise `TaskConflict` if it is answering a prompt, and `ModelNotFound` if it is not in memory."""
    unloaded = await engine.unload(name)
    if name is None or unloaded:
        return unloaded
    busy = next((each.task_id for each in engine.models() if each.name == name and each.task_id is not None), None)
    if busy is not None:
        raise TaskConflict(f"The model {name!r} is answering {busy}: cancel that task or wait for it")
    there = ", ".join(each.name for each in engine.models()) or "none"
    raise ModelNotFound(f"The model {name!r} is not in memory. Models in memory: {there}")
