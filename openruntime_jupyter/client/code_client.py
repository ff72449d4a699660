"""Client that runs Python code and functions in workers, with the interpreter and the environment of this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from types import CodeType
from typing import Any

from openruntime_jupyter.client.arrays import ArrayUploads, PythonArrays
from openruntime_jupyter.client.base import NOT_SUBMITTED, UNCERTAIN, BaseClient
from openruntime_jupyter.client.code.execution_environment import PYTHON, world
from openruntime_jupyter.client.code.results import python_result
from openruntime_jupyter.client.code.serialization import named, pack_call, pack_variables, sources_of
from openruntime_jupyter.client.handles import TaskHandle, handle_of
from openruntime_jupyter.client.interruption import interruptible
from openruntime_jupyter.client.unseen import leave
from openruntime_jupyter.schemas.tasks import Task, TaskOutput


class CodeClient(BaseClient):
    """Client that also submits Python code and function calls, and whose arrays are those of NumPy and MLX."""

    @cached_property
    def arrays(self) -> PythonArrays:
        """Return the arrays of the runtime by name: `client.arrays.put("weights", array)`."""
        return PythonArrays(self.backend)

    def submit_call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskHandle:
        """Submit `function(*args, **kwargs)` to a worker and return immediately.

        Functions defined in a notebook are pickled by value, with the variables they use. Raises `InvalidRequest` with the name of
        the argument or variable that can't be pickled.
        """
        with interruptible(UNCERTAIN), self._uploads() as uploads:
            return self._submit("call", self._call(uploads, function, args, kwargs), name_of(function))

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run `function(*args, **kwargs)` in a worker and return its value. Interrupting the call cancels the task.

        Raises the errors of `submit_call` and `TaskHandle.result`.
        """
        with interruptible(NOT_SUBMITTED), self._uploads() as uploads:
            return self._finish("call", self._call(uploads, function, args, kwargs), name_of(function))

    def submit_code(
        self,
        code: str,
        inputs: dict[str, Any] | None = None,
        outputs: tuple[str, ...] = (),
        filename: str | None = None,
        follow: float = 0.0,
    ) -> TaskHandle:
        """Submit Python code. The handle's `result()` is a dict of the output variables.

        On a local runtime the code uses this process's interpreter, working directory and import path.

        Parameters
        ----------
        inputs
            Variables that are set before the code runs.
        outputs
            Names of the variables to return.
        filename
            File name in tracebacks.
        follow
            Wait up to this many seconds for output, which saves a request for callers of `follow_output`.
        """
        with interruptible(UNCERTAIN), self._uploads() as uploads:
            parameters: dict[str, Any] = {
                "code": code,
                "pickled": pack_variables(inputs or {}, uploads),
                "outputs": list(outputs),
                "world": self._world(),
            }
            parameters |= {"arrays": uploads.references()} | ({"filename": filename} if filename else {})
            return self._submit("python", parameters, follow=follow)

    def leave(self, *task_ids: str) -> str:
        """Remember tasks whose kernel stops while it waits for them, and return what becomes of them."""
        return leave(self.where, *task_ids)

    def _uploads(self) -> ArrayUploads:
        return ArrayUploads(self.backend)

    def _handle(self, task: Task, shown: TaskOutput | None = None) -> TaskHandle:
        return handle_of(self.backend, task, python_result, shown)

    def _place(self) -> tuple[str | None, str | None]:
        here = self._world()
        return here.get("notebook"), here.get("kernel")

    def _call(self, uploads: ArrayUploads, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        codes: list[CodeType] = []
        pickled = pack_call(function, args, kwargs, uploads, codes)
        sources = sources_of(codes, self.backend.local)
        return {**named(function), "pickled": pickled, "arrays": uploads.references(), "sources": sources, "world": self._world()}

    def call_request(self, function: Callable[..., Any], parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the request of a `call` with the options of this client, named after `function`."""
        return self._request("call", {**named(function), **parameters, "world": self._world()}, name_of(function))

    def _world(self) -> dict[str, Any]:
        return world() if self.backend.local else dict(PYTHON)


def name_of(function: Callable[..., Any]) -> str | None:
    """Return the task name for `function`, or None if it has no name."""
    name = str(getattr(function, "__name__", ""))
    return name[:200] if name.isidentifier() else None
