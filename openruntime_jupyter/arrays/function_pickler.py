"""Pickler for values and functions: cloudpickle that also keeps file names in code and supports MLX objects.

MLX functions, dtypes and devices are pickled by name. Functions returned by `mx.compile` are compiled again when they are unpickled.
Functions returned by `mx.grad`, `mx.vmap` and similar transforms are rejected: their `__class__` is that of a plain function, and
cloudpickle would send only the function inside.
"""

from __future__ import annotations

import functools
import gc
import pickle
import sys
import weakref
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import cloudpickle

NAMELESS = "<dynamic-code>"
"""File name that cloudpickle 3.1 and later gives to all code."""


class FunctionPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickler that keeps file names in code; `codes` collects the code of functions that are pickled by value."""

    def __init__(self, file: Any, codes: list[CodeType] | None = None, **options: Any) -> None:
        super().__init__(file, protocol=5, **options)
        self._codes = codes

    def reducer_override(self, obj: Any) -> Any:
        """Reduce code, MLX objects and wrappers; leave the rest to cloudpickle. See `pickle`."""
        kind = type(obj)
        if kind is CodeType:
            return self._code(obj)
        if kind is FunctionType:
            return super().reducer_override(obj)
        reduce = _REDUCERS.get((kind.__module__, kind.__qualname__))
        if reduce is not None:
            return reduce(obj)
        if obj.__class__ is not kind and kind not in weakref.ProxyTypes and kind not in self.dispatch_table:
            return _disguised(obj)
        return super().reducer_override(obj)

    def _code(self, code: CodeType) -> Any:
        if self._codes is not None:
            self._codes.append(code)
        make, arguments = self.dispatch_table[CodeType](code)
        return make, tuple(code.co_filename if type(each) is str and each == NAMELESS else each for each in arguments)


class Stream:
    """A pickle in the pieces that the pickler wrote. Large `bytes` are referenced, not copied."""

    def __init__(self) -> None:
        self.pieces: list[memoryview] = []
        self.nbytes = 0

    def write(self, data: Any) -> int:
        """Append `data`; return its size in bytes."""
        piece = pickle.PickleBuffer(data).raw()
        self.pieces.append(piece)
        self.nbytes += piece.nbytes
        return piece.nbytes

    def join(self) -> bytes:
        """Return the whole pickle."""
        return b"".join(self.pieces)


def pickled(value: Any, codes: list[CodeType] | None = None) -> Stream:
    """Pickle `value` with everything in the stream. Exceptions of the pickling propagate."""
    stream = Stream()
    FunctionPickler(stream, codes).dump(value)
    return stream


def mlx(name: str) -> Any:
    """Return the object of `mlx.core` with that dotted name."""
    import mlx.core as mx

    return functools.reduce(getattr, name.split("."), mx)


def random_state(key: tuple[int, int]) -> Any:
    """Return `mx.random.state` with that key. In a task, set and return MLX's state; elsewhere return a list with the key."""
    import mlx.core as mx

    from openruntime_jupyter.current_task import current

    if current() is None:  # a result must not change the state of the process that reads it
        return [mx.array(key, dtype=mx.uint32)]
    mx.random.seed(key[0] << 32 | key[1])
    return mx.random.state


def compiled(function: Any) -> Any:
    """Compile `function` again."""
    import mlx.core as mx

    return mx.compile(function)


def _named(obj: Any) -> str | None:
    """Return the qualified name of `obj` in its module; None if another process could not import it by that name."""
    module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__" or module not in sys.modules:
        return None
    if any(module == each or module.startswith(f"{each}.") for each in cloudpickle.list_registry_pickle_by_value()):
        return None
    try:
        target = functools.reduce(getattr, name.split("."), sys.modules[module])
    except AttributeError:
        return None
    return name if target is obj else None


def _by_name(obj: Any) -> str:
    name = _named(obj)
    if name is None:
        raise pickle.PicklingError(f"this {type(obj).__name__} can't be imported by name from a module")
    return name


