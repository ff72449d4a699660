"""Calls of MLX functions with untrusted values: conversion of arguments, and rejection of those that crash MLX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from openruntime_jupyter.arrays.array_layout import SIZES
from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations.mlx import functions as _functions
from openruntime_jupyter.operations.mlx.functions import Parameter
from openruntime_jupyter.operations.mlx.graph import is_array
from openruntime_jupyter.operations.numerics import mlx_dtype

MLX_RAISES = (ValueError, TypeError, RuntimeError, OverflowError, IndexError, NotImplementedError, MemoryError)
"""Exceptions of MLX for invalid arguments. (NotImplementedError is a RuntimeError, listed for clarity.)"""

_INT32 = range(-(2**31), 2**31)
_GROUP_SIZES = (16, 32, 64, 128)
_CONVOLUTION_STEPS = ("stride", "dilation", "kernel_dilation", "input_dilation", "groups")
_EMPTY_ALLOWED = ("conj", "conjugate", "linalg.cross", "linalg.norm")


def function(mx: Any, name: str) -> Callable[..., Any]:
    """Return a function by dotted name, with a fallback to the CPU without a GPU kernel; raise `InvalidRequest` if MLX lacks it."""
    target: Any = _SAFE.get(name)
    if target is None:
        target = mx
        for part in name.split("."):
            target = getattr(target, part, None)
        if target is None:
            raise InvalidRequest.of("function", f"the installed MLX {mx.__version__} has no {name}")

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return target(*args, **kwargs)
        except ValueError as problem:
            # Much of linalg has no GPU kernel. MLX raises when the graph is built, and requires an explicit CPU stream.
            if "CPU stream" not in str(problem):
                raise
            with mx.stream(mx.cpu):
                return target(*args, **kwargs)

    return call


def prepared(mx: Any, name: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Convert arguments for MLX: lists to arrays where the function takes arrays, names to dtypes, integers to keys.

    Raises ValueError for arguments that would crash MLX or make it loop endlessly.
    """
    signature = _functions.signature(name)
    pairs = [(value, signature.at(index)) for index, value in enumerate(args)]
    pairs += [(value, signature.by_name.get(key)) for key, value in kwargs.items()]
    if any(not _fits(value) for value, parameter in pairs if parameter is None or not (parameter.takes_array or parameter.is_seed)):
        raise ValueError("an integer outside of an array must fit into 32 bits")  # MLX would crash the process
    by_position = [_converted(mx, *pair) for pair in pairs[: len(args)]]
    by_name = {key: _converted(mx, *pair) for key, pair in zip(kwargs, pairs[len(args) :], strict=True)}
    for key, parameter in signature.by_name.items():
        if parameter.is_key and key not in by_name and parameter not in signature.positional[: len(args)]:
            by_name[key] = mx.random.key(0)  # for reproducible tasks without state in the worker
    named = {parameter.name: value for parameter, value in zip(signature.positional, by_position, strict=False) if not parameter.variadic}
    _refuse_fatal(name, {**named, **by_name}, [*by_position, *by_name.values()])
    return by_position, by_name


def described(args: list[Any], kwargs: dict[str, Any]) -> str:
    """Format the arguments of a call: `float32[3, 4], axis=7`."""
    texts = [_described(value) for value in args] + [f"{key}={_described(value)}" for key, value in kwargs.items()]
    return ", ".join(texts) or "nothing"


def explained(name: str, problem: BaseException, args: list[Any], kwargs: dict[str, Any]) -> str:
    """Format MLX's error for a call with the shapes of the arguments; replace lists of types by the signature."""
    text = str(problem) or type(problem).__name__
    if "incompatible function arguments" in text:
        text = f"invalid arguments; the signature is {_functions.functions()[name]}"
    elif "bad_cast" in text:
        text = "a number does not fit its type"
    return f"{name}({described(args, kwargs)}): {text}"


def _described(value: Any) -> str:
    if is_array(value):
        return f"{str(value.dtype).rpartition('.')[2]}{list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_described, value[:8]))}{', …' if len(value) > 8 else ''}]"
    text = repr(value).removeprefix("mlx.core.")
    return text if len(text) <= 60 else f"{text[:60]}…"


