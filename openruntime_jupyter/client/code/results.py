"""Results of Python code and of operations on arrays, as Python values."""

from __future__ import annotations

from typing import Any

from openruntime_jupyter.client.arrays import receive, receive_all
from openruntime_jupyter.client.code.serialization import unpack
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.schemas.endpoints import GET_PAYLOAD
from openruntime_jupyter.schemas.tasks import Task, TaskResult


def python_result(backend: Backend, task: Task, result: TaskResult, payload: tuple[bytes, str] | None) -> Any:
    """Return the value of a completed task; see `ReadResult`.

    The value is that of the function for `call`, a dict of the outputs by name for `python`, an array or a tuple of arrays for operations
    with `return_arrays`, and otherwise the operation's output dict. Large arrays are memory-mapped on a local runtime. MLX arrays are
    returned as MLX arrays if MLX is installed.
    """
    if task.operation not in ("python", "call"):
        return receive_all(backend, result.arrays) if result.arrays else result.output
    if result.payload is None:
        return {} if task.operation == "python" else None
    content, encoding = payload or (backend.call(GET_PAYLOAD, task.task_id), result.payload.encoding)
    return unpack(content, encoding, [receive(backend, each) for each in result.arrays])
