"""How much memory a call needs, told from its lazy graph before anything is allocated.

MLX answers a failed allocation with a segmentation fault, so the figure has to be there first. `mx.export_function` traces the call
and names every primitive with the shapes of its outputs; none is computed. The figure is the sum over all of them, which evaluation
does not reach where it can reuse a buffer, but may where it runs ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from openruntime_jupyter.operations.inputs import MAX_ELEMENTS

_VIEWS = frozenset(
    [
        "AsStrided",
        "Broadcast",
        "BroadcastAxes",
        "Copy",
        "Depends",
        "DynamicSlice",
        "ExpandDims",
        "Slice",
        "Split",
        "Squeeze",
        "StopGradient",
        "Transpose",
        "Unflatten",
        "View",
    ]
)
"""Primitives that share their input's memory."""
_FACTORISATIONS = frozenset(["Cholesky", "Eig", "Eigh", "Inverse", "LUF", "QRF", "SVD"])
"""LAPACK works on copies beside its outputs: five of the input were enough for each, as measured."""
_COPYING = frozenset(["AddMM", "BlockMaskedMM", "FFT", "Hadamard", "Matmul"])
"""These copy an input that is a broadcast view to full size."""
UNTRACEABLE = 5
"""Times the inputs and outputs of a call that cannot be traced: `solve` needs 4.5 of them, as measured, the others less."""

_Array = tuple[str, tuple[int, ...], Any]
"""Name, shape and dtype of an array on the tape."""


def is_array(value: Any) -> bool:
    """Whether it is an MLX array."""
    import mlx.core as mx

    return isinstance(value, mx.array)


def arrays(value: Any) -> list[Any]:
    """Every MLX array in a value of nested lists, in order."""
    if isinstance(value, list | tuple):
        return [array for each in value for array in arrays(each)]
    return [value] if is_array(value) else []


def needed(mx: Any, call: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> int:
    """Bytes that evaluating `call(*args, **kwargs)` needs beside its inputs; none is allocated.

    What the call itself raises comes through. Raises ValueError if an array of the graph, views included, would have more
    than `MAX_ELEMENTS` elements.
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
        if not outputs:  # it is the call that failed
            raise
        _check_sizes([array.shape for array in outputs])
        return UNTRACEABLE * sum(map(_bytes, [*inputs, *outputs]))
    return _sum(tape)


def _replaced(value: Any, left: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_replaced(each, left) for each in value)
    return next(left) if is_array(value) else value


def _bytes(array: Any) -> int:
    return _size(("", array.shape, array.dtype))


def _sum(tape: list[dict[str, Any]]) -> int:
    results = {name for entry in tape if entry["type"] == "outputs" for name, *_ in entry["outputs"]}
    total = sum(_bytes(constant) for entry in tape if entry["type"] == "constants" for _, constant in entry["constants"])
    broadcast: set[str] = set()
    for entry in tape:
        if entry["type"] != "primitive":
            continue
        made: list[_Array] = entry["outputs"]
        _check_sizes([shape for _, shape, _ in made])
        if entry["name"].startswith("Broadcast"):
            broadcast |= {name for name, *_ in made}
        # A view that is a result counts in full, for whoever takes it may copy it.
        if entry["name"] not in _VIEWS or results & {name for name, *_ in made}:
            total += sum(map(_size, made))
        total += _workspace(entry, broadcast)
    return total


def _size(array: _Array) -> int:
    shape: tuple[int, ...] = array[1]
    return math.prod(shape) * int(array[2].size)  # MLX's own `.nbytes` is 64 bits wide and wraps around


def _workspace(entry: dict[str, Any], broadcast: set[str]) -> int:
    """Bytes that a primitive needs while it runs, beside its inputs and outputs."""
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
    """Bytes that a convolution needs on the CPU.

    Its input is padded, and unfolded so that each place of the output has its own window; not so where the input is dilated, as it
    is in a transposed convolution. Half precision is done in float32.
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
            raise ValueError(f"an array of {text} has {math.prod(shape):,} elements; the most is {MAX_ELEMENTS:,}")
