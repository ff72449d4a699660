"""`compute`: the value of an array expression over named inputs."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations import inputs as _inputs
from openruntime_jupyter.operations import numerics
from openruntime_jupyter.operations.base import ArrayRef, Operation, Parameters
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.inputs import MAX_INTEGER, Generator, Value
from openruntime_jupyter.operations.mlx import calls as _calls
from openruntime_jupyter.operations.mlx import expressions
from openruntime_jupyter.operations.mlx import graph as _graph
from openruntime_jupyter.operations.mlx.expressions import Expression
from openruntime_jupyter.schemas.base import wrong

SECONDS_PER_ELEMENT = 1e-9
"""Measured time per element of an operation such as `+` on two x86-64 cores, rounded up; functions such as exp take ten times longer."""

Input = Annotated[Value, Field(description="A number, an inline list of numbers, a generator, or an array.")]


class Params(Parameters):
    """An expression and its inputs."""

    inputs: dict[str, Input] = Field(
        {"a": {"normal": [256, 256]}, "b": {"normal": [256, 256]}, "c": {"random": [256]}},
        description="Values by name; inputs that the expression does not use are not built.",
        max_length=50,
        validate_default=True,
    )
    expression: str = Field(
        "sum(tanh(a @ b) + c)",
        description="Numbers, names of inputs, pi, e, inf, the operators + - * / // % ** @ and comparisons, and calls such as "
        "sum(a, axis=0), norm(a), fft(a), where(a > 0, a, b).",
        max_length=expressions.MAX_LENGTH,
        validate_default=True,  # the inputs may lack names of the default expression
        json_schema_extra=lambda schema: schema.update(functions=[*sorted(expressions.FUNCTIONS)]),
    )
    iterations: int = Field(1, description="Timed evaluations; above 1, after an untimed warm-up.", ge=1, le=10_000, strict=True)

    return_arrays: bool = Field(
        False, description="true: return the complete value as an array of the task's result, not only the summary.", strict=True
    )

    @field_validator("inputs", mode="before")
    @classmethod
    def _not_too_long(cls, inputs: Any) -> Any:
        return _inputs.check_amount(inputs) if isinstance(inputs, dict) else inputs

    @field_validator("inputs")
    @classmethod
    def _arrays(cls, inputs: dict[str, Any]) -> dict[str, Any]:
        for name, value in inputs.items():
            if not name.isidentifier() or len(name) > 100:
                raise wrong(f"{name[:100]!r} is not a valid name: use letters, digits and _")
            if value is None or isinstance(value, str):
                raise wrong(f"{name}: give a number, a list of numbers or a generator")
            if isinstance(value, int) and abs(value) > MAX_INTEGER:
                raise wrong(f"{name}: an integer of more than 64 bits")
            if isinstance(value, list):
                _inputs.check_numbers(value)
        return inputs

    @field_validator("expression")
    @classmethod
    def _readable(cls, expression: str, info: ValidationInfo) -> str:
        if "inputs" in info.data:  # otherwise the inputs are invalid, and errors of the expression would be misleading
            expressions.parse(expression, tuple(info.data["inputs"]))
        return expression

    def parsed(self) -> Expression:
        """Return the checked syntax tree of the expression."""
        return expressions.parse(self.expression, tuple(self.inputs))

    def used(self) -> dict[str, Any]:
        """Return the inputs that the expression uses."""
        names = self.parsed().names
        return {name: value for name, value in self.inputs.items() if name in names}


def memory(params: Params) -> int:
    """Estimate the bytes of the inputs; only the worker knows the needs of the computation."""
    return _inputs.needed(list(params.used().values()))


def seconds(params: Params) -> float:
    """Estimate a lower bound in seconds: each operation once over the elements of all inputs per iteration, at `SECONDS_PER_ELEMENT`.

    Products and factorisations take longer; the task's timeout limits them.
    """
    elements = _inputs.elements(list(params.used().values()))
    return elements * params.parsed().operations * (params.iterations + 1) * SECONDS_PER_ELEMENT


def run(params: Params, context: TaskContext) -> dict[str, Any]:
    """Build the inputs, check that the graph fits into memory, evaluate it and summarise the result."""
    import mlx.core as mx

    used, parsed = params.used(), params.parsed()
    dtypes = [str(value.dtype) for value in used.values() if isinstance(value, Generator | ArrayRef)]
    numerics.refuse_float64_on_gpu(context, [*dtypes, "float64" if "float64" in params.expression else ""])
    context.require_memory(memory(params), "Building the inputs")
    inputs = {name: _made(mx, context, name, value, index) for index, (name, value) in enumerate(used.items())}
    inputs_size = sum(array.nbytes for array in _graph.arrays(list(inputs.values())))

    planned = _Evaluation(mx, parsed, inputs, measure=True)
    value = planned.value()
    needed = max(inputs_size + planned.needed + numerics.SUMMARY_BYTES, memory(params))
    context.require_memory(needed, "This expression")
    del value
    watch = numerics.Watch(context, params.iterations)
    result, times = watch.time(lambda: _Evaluation(mx, parsed, inputs).value(), params.iterations, "evaluating", params.iterations > 1)
    if params.return_arrays:
        context.give(result)
    return {
        "expression": params.expression,
        "inputs": {name: _calls.described([value], {}) for name, value in inputs.items()},
        "iterations": params.iterations,
        "seconds_per_iteration": numerics.spread(times),
        "memory_estimate": needed,
        **numerics.summary(result),
    }


def _made(mx: Any, context: TaskContext, name: str, value: Any, index: int) -> Any:
    """Return an input for MLX. Numbers stay numbers, so that they take the dtype of the array they are combined with."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, ArrayRef):
        return context.array(value.array, "mlx")
    try:
        array = value.build(mx, index) if isinstance(value, Generator) else mx.array(value)
        mx.eval(array)
    except _calls.MLX_RAISES as problem:
        raise InvalidRequest.of(f"inputs.{name}", str(problem)) from None
    return array