def _method(method: Any) -> Any:
    return getattr, (method.__self__, method.__name__)


def _dtype(dtype: Any) -> Any:
    name = str(dtype).removeprefix("mlx.core.")
    return mlx, ("bool_" if name == "bool" else name,)


def _limits(limits: Any) -> Any:
    return type(limits), (limits.dtype,)


def _device(device: Any) -> Any:
    index = int(str(device).rpartition(",")[2].strip(" )"))  # MLX exposes the index only in the text
    if (made := type(device)(device.type, index)) != device:
        raise pickle.PicklingError(f"{device} is not {made}")
    return type(device), (device.type, index)


def _stream(stream: Any) -> Any:
    default = sys.modules["mlx.core"].default_stream
    if stream != default(stream.device):
        raise pickle.PicklingError("only the default stream of a device has a counterpart in another process")
    return default, (stream.device,)


def _random_state(state: Any) -> Any:
    (key,) = state
    return random_state, (tuple(key.tolist()),)


def _transform(obj: Any) -> Any:
    """Reduce the result of an MLX function transform by name, or by compiling again if it certainly comes from `mx.compile`.

    A compiled function without states refers to None, None and the function. `mx.vmap` has its axes there, which are never None. MLX
    has no public way to the function inside; `test_compiled_functions_compute_the_same` and `test_transforms_are_rejected_anywhere` need
    this one.
    """
    if (name := _named(obj)) is not None:
        return name
    kind, *parts = gc.get_referents(obj)
    if kind is type(obj) and len(parts) == 3 and parts[0] is None and parts[1] is None and _layout_is_known():
        return compiled, (parts[2],)
    raise pickle.PicklingError("functions returned by mx.grad, mx.vmap, other MLX transforms, or mx.compile with states can't be pickled")


@functools.cache
def _layout_is_known() -> bool:
    """Return whether this version of MLX has the layout by which `_transform` recognizes a compiled function."""
    mx = sys.modules["mlx.core"]

    def probe(x: Any) -> Any:
        return x

    def parts(made: Any) -> list[Any]:
        return gc.get_referents(made)[1:]

    for axes in ("in_axes", "out_axes"):
        try:
            mx.vmap(probe, **{axes: None})
        except TypeError:
            continue
        return False
    return (
        parts(mx.compile(probe)) == [None, None, probe]
        and parts(mx.vmap(probe, 0, 1)) == [0, 1, probe]
        and all(parts(make(probe)) == [probe] for make in (mx.grad, mx.value_and_grad, mx.checkpoint))
    )


def _cached(function: Any) -> Any:
    """Reduce a `functools.lru_cache` wrapper by name, or as an empty cache around the function if it is not importable."""
    return _named(function) or (_cache, (function.__wrapped__, function.cache_parameters()))


def _cache(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _disguised(obj: Any) -> Any:
    """Reduce an object whose `__class__` is not its type, by name or by the method of its real type."""
    if (name := _named(obj)) is not None:
        return name
    kind: Any = type(obj)
    if any(getattr(kind, name) is not getattr(object, name) for name in ("__reduce__", "__reduce_ex__")):
        return kind.__reduce_ex__(obj, 5)
    raise pickle.PicklingError(f"this {kind.__qualname__} can't be pickled: its __class__ is {obj.__class__.__qualname__}")


_REDUCERS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("nanobind", "nb_func"): _by_name,
    ("nanobind", "nb_method"): _by_name,
    ("nanobind", "nb_bound_method"): _method,
    ("mlx.core", "Dtype"): _dtype,
    ("mlx.core", "Device"): _device,
    ("mlx.core", "Stream"): _stream,
    ("mlx.core", "finfo"): _limits,
    ("mlx.core", "iinfo"): _limits,
    ("mlx.core", "_gc_func"): _transform,
    ("mlx.core.random", "_RandomState"): _random_state,
    ("functools", "_lru_cache_wrapper"): _cached,
}
"""Reducers by module and name of the type, so that a look-up does not import MLX."""