def _converted(mx: Any, value: Any, parameter: Parameter | None) -> Any:
    if is_array(value):
        # Replace empty arrays: MLX loops endlessly when it sums over a transposed empty view.
        return value if math.prod(value.shape) else mx.zeros(value.shape, dtype=value.dtype)
    if parameter is None:
        return value
    if isinstance(value, list):
        return _converted_list(mx, value, parameter)
    if parameter.is_key and isinstance(value, int):
        return mx.random.key(value)
    if isinstance(value, str):
        if parameter.takes_dtype and value in SIZES:
            return mlx_dtype(value)
        return float(value) if parameter.takes_number and value in ("inf", "-inf") else value
    if isinstance(value, int | float) and parameter.takes_array and not parameter.takes_number:
        return mx.array(value)
    return value


def _converted_list(mx: Any, value: list[Any], parameter: Parameter) -> Any:
    if parameter.takes_arrays:
        return [each if is_array(each) else mx.array(each) for each in value]
    if not parameter.takes_array:
        return value
    if any(is_array(each) for each in value):
        raise ValueError(f"{parameter.name} must be one array, not a list of arrays")
    return mx.array(value)


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, int | float):
        yield value


def _fits(value: Any) -> bool:
    return not any(isinstance(each, int) and each not in _INT32 for each in _numbers(value))


def _refuse_fatal(name: str, given: dict[str, Any], values: list[Any]) -> None:
    """Raise for arguments that crash MLX 0.32 or make it loop endlessly."""
    if name.startswith(("linalg.", "conv")) and name not in _EMPTY_ALLOWED and any(is_array(each) and not each.size for each in values):
        raise ValueError("an array is empty")  # LAPACK and BLAS exit the process, or trap
    if name in ("linalg.eig", "linalg.eigvals") and not all(_is_finite(each) for each in values if is_array(each)):
        raise ValueError("an array has infinities or NaNs")  # LAPACK exits the process
    if name.startswith("conv"):
        low = [key for key in _CONVOLUTION_STEPS if any(number < 1 for number in _numbers(given.get(key)))]
        if low:
            raise ValueError(f"{low[0]} is {given[low[0]]}, but must be at least 1")
    if given.get("group_size") is not None and given["group_size"] not in _GROUP_SIZES:
        raise ValueError(f"group_size is {given['group_size']!r}; allowed: {', '.join(map(str, _GROUP_SIZES))}")
    if name in ("reshape", "unflatten") and isinstance(shape := given.get("shape"), list) and 0 in shape and -1 in shape:
        raise ValueError("shape can't have both 0 and -1")
    plain_pad = name == "pad" and given.get("mode", "constant") == "constant"
    if (bound := _BOUNDS.get(name)) is not None and not plain_pad:
        key, array, most = bound
        sides = given[array].shape if is_array(given.get(array)) else ()
        for number in _numbers(given.get(key)):
            if abs(number) > most(sides):
                raise ValueError(f"{key} is {number}; the maximum here is {most(sides)}")


def _is_finite(array: Any) -> bool:
    import mlx.core as mx

    return bool(mx.all(mx.isfinite(array)).item())


_BOUNDS: dict[str, tuple[str, str, Callable[[tuple[int, ...]], int]]] = {
    # The limited number, the array, and the limit as a function of its shape.
    "diff": ("n", "a", lambda sides: 64),
    "pad": ("pad_width", "a", lambda sides: 2**30 if not sides else 1000 * max(1, min(sides))),
    "fft.stft": ("n_fft", "x", lambda sides: 1000 * max((1, *sides[-1:]))),
    "trace": ("offset", "a", lambda sides: max((1, *sides)) - 1),
}


def _divided(x: Any, y: Any) -> tuple[Any, Any]:
    """Return quotient and remainder, rounded down. Integers divided by zero give 0 and 0, as in NumPy, instead of a trap."""
    import mlx.core as mx

    dtype = mx.remainder(x, y).dtype  # only for the dtype; never evaluated
    if not mx.issubdtype(dtype, mx.integer):
        return mx.floor_divide(x, y), mx.remainder(x, y)
    x, y = mx.array(x).astype(dtype), mx.array(y).astype(dtype)
    zero, one = mx.zeros((), dtype=x.dtype), mx.ones((), dtype=x.dtype)
    signed = mx.issubdtype(x.dtype, mx.signedinteger)
    minus = y == -one if signed else mx.zeros((), dtype=mx.bool_)  # the smallest integer by -1 traps too
    safe = mx.where(mx.logical_or(y == zero, minus), one, y)
    quotient = mx.where(minus, zero - x, x // safe) if signed else x // safe
    return mx.where(y == zero, zero, quotient), mx.where(y == zero, zero, x % safe)


_SAFE: dict[str, Callable[..., Any]] = {
    "divmod": _divided,
    "floor_divide": lambda a, b: _divided(a, b)[0],
    "remainder": lambda a, b: _divided(a, b)[1],
}
