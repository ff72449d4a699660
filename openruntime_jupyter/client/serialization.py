"""Pickles of calls and variables, and errors that name the values that can't be pickled or sent."""

from __future__ import annotations

import base64
import inspect
import linecache
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from types import CodeType
from typing import Any

from openruntime_jupyter.arrays.function_pickler import pickled
from openruntime_jupyter.client.arrays import ArrayUploads, no_room, pickles_with_arrays
from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError, Unavailable

LARGEST_TEXT = 1_000_000
"""Bytes up to which a pickle is text among the parameters; a larger one is sent beside the request, as arrays are."""


def pack_call(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    uploads: ArrayUploads | None = None,
    codes: list[CodeType] | None = None,
) -> str | dict[str, str]:
    """Pickle `function` and its arguments, large arrays into `parcel`; collect the code that travels by value in `codes`.

    Returns base64 text, or the reference of a pickle that was too large for that. Raises `InvalidRequest` that names the value that can't
    be pickled, and `InvalidRequest` or `Unavailable` that names the largest one where there is no room.
    """
    try:
        return _encode((function, args, kwargs), uploads, codes)
    except (InvalidRequest, Unavailable) as problem:  # of the parcel
        named = [*_named_arguments(function, args, kwargs), *(_used_variables(function) or {_name(function): function}).items()]
        raise _no_room(named, problem) from problem
    except OpenRuntimeError:
        raise
    except Exception as problem:  # an object's own __reduce__ may raise anything
        if not _travels(function):
            raise _stuck_function(function, problem) from problem
        raise _stuck(_named_arguments(function, args, kwargs), problem, "the arguments") from problem


def pack_variables(variables: dict[str, Any], uploads: ArrayUploads | None = None) -> str | dict[str, str] | None:
    """Pickle variables by name, as `pack_call` does; return None where there are none."""
    if not variables:
        return None
    try:
        return _encode(variables, uploads)
    except (InvalidRequest, Unavailable) as problem:  # of the parcel
        raise _no_room(variables.items(), problem) from problem
    except OpenRuntimeError:
        raise
    except Exception as problem:  # as above
        raise _stuck(variables.items(), problem, "the variables") from problem


def unpack(payload: bytes, encoding: str, views: Iterable[Any] = ()) -> Any:
    """What a task returned, `views` being its large arrays.

    Raises `OpenRuntimeError` where this process can't rebuild it, and says why.
    """
    if encoding not in ("cloudpickle", "cloudpickle+arrays"):
        raise OpenRuntimeError(f"the result is encoded as {encoding!r}, which this version can't read: update openruntime-jupyter here")
    try:
        return pickle.loads(payload, buffers=iter(views))  # noqa: S301 - it is the caller's own code that made it
    except ModuleNotFoundError as problem:
        raise OpenRuntimeError(f"the result needs the package {problem.name!r}: install it for {sys.executable}") from problem
    except Exception as problem:  # an object's own __setstate__ may raise anything
        raise OpenRuntimeError(f"the result can't be rebuilt here: {_said(problem)}") from problem


def _encode(value: Any, uploads: ArrayUploads | None, codes: list[CodeType] | None = None) -> str | dict[str, str]:
    if uploads is None or not pickles_with_arrays():
        stream = pickled(value, codes)
    else:
        from openruntime_jupyter.arrays import pickling

        stream = pickling.pack_stream(value, uploads.keep, codes)
    if uploads is None or stream.nbytes <= LARGEST_TEXT:
        return base64.b64encode(stream.join()).decode()
    return uploads.keep_pickle(stream)


def _travels(value: Any) -> bool:
    try:
        _size(value)
    except Exception:  # as above
        return False
    return True


def _size(value: Any) -> int:
    from openruntime_jupyter.arrays import pickling

    return pickling.measure(value)


def _no_room(named: Iterable[tuple[str, Any]], problem: InvalidRequest | Unavailable) -> OpenRuntimeError:
    """Return `problem` with the name, type and size of the largest value."""
    sizes = [(_size(value), name, type(value).__name__) for name, value in named if _travels(value)]
    if not sizes:
        return problem
    size, name, kind = max(sizes)
    return no_room(name, kind, size, problem)


def _said(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"


def _stuck(named: Iterable[tuple[str, Any]], problem: Exception, together: str) -> InvalidRequest:
    """The error that names the first value which can't be pickled by itself."""
    for name, value in named:
        if not _travels(value):
            return InvalidRequest.of(
                name, f"this {type(value).__name__} can't travel to a worker ({_said(problem)}): make it inside the task instead"
            )
    return InvalidRequest.of(together, f"they can't travel to a worker together ({_said(problem)})")


def _stuck_function(function: Callable[..., Any], problem: Exception) -> InvalidRequest:
    name = _name(function)
    for variable, value in _used_variables(function).items():
        if not _travels(value):
            stuck = f"the function {name} uses it, and this {type(value).__name__} can't travel to a worker ({_said(problem)})"
            return InvalidRequest.of(variable, f"{stuck}: make it inside the function instead")
    return InvalidRequest.of(name, f"this function can't travel to a worker ({_said(problem)}): make it inside the task instead")


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", repr(function)))


def _used_variables(function: Callable[..., Any]) -> Mapping[str, Any]:
    if isinstance(function, partial):
        return {
            "func": function.func,
            **{f"argument {number}": value for number, value in enumerate(function.args, 1)},
            **function.keywords,
        }
    try:
        used = inspect.getclosurevars(function)
    except (TypeError, ValueError):  # a callable object, or a closure that is not filled yet
        return getattr(function, "__dict__", {})
    defaults = inspect.signature(function).parameters
    return {
        **used.nonlocals,
        **used.globals,
        **{name: entry.default for name, entry in defaults.items() if entry.default is not entry.empty},
    }


def _named_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    try:
        return list(inspect.signature(function).bind(*args, **kwargs).arguments.items())
    except (TypeError, ValueError):  # no signature, or arguments that don't fit it
        return [*((f"argument {number}", value) for number, value in enumerate(args, 1)), *kwargs.items()]


LONGEST_SOURCE = 50_000
"""Characters of one function that go with it."""


def sources_of(codes: Iterable[CodeType], local: bool) -> list[dict[str, Any]]:
    """The lines of functions that travel by value, as `call` takes them; `local`: a file that is here is there too."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for code in codes:
        first, last = code.co_firstlineno, _last_line(code)
        known = spans.setdefault(code.co_filename, [])
        if not any(start <= first and last <= end for start, end in known):  # as a function within a function is
            known.append((first, last))
    return [
        {"file": file, "first": first, "text": text}
        for file, found in spans.items()
        if not (local and os.access(file, os.R_OK)) and (lines := linecache.getlines(file))
        for first, last in found
        if 0 < len(text := "".join(lines[first - 1 : last])) <= LONGEST_SOURCE
    ]


@lru_cache(maxsize=1000)
def _last_line(code: CodeType) -> int:
    if sys.version_info >= (3, 11):
        return max((end for _, end, _, _ in code.co_positions() if end), default=code.co_firstlineno)
    return max((line for _, _, line in code.co_lines() if line), default=code.co_firstlineno)
