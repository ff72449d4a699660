"""`python`: code of a cell, run by IPython, with named inputs and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.operations.base import ArrayRef, Operation, Parameters, Result, World, reference
from openruntime_jupyter.operations.code.values import Pickled, dump, identifier, load, no_room, not_picklable, summary
from openruntime_jupyter.operations.context import TaskContext

if TYPE_CHECKING:
    from openruntime_jupyter.operations.code.shell import TaskShell

Input = Annotated[Any, BeforeValidator(reference), WithJsonSchema({"description": 'Any JSON; `{"array": id}` is an array.'})]


class Params(Parameters):
    """Code with its inputs and outputs."""

    code: str = Field("", description="Python source, as in a notebook cell.")
    inputs: dict[str, Input] = Field({}, description='Variables for the code, as JSON; `{"array": id}` is an array.')
    pickled: Pickled | None = Field(
        None, description="base64 of `cloudpickle.dumps({name: value})`, or an array of its bytes: more variables for the code."
    )
    arrays: list[ArrayRef] = Field([], description="The out-of-band buffers of `pickled`, in order.", max_length=1000)
    outputs: list[str] = Field([], description="Names of variables to return.", max_length=1000)
    world: World | None = Field(None, description="Interpreter, folder, import path and variables of the caller; null for the server's.")
    isolate: bool = Field(False, description="Has no effect: each task with the caller's code runs in a new process.")
    filename: str = Field("<cell>", description="File name of the code in tracebacks.", max_length=200)

    @field_validator("inputs")
    @classmethod
    def _input_names(cls, inputs: dict[str, Any]) -> dict[str, Any]:
        for name in inputs:
            identifier(name)
        return inputs

    @field_validator("outputs")
    @classmethod
    def _output_names(cls, outputs: list[str]) -> list[str]:
        return [identifier(name) for name in outputs]


class OutputNotSet(NameError):
    """Code that ended without setting one of its outputs."""


def shell() -> TaskShell:
    """Return the IPython shell of this worker, created on first use."""
    from openruntime_jupyter.operations.code.shell import TaskShell

    return TaskShell.instance()


def run(params: Params, context: TaskContext) -> Result:
    """Run the code in a new namespace; return the outputs as payload, and their descriptions as `output`."""
    space = {name: context.array(value.array) if isinstance(value, ArrayRef) else value for name, value in params.inputs.items()}
    if params.pickled is not None:
        space.update(load(params.pickled, params.arrays, "An input", context))
    try:
        value, space = shell().run_task(params.code, params.filename, space, context)
        missing = [name for name in params.outputs if name not in space]
        if missing:
            raise OutputNotSet(f"the code ended without setting {', '.join(map(repr, missing))}, listed in outputs")
        outputs = {name: space[name] for name in params.outputs}
        described = {name: summary(item) for name, item in outputs.items()}
        payload, encoding = _pickled(outputs, context) if outputs else (None, "cloudpickle")
        return Result({"outputs": described, "value": None if value is None else summary(value)["repr"]}, payload, encoding)
    finally:
        shell().end_task()


def _pickled(outputs: dict[str, Any], context: TaskContext) -> tuple[bytes, str]:
    try:
        return context.pack(outputs)
    except StorageUnavailable as problem:
        name = max(outputs, key=lambda name: context.measure(outputs[name]))
        raise no_room(outputs[name], f"The output {name!r}", problem, context) from problem
    except Exception as problem:  # pickling runs the values' own code, which may raise anything
        for name, item in outputs.items():
            dump(item, f"The output {name!r}", context)
            context.array_io.clear()
        raise not_picklable(outputs, "The outputs", problem) from problem


def warm() -> None:
    """Create the shell and run an empty cell, because the first run imports more modules."""
    Params.model_validate({})
    shell().run_cell("pass", store_history=False)  # type: ignore[no-untyped-call]


operation = Operation(
    name="python", summary="Run Python code as a notebook cell would.", params=Params, run=run, needs_execute=True, warm=warm
)
