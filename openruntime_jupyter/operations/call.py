"""`call`: one call of a function that the caller pickled by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from openruntime_jupyter.operations._sources import Source, show
from openruntime_jupyter.operations._values import Packed, dump, load, summary, unpack
from openruntime_jupyter.operations._worlds import enter
from openruntime_jupyter.operations.arrays import ArrayRef
from openruntime_jupyter.operations.base import Operation, Parameters, Result, World

if TYPE_CHECKING:
    from openruntime_jupyter.worker.context import TaskContext


class Params(Parameters):
    """A function and its arguments."""

    pickled: str = Field("", description="base64 of `cloudpickle.dumps((function, args, kwargs))`; empty calls nothing and gives None.")
    arrays: list[ArrayRef] = Field(default_factory=list, description="The out-of-band buffers of `pickled`, in order.", max_length=1000)
    sources: list[Source] = Field(default_factory=list, description="Lines of the functions, for tracebacks.", max_length=1000)
    world: World | None = None
    burst: str | None = Field(None, description="Tasks of one owner with the same value may share worker processes.", max_length=100)
    isolate: bool = Field(False, description="Take a fresh worker, and end it afterwards.")

    @field_validator("pickled")
    @classmethod
    def _is_base64(cls, text: str) -> str:
        unpack(text)
        return text


def run(params: Params, context: TaskContext) -> Result:
    """Call it. The value is the payload; `output` says its type and a bounded repr."""
    enter(params.world)
    show(params.sources)
    value = None
    if params.pickled:
        function, arguments, keywords = load(params.pickled, params.arrays, "The function or an argument", context)
        value = function(*arguments, **keywords)
    if isinstance(value, Packed):
        return value
    return Result(summary(value), *dump(value, "The function's result", context))


def warm() -> None:
    """Import what the first call needs."""
    import cloudpickle  # noqa: F401


operation = Operation(
    name="call", summary="Call a Python function that was pickled by value.", params=Params, run=run, needs_execute=True, warm=warm
)