class _Evaluation:
    """Builder of the lazy graph of an expression, which builds repeated parts once.

    With `measure`, `needed` is the size in bytes of all arrays of the graph. Errors of MLX and of Python's arithmetic become
    `InvalidRequest` with the position in the expression.
    """

    def __init__(self, mx: Any, expression: Expression, inputs: dict[str, Any], measure: bool = False) -> None:
        self._mx = mx
        self._expression = expression
        self._inputs = inputs
        self._measure = measure
        self._done: dict[str, Any] = {}
        self.needed = 0

    def value(self) -> Any:
        """Return the value of the expression as a lazy array."""
        tree = self._expression.tree
        value = self._visit(tree)
        try:
            return value if _graph.is_array(value) else self._mx.array(value)
        except _calls.MLX_RAISES as problem:
            raise self._failed(tree, str(problem)) from None

    def _visit(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self._inputs[node.id] if node.id in self._inputs else expressions.CONSTANTS[node.id]
        if isinstance(node, ast.List | ast.Tuple):
            return [self._visit(element) for element in node.elts]
        key = ast.dump(node)
        if key not in self._done:
            self._done[key] = self._apply(node)
        return self._done[key]

    def _apply(self, node: ast.expr) -> Any:
        match node:
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._visit(operand)
            case ast.UnaryOp(operand=operand):
                return self._operate(node, "negative", [self._visit(operand)])
            case ast.BinOp(left=left, op=op, right=right):
                return self._operate(node, expressions.BINARY[type(op)], [self._visit(left), self._visit(right)])
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self._operate(node, expressions.COMPARISONS[type(op)], [self._visit(left), self._visit(right)])
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                named = {str(keyword.arg): self._visit(keyword.value) for keyword in keywords}
                return self._call(node, expressions.FUNCTIONS[name], [self._visit(argument) for argument in args], named)
        raise AssertionError(f"unchecked node {ast.dump(node)}")

    def _operate(self, node: ast.expr, name: str, operands: list[Any]) -> Any:
        if any(_graph.is_array(operand) for operand in operands):
            return self._call(node, name, operands, {})
        try:
            return _number(name, operands)
        except (ArithmeticError, TypeError, ValueError) as problem:
            raise self._failed(node, str(problem.args[-1])) from None

    def _call(self, node: ast.expr, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        values, named = args, kwargs
        try:
            values, named = _calls.prepared(self._mx, name, args, kwargs)
            function = _calls.function(self._mx, name)
            if self._measure:
                self.needed += _graph.needed(self._mx, function, values, named)
            return function(*values, **named)
        except InvalidRequest as problem:
            raise self._failed(node, str(problem)) from None
        except _calls.MLX_RAISES as problem:
            raise self._failed(node, _calls.explained(name, problem, values, named)) from None

    def _failed(self, node: ast.expr, problem: str) -> InvalidRequest:
        return InvalidRequest.of("expression", f"at {expressions.place(self._expression.source, node)}: {problem}")


_NUMBERS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "negative": operator.neg,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "equal": operator.eq,
    "not_equal": operator.ne,
}


def _number(name: str, operands: list[Any]) -> Any:
    """Compute with plain numbers as Python does, within 64 bits."""
    if name == "matmul":
        raise TypeError("@ multiplies arrays, not numbers")
    if name == "power":
        base, exponent = operands
        small = isinstance(base, int) and isinstance(exponent, int) and exponent >= 0 and base.bit_length() * exponent <= 63
        result = base**exponent if small else float(base) ** float(exponent)
    else:
        result = _NUMBERS[name](*operands)
    if type(result) is complex:
        raise ArithmeticError("the result is a complex number")
    if isinstance(result, int) and abs(result) > MAX_INTEGER:
        raise ArithmeticError("the result is an integer of more than 64 bits: write a factor with a decimal point, as in 2.0")
    return result


operation = Operation(
    name="compute",
    summary="Evaluate an array expression such as sum(tanh(a @ b) + c) over named inputs.",
    params=Params,
    run=run,
    memory=memory,
    seconds=seconds,
    warm=numerics.warm,
    shared=True,
)
