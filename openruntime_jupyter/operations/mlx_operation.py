"""`mlx_operation`: one function of `mlx.core`, by name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations import inputs as _inputs
from openruntime_jupyter.operations import numerics
from openruntime_jupyter.operations.base import ArrayRef, Operation, Parameters, references
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.inputs import Generator, Value
from openruntime_jupyter.operations.mlx import calls as _calls
from openruntime_jupyter.operations.mlx import functions as _functions
from openruntime_jupyter.operations.mlx import graph
from openruntime_jupyter.schemas.base import wrong

SECONDS_PER_ELEMENT = 10e-9
"""Measured time per element of exp, one of the slower functions, on two x86-64 cores."""
MOST_RESULTS = 100

Argument = Annotated[Value, Field(description="A number, string, list, generator or array.")]


class Params(Parameters):
    """A call of an allowed function."""

    function: str = Field(
        "matmul",
        description="Dotted name below `mlx.core`, such as `matmul`, `linalg.norm`, `fft.fft`, `softmax`.",
        max_length=200,
        json_schema_extra=lambda schema: schema.update(enum=list(_functions.functions())),
    )
    args: list[Argument] | None = Field(
        None,
        description="Positional arguments; none by default, but two random 256 by 256 matrices if no function is named. A list becomes an "
        "array where the function takes one, otherwise it stays a list (axes, shapes); dtypes are given by name.",
        max_length=100,
    )
    kwargs: dict[str, Argument] = Field({}, description="Keyword arguments. `key` may be an integer; its default is 0.", max_length=100)
    iterations: int = Field(1, description="Timed calls; above 1, after an untimed warm-up.", ge=1, le=10_000, strict=True)
    return_arrays: bool = Field(
        False, description="true: return the complete results as arrays of the task's result, not only the summary.", strict=True
    )

    @field_validator("function")
    @classmethod
    def _allowed(cls, name: str) -> str:
        if name not in _functions.functions():
            raise wrong(_functions.rejection(name))
        return name

    @field_validator("args", "kwargs", mode="before")
    @classmethod
    def _not_too_long(cls, given: Any) -> Any:
        return _inputs.check_amount(given) if isinstance(given, list | dict) else given

    @field_validator("args")
    @classmethod
    def _not_too_many(cls, args: list[Any] | None, info: ValidationInfo) -> list[Any] | None:
        if args and "function" in info.data:
            signature = _functions.signature(info.data["function"])
            if signature.at(len(args) - 1) is None:
                raise wrong(f"{len(args)} arguments are too many; the signature is {signature.text}")
        return args

    @field_validator("kwargs")
    @classmethod
    def _known(cls, kwargs: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if kwargs and "function" in info.data:
            signature = _functions.signature(info.data["function"])
            unknown = [name for name in kwargs if name not in signature.by_name]
            if unknown:
                raise wrong(f"{info.data['function']} has no parameter {unknown[0][:100]!r}; the signature is {signature.text}")
        return kwargs

    @model_validator(mode="after")
    def _default_arguments(self) -> Params:
        if self.args is None:
            bare = "function" not in self.model_fields_set and not self.kwargs
            self.args = [Generator(normal=[256, 256]), Generator(normal=[256, 256])] if bare else []
        return self

    @property
    def given(self) -> list[Any]:
        """Return the positional arguments."""
        return self.args or []

    @property
    def values(self) -> list[Any]:
        """Return all arguments."""
        return [*self.given, *self.kwargs.values()]


def memory(params: Params) -> int:
    """Estimate the bytes of the arguments; only the worker knows the needs of the function."""
    return _inputs.needed(params.values)


def seconds(params: Params) -> float:
    """Estimate a lower bound in seconds: each element of the arguments once per iteration, at `SECONDS_PER_ELEMENT`.

    Products and factorisations take longer; the task's timeout limits them.
    """
    return _inputs.elements(params.values) * (params.iterations + 1) * SECONDS_PER_ELEMENT


def run(params: Params, context: TaskContext) -> dict[str, Any]:
    """Build the arguments, check that the call fits into memory, time it and summarise the results."""
    import mlx.core as mx

    dtypes = [str(each.dtype) for value in params.values for each in _inputs.generators(value)]
    dtypes += [each.dtype for each in references(params.values)]
    numerics.refuse_float64_on_gpu(context, [*dtypes, *(str(value) for value in params.values if isinstance(value, str))])
    context.require_memory(memory(params), "Building the arguments")
    call = _calls.function(mx, params.function)
    args, kwargs = params.given, params.kwargs
    try:
        args, kwargs = _built(mx, params, context)
        args, kwargs = _calls.prepared(mx, params.function, args, kwargs)
        inputs = graph.arrays([args, list(kwargs.values())])
        needed = sum(array.nbytes for array in inputs) + graph.needed(mx, call, args, kwargs) + numerics.SUMMARY_BYTES
        needed = max(needed, memory(params))
        context.require_memory(needed, params.function)
        watch = numerics.Watch(context, params.iterations)
        result, times = watch.time(lambda: _results(call(*args, **kwargs)), params.iterations, params.function, params.iterations > 1)
    except _calls.MLX_RAISES as problem:
        raise InvalidRequest.of("parameters", _calls.explained(params.function, problem, args, kwargs)) from None
    if params.return_arrays:
        for array in result:
            context.give(array)
    results = [numerics.summary(array) for array in result]
    return {
        "function": params.function,
        "arguments": _calls.described(args, kwargs),
        "iterations": params.iterations,
        "seconds_per_iteration": numerics.spread(times),
        "memory_estimate": needed,
        "result": results[0] if len(results) == 1 else results,
    }


def _built(mx: Any, params: Params, context: TaskContext) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments with their generators built and evaluated one after the other."""
    index = 0

    def build(value: Any) -> Any:
        nonlocal index
        if isinstance(value, Generator):
            index += 1
            array = value.build(mx, index)
            mx.eval(array)
            return array
        if isinstance(value, ArrayRef):
            return context.array(value.array, "mlx")
        if isinstance(value, list) and any(isinstance(each, list | Generator | ArrayRef) for each in value):
            return [build(each) for each in value]
        return value

    return [build(value) for value in params.given], {name: build(value) for name, value in params.kwargs.items()}


def _results(value: Any) -> list[Any]:
    results = graph.arrays([value])
    if not 0 < len(results) <= MOST_RESULTS:
        raise ValueError(f"the function returned {len(results)} arrays; supported are 1 to {MOST_RESULTS}")
    return results


operation = Operation(
    name="mlx_operation",
    summary="Call one function of mlx.core on numbers, lists and generated arrays.",
    params=Params,
    run=run,
    memory=memory,
    seconds=seconds,
    warm=numerics.warm,
    shared=True,
)
