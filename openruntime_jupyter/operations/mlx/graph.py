"""Memory estimate of a call from its lazy graph, before anything is allocated.

A failed allocation in MLX is a segmentation fault, so the estimate must come first. `mx.export_function` traces the call and lists every
primitive with the shapes of its outputs, without computing them. The estimate is the sum over all outputs. Evaluation needs less where
MLX reuses buffers, but can need all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from openruntime_jupyter.operations.inputs import MAX_ELEMENTS

_VIEW_NAMES = """
    AsStrided Broadcast BroadcastAxes Copy Depends DynamicSlice ExpandDims Slice Split Squeeze StopGradient Transpose Unflatten View
"""
_VIEWS = frozenset(_VIEW_NAMES.split())
"""Primitives that share the memory of their input."""
_FACTORISATIONS = frozenset(["Cholesky", "Eig", "Eigh", "Inverse", "LUF", "QRF", "SVD"])
"""LAPACK works on copies in addition to its outputs; by measurement, five times the input is enough."""
_COPYING = frozenset(["AddMM", "BlockMaskedMM", "FFT", "Hadamard", "Matmul"])
"""Primitives that copy broadcast views in their inputs to full size."""
UNTRACEABLE = 5
"""Factor on inputs and outputs of an untraceable call; by measurement, `solve` needs 4.5 and others less."""

_Array = tuple[str, tuple[int, ...], Any]
"""Name, shape and dtype of an array on the tape."""


def is_array(value: Any) -> bool:
    """Return whether `value` is an MLX array."""
    import mlx.core as mx

    return isinstance(value, mx.array)


def arrays(value: Any) -> list[Any]:
    """Return the MLX arrays in nested lists, in order."""
    if isinstance(value, list | tuple):
        return [array for each in value for array in arrays(each)]
    return [value] if is_array(value) else []


def needed(mx: Any, call: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> int:
    """Estimate the bytes of evaluating `call(*args, **kwargs)` in addition to its inputs, without allocating them.

    Exceptions of the call propagate. Raises ValueError if an array of the graph, views included, would have more than `MAX_ELEMENTS`
    elements.
    """
    inputs = arrays([args, list(kwargs.values())])
    outputs: list[Any] = []
    tape: list[dict[str, Any]] = []

    def traced(*stand_ins: Any) -> tuple[Any, ...]:
        left = iter(stand_ins)
        outputs[:] = arrays([call(*_replaced(args, left), **dict(zip(kwargs, _replaced(list(kwargs.values()), left), strict=True)))])
        return tuple(outputs)

    try:
        mx.export_function(tape.append, traced, *inputs)
    except (ValueError, RuntimeError):
        if not outputs:  # the call itself failed
            raise
        _check_sizes([array.shape for array in outputs])
        return UNTRACEABLE * sum(_size(("", array.shape, array.dtype)) for array in (*inputs, *outputs))
    return _sum(tape)


def _replaced(value: Any, left: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_replaced(each, left) for each in value)
    return next(left) if is_array(value) else value


def _sum(tape: list[dict[str, Any]]) -> int:
    results = {name for entry in tape if entry["type"] == "outputs" for name, *_ in entry["outputs"]}
    constants = [constant for entry in tape if entry["type"] == "constants" for _, constant in entry["constants"]]
    total = sum(_size(("", constant.shape, constant.dtype)) for constant in constants)
    broadcast: set[str] = set()
    for entry in tape:
        if entry["type"] != "primitive":
            continue
        made: list[_Array] = entry["outputs"]
        _check_sizes([shape for _, shape, _ in made])
        if entry["name"].startswith("Broadcast"):
            broadcast |= {name for name, *_ in made}
        # A view in the results counts in full, because its consumer may copy it.
        if entry["name"] not in _VIEWS or results & {name for name, *_ in made}:
            total += sum(map(_size, made))
        total += _workspace(entry, broadcast)
    return total


def _size(array: _Array) -> int:
    shape: tuple[int, ...] = array[1]
    return math.prod(shape) * int(array[2].size)  # MLX's own `.nbytes` is 64 bits wide and wraps around


def _workspace(entry: dict[str, Any], broadcast: set[str]) -> int:
    """Return the temporary bytes of a primitive, in addition to its inputs and outputs."""
    name: str = entry["name"]
    given: list[_Array] = entry["inputs"]
    if name in _FACTORISATIONS:
        return 5 * sum(map(_size, given))
    if name in _COPYING:
        return sum(_size(each) for each in given if name == "BlockMaskedMM" or each[0] in broadcast)
    if name == "Convolution":
        return _convolving(entry)
    return 0


def _convolving(entry: dict[str, Any]) -> int:
    """Return the temporary bytes of a convolution on the CPU.

    The input is padded and unfolded to one window per output position, except for dilated inputs (transposed convolutions). Half
    precision is computed in float32.
    """
    (_, (batch, *sides, channels), dtype), (_, weight, _) = entry["inputs"]
    _, before, after, _, dilation, *_ = entry["arguments"]
    padded = math.prod((side - 1) * step + 1 + low + high for side, step, low, high in zip(sides, dilation, before, after, strict=True))
    dilated = any(step != 1 for step in dilation)
    unfolded = 0 if dilated else math.prod(entry["outputs"][0][1][:-1]) * math.prod(weight[1:-1]) * channels
    size: int = max(4, dtype.size) * (batch * padded * channels + unfolded + math.prod(weight))
    return size


def _check_sizes(shapes: list[tuple[int, ...]]) -> None:
    for shape in shapes:
        if math.prod(shape) > MAX_ELEMENTS:
            text = " by ".join(map(str, shape))
            raise ValueError(f"an array of {text} has {math.prod(shape):,} elements; the maximum is {MAX_ELEMENTS:,}")
