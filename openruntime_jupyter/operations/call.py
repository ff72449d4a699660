"""`call`: one call of a function that the caller pickled by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from openruntime_jupyter.operations._values import dump, load, summary, unpack
from openruntime_jupyter.operations._worlds import enter
from openruntime_jupyter.operations.base import Operation, Parameters, Result, World

if TYPE_CHECKING:
    from openruntime_jupyter.worker.context import TaskContext


class Params(Parameters):
    """A function and its arguments."""

    pickled: str = Field("", description="base64 of `cloudpickle.dumps((function, args, kwargs))`; empty calls nothing and gives None.")
    world: World | None = None
    isolate: bool = Field(False, description="Take a fresh worker, and end it afterwards.")

    @field_validator("pickled")
    @classmethod
    def _is_base64(cls, text: str) -> str:
        unpack(text)
        return text


def run(params: Params, context: TaskContext) -> Result:  # noqa: ARG001 - every operation is given both
    """Call it. The value is the payload; `output` says its type and a bounded repr."""
    enter(params.world)
    value = None
    if params.pickled:
        function, arguments, keywords = load(unpack(params.pickled), "The function or an argument")
        value = function(*arguments, **keywords)
    return Result(summary(value), dump(value, "The function's result"))


def warm() -> None:
    """Import what the first call needs."""
    import cloudpickle  # noqa: F401


operation = Operation(
    name="call", summary="Call a Python function that was pickled by value.", params=Params, run=run, needs_execute=True, warm=warm
)
