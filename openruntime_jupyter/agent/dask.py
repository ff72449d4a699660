"""Agent in a Dask worker: `dask worker ADDRESS --preload openruntime_jupyter.agent.dask`, or loaded by the first runtime that connects."""

from __future__ import annotations

import os
from typing import Any

from openruntime_jupyter.agent import arrays
from openruntime_jupyter.agent.session import serve
from openruntime_jupyter.engines.hosts.dask import ARRAYS, SESSION, CommStream
from openruntime_jupyter.environment import default_data_dir


def dask_setup(worker: Any) -> None:
    """Load the agent; called by Dask for `--preload`."""
    load(worker)


def load(dask_worker: Any) -> None:
    """Make the worker serve runtimes."""
    dask_worker.handlers[SESSION] = _serve
    dask_worker.handlers[ARRAYS] = _serve_arrays


async def _serve(comm: Any) -> Any:
    from distributed.core import Status

    await serve(CommStream(comm), default_data_dir(), worker_environment())
    return Status.dont_reply


async def _serve_arrays(comm: Any, folder: str) -> Any:
    from distributed.core import Status

    await arrays.serve(CommStream(comm), folder)
    return Status.dont_reply


def worker_environment() -> dict[str, str]:
    """Return the environment of tasks: that of the Dask worker without what its nanny has added, such as `OMP_NUM_THREADS=1`.

    Dask runs several tasks in one process, so it gives one thread of BLAS to each. Our tasks have processes, with threads by their slots.
    """
    import dask

    added = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    return {name: value for name, value in os.environ.items() if str(added.get(name)) != value}
