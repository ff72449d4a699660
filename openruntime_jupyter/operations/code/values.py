"""Encoding of Python values between a caller and a worker."""

from __future__ import annotations

import base64
import binascii
import json
import keyword
import os
import pickle
import reprlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from openruntime_jupyter.errors import StorageUnavailable, gigabytes
from openruntime_jupyter.operations.base import ArrayRef, Result, World, reference
from openruntime_jupyter.operations.context import TaskContext

REPR_CHARACTERS = 1000
JSON_CHARACTERS = 10_000

_short = reprlib.Repr()
_short.maxstring = _short.maxother = REPR_CHARACTERS
_encode = json.JSONEncoder(allow_nan=False).encode


def identifier(name: str) -> str:
    """Return `name` if it is a valid variable name; raise ValueError otherwise."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} is not a valid name of a Python variable")
    return name


def unpack(text: str) -> bytes:
    """Decode base64 text; raise ValueError."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as problem:
        raise ValueError(f"invalid base64: {problem}") from None


def _checked(pickled: str | ArrayRef) -> str | ArrayRef:
    if isinstance(pickled, str):
        unpack(pickled)
    return pickled


Pickled = Annotated[str | ArrayRef, BeforeValidator(reference), AfterValidator(_checked)]
"""Pickle as base64 text; large ones as an array of bytes."""


def summary(value: Any) -> dict[str, Any]:
    """Describe a value for display: `type`, a bounded `repr`, and `value` if it is short JSON."""
    if value is None:  # fast path for functions without a result
        return {"type": "NoneType", "repr": "None", "value": None}
    try:
        shown = repr(value) if isinstance(value, (int, float, complex, bool, type(None))) else _short.repr(value)
    except Exception as problem:  # a broken __repr__ must not fail the task
        shown = f"<repr failed: {problem!r}>"
    described: dict[str, Any] = {"type": type(value).__name__, "repr": shown[:REPR_CHARACTERS]}
    if isinstance(value, (str, int, float, bool, list, dict, type(None))):
        try:
            text = _encode(value)
        except (TypeError, ValueError, RecursionError):
            return described
        if len(text) <= JSON_CHARACTERS:
            described["value"] = value
    return described


def load(pickled: str | ArrayRef, arrays: Sequence[ArrayRef], what: str, context: TaskContext) -> Any:
    """Unpickle a value of the caller, from base64 text or an array of bytes, with its out-of-band arrays.

    Raises ModuleNotFoundError that names `what` and the missing module.
    """
    views = [context.array(each.array, "numpy") for each in arrays]
    data = unpack(pickled) if isinstance(pickled, str) else context.array(pickled.array, "numpy")
    try:
        return pickle.loads(data, buffers=views)  # noqa: S301 - code of the caller
    except ModuleNotFoundError as problem:
        raise ModuleNotFoundError(
            f"{what} needs the module {problem.name!r}, which the worker's interpreter {sys.executable} does not have", name=problem.name
        ) from problem


class Packed(Result):
    """Return value of a function that has pickled its result already."""


def dump(value: Any, what: str, context: TaskContext) -> tuple[bytes, str]:
    """Pickle a result with large arrays out of band; return the bytes and their encoding.

    Raises an error that names `what`: TypeError if it can't be pickled, `StorageUnavailable` if it does not fit on the disk.
    """
    try:
        return context.pack(value)
    except StorageUnavailable as problem:
        raise no_room(value, what, problem, context) from problem
    except Exception as problem:  # pickling runs the value's own code, which may raise anything
        raise not_picklable(value, what, problem) from problem


def no_room(value: Any, what: str, problem: StorageUnavailable, context: TaskContext) -> StorageUnavailable:
    """Return the error for a result that does not fit on the disk, with its total size."""
    kind, size = type(value).__name__, gigabytes(context.measure(value))
    return StorageUnavailable(f"{what} ({kind} of {size}): {problem}", problem.retry_after)


def not_picklable(value: Any, what: str, problem: Exception) -> TypeError:
    """Return the error for a value that can't be pickled."""
    return TypeError(f"{what} of type {type(value).__name__} can't be sent back: {problem}")


def enter(world: World) -> None:
    """Switch to the caller's working directory and import path; raise OSError if the directory can't be entered."""
    if world.directory is not None:
        try:
            os.chdir(world.directory)
        except OSError as problem:
            raise type(problem)(problem.errno, f"The caller's folder can't be entered ({problem.strerror})", world.directory) from None
    if world.path is not None:
        # The caller's path first, then the entries that this worker needs.
        sys.path[:] = world.path + [folder for folder in sys.path if folder not in world.path]
