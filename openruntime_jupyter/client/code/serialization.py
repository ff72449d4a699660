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
from openruntime_jupyter.client.notebook_file import ipython_shell
from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError, Unavailable

LARGEST_TEXT = 1_000_000
"""Maximum bytes of a pickle inside the parameters. Larger pickles are sent separately, like arrays."""


def pack_call(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    uploads: ArrayUploads | None = None,
    codes: list[CodeType] | None = None,
) -> str | dict[str, str]:
    """Pickle `function` and its arguments, large arrays into `uploads`; append code pickled by value to `codes`.

    Returns base64 text, or the reference of a larger pickle. Raises `InvalidRequest` with the name of the value that can't be
    pickled, and `InvalidRequest` or `Unavailable` with the name of the largest value if there is not enough space.
    """
    try:
        return _encode((function, args, kwargs), uploads, codes)
    except (InvalidRequest, Unavailable) as problem:  # raised by the uploads
        named = [*_named_arguments(function, args, kwargs), *(_used_variables(function) or {_name(function): function}).items()]
        raise _no_room(named, problem) from problem
    except OpenRuntimeError:
        raise
    except Exception as problem:  # an object's own __reduce__ may raise anything
        if not _picklable(function):
            raise _unpicklable_function(function, problem) from problem
        raise _unpicklable(_named_arguments(function, args, kwargs), problem, "the arguments") from problem


def pack_variables(variables: dict[str, Any], uploads: ArrayUploads | None = None) -> str | dict[str, str] | None:
    """Pickle variables by name, like `pack_call`. Return None for an empty dict or None."""
    if not variables:
        return None
    try:
        return _encode(variables, uploads)
    except (InvalidRequest, Unavailable) as problem:  # raised by the uploads
        raise _no_room(variables.items(), problem) from problem
    except OpenRuntimeError:
        raise
    except Exception as problem:  # as above
        raise _unpicklable(variables.items(), problem, "the variables") from problem


def unpack(payload: bytes, encoding: str, views: Iterable[Any] = ()) -> Any:
    """Return the result of a task from its pickle and `views`, its large arrays.

    Raises `OpenRuntimeError` with the reason if this process can't unpickle it.
    """
    if encoding not in ("cloudpickle", "cloudpickle+arrays"):
        raise OpenRuntimeError(f"Unknown encoding {encoding!r} of the result: update openruntime-jupyter here")
    try:
        return pickle.loads(payload, buffers=iter(views))  # noqa: S301 - the pickle comes from the caller's own code
    except ModuleNotFoundError as problem:
        raise OpenRuntimeError(f"The result needs the package {problem.name!r}: install it for {sys.executable}") from problem
    except Exception as problem:  # an object's own __setstate__ may raise anything
        raise OpenRuntimeError(f"The result can't be unpickled here: {_describe(problem)}") from problem


def _encode(value: Any, uploads: ArrayUploads | None, codes: list[CodeType] | None = None) -> str | dict[str, str]:
    if uploads is None or not pickles_with_arrays():
        stream = pickled(value, codes)
    else:
        from openruntime_jupyter.arrays import pickling

        stream = pickling.pack_stream(value, uploads.keep, codes)
    if uploads is None or stream.nbytes <= LARGEST_TEXT:
        return base64.b64encode(stream.join()).decode()
    return uploads.keep_pickle(stream)


def _picklable(value: Any) -> bool:
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
    sizes = [(_size(value), name, type(value).__name__) for name, value in named if _picklable(value)]
    if not sizes:
        return problem
    size, name, kind = max(sizes)
    return no_room(name, kind, size, problem)


def _describe(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"


def _unpicklable(named: Iterable[tuple[str, Any]], problem: Exception, together: str) -> InvalidRequest:
    """Return an error with the name of the first value that can't be pickled by itself."""
    for name, value in named:
        if not _picklable(value):
            return InvalidRequest.of(
                name, f"this {type(value).__name__} can't be pickled for a worker ({_describe(problem)}): create it inside the task instead"
            )
    return InvalidRequest.of(together, f"can't be pickled together for a worker ({_describe(problem)})")


def _unpicklable_function(function: Callable[..., Any], problem: Exception) -> InvalidRequest:
    name = _name(function)
    for variable, value in _used_variables(function).items():
        if not _picklable(value):
            stuck = f"the function {name} uses this {type(value).__name__}, which can't be pickled for a worker ({_describe(problem)})"
            return InvalidRequest.of(variable, f"{stuck}: create it inside the function instead")
    return InvalidRequest.of(name, f"this function can't be pickled for a worker ({_describe(problem)}): create it inside the task instead")


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
    except (TypeError, ValueError):  # a callable object, or a closure with an unset variable
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
    except (TypeError, ValueError):  # no signature, or arguments that don't match it
        return [*((f"argument {number}", value) for number, value in enumerate(args, 1)), *kwargs.items()]


LONGEST_NAME = 200


def named(function: Callable[..., Any]) -> dict[str, str]:
    """Return the name and, if known, the source location of a function, as `call` takes them."""
    while isinstance(function, partial):
        function = function.func
    found = {"function": str(getattr(function, "__qualname__", type(function).__qualname__))[:LONGEST_NAME]}
    code = getattr(inspect.unwrap(function) if inspect.isroutine(function) else function, "__code__", None)
    if isinstance(code, CodeType):
        shell = ipython_shell()
        cell = shell.compile.format_code_name(code.co_filename) if shell is not None else None
        place = " ".join(cell) if cell is not None else code.co_filename
        found["location"] = f"{place[-4000:]}, line {code.co_firstlineno}"
    return found


LONGEST_SOURCE = 50_000
"""Maximum characters of source sent with a function."""


def sources_of(codes: Iterable[CodeType], local: bool) -> list[dict[str, Any]]:
    """Return the source lines of functions pickled by value, as `call` takes them. `local`: the runtime can read the local files."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for code in codes:
        first, last = code.co_firstlineno, _last_line(code)
        known = spans.setdefault(code.co_filename, [])
        if not any(start <= first and last <= end for start, end in known):  # a nested function is part of the outer one
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
