"""Base classes of operations: name, typed parameters, and a function that a worker runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails

from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.schemas.values import ModelSource

log = logging.getLogger(__name__)

PROMPT_TIMEOUT = 300.0
"""Default timeout of a prompt in seconds."""


class Parameters(BaseModel):
    """Base of every operation's `Params`: unknown fields are rejected, and every field has a default."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class ModelParameters(Parameters):
    """Base of the `Params` of operations that run a local model."""

    model: str | None = Field(None, description="Name or path of a local model; null for the default one.", max_length=4096)
    adapter: str | None = Field(
        None, description="Path of a LoRA adapter for the model: a GGUF file, or a folder of mlx-lm; null: none.", max_length=4096
    )
    keep_alive: float | None = Field(
        None, description="Seconds that the model stays in memory afterwards; null for the runtime's setting.", ge=0, le=31_536_000
    )
    _source: ModelSource | None = PrivateAttr(None)

    @property
    def source(self) -> ModelSource | None:
        """Return the entry of the model catalog for `model`; None before `use`."""
        return self._source

    def use(self, source: ModelSource) -> None:
        """Set the entry of the model catalog, for estimates and for the operation."""
        self._source = source


class ArrayRef(Parameters):
    """Parameter that refers to an array in the spool; `context.array(ref.array)` returns its value.

    The runtime sets `shape`, `dtype` and `nbytes` before it calls `memory`, `seconds` or `run`.
    """

    array: str = Field(description="The array's id.", min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    _layout: tuple[tuple[int, ...], str, int] | None = PrivateAttr(None)

    def resolve(self, shape: tuple[int, ...], dtype: str, nbytes: int) -> None:
        """Set shape, dtype and size in bytes of the array."""
        self._layout = (shape, dtype, nbytes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape; empty before `resolve`."""
        return self._layout[0] if self._layout is not None else ()

    @property
    def dtype(self) -> str:
        """Return the dtype name of MLX; empty before `resolve`."""
        return self._layout[1] if self._layout is not None else ""

    @property
    def nbytes(self) -> int:
        """Return the size of the elements in bytes; 0 before `resolve`."""
        return self._layout[2] if self._layout is not None else 0

    @property
    def elements(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


def reference(value: Any) -> Any:
    """Convert `{"array": text}` to an `ArrayRef`; return any other value unchanged."""
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("array"), str):
        return ArrayRef.model_validate(value)
    return value


_HOLDERS = (BaseModel, dict, list, tuple)
"""Types that may contain references; checked first, because lists may have millions of numbers."""


def references(value: BaseModel | dict[str, Any] | list[Any] | tuple[Any, ...]) -> Iterator[ArrayRef]:
    """Yield the references in validated parameters, in order."""
    if isinstance(value, ArrayRef):
        yield value
        return
    parts = vars(value).values() if isinstance(value, BaseModel) else value.values() if isinstance(value, dict) else value
    if not any(issubclass(kind, _HOLDERS) for kind in set(map(type, parts))):
        return
    for each in parts:
        if each and isinstance(each, _HOLDERS):
            yield from references(each)


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("has a NUL character, which is invalid in a path")
    return text


PathText = Annotated[str, AfterValidator(_path)]

MOST_VARIABLES = 1_000
LONGEST_VARIABLE = 100_000
LARGEST_ENVIRONMENT = 500_000
"""Maximum number of variables, bytes of one with its name, and bytes of all. Linux rejects variables of 128 KiB or more."""


def _few_variables(variables: Any) -> Any:
    # Before each variable is validated, because many errors take long.
    if isinstance(variables, dict) and len(variables) > MOST_VARIABLES:
        raise ValueError(f"has {len(variables):,} variables, and at most {MOST_VARIABLES:,} are allowed: remove some from os.environ")
    return variables


def _environment(variables: dict[str, str | None]) -> dict[str, str | None]:
    total = 0
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"{name!r} is not a valid variable name: it is empty, or has '=' or a NUL character")
        if value is not None and "\0" in value:
            raise ValueError(f"{name} has a NUL character, which is invalid in a variable")
        try:
            size = len(name.encode()) + len((value or "").encode())
        except UnicodeEncodeError:
            raise ValueError(f"{name!r} is not valid Unicode") from None
        if size > LONGEST_VARIABLE:
            raise ValueError(f"{name[:100]} has {size:,} bytes, and at most {LONGEST_VARIABLE:,} are allowed: pass the value in a file")
        total += size
    if total > LARGEST_ENVIRONMENT:
        raise ValueError(f"has {total:,} bytes, and at most {LARGEST_ENVIRONMENT:,} are allowed: remove variables from os.environ")
    return variables


class World(Parameters):
    """Environment of the caller's code: interpreter, folder, import path and environment variables."""

    interpreter: PathText | None = Field(
        None, description="Path of the Python interpreter; null for the runtime's interpreter.", max_length=4096
    )
    directory: PathText | None = Field(None, description="Working directory.", max_length=4096)
    path: list[PathText] | None = Field(None, description="`sys.path` of the caller.", max_length=1000)
    environment: Annotated[dict[str, str | None], BeforeValidator(_few_variables), AfterValidator(_environment)] = Field(
        {},
        description="Environment variables that the caller has set since it started; null for removed ones. At most 1,000, "
        "of 100,000 bytes each and 500,000 bytes together, names included.",
    )
    kernel: str | None = Field(
        None, description="Random id of the calling process. Tasks of different callers do not share imports.", max_length=64
    )
    python: str | None = Field(
        None,
        description="Minor version of the caller's Python, such as `3.11`. Pickled code runs only on hosts with the same.",
        pattern=r"^\d{1,3}\.\d{1,3}$",
    )
    notebook: str | None = Field(None, description="Path of the calling notebook. Each notebook has separate sessions.", max_length=4096)


@dataclass(slots=True)
class Result:
    """Return value of `run` with a payload: `output` for JSON, and bytes that only the caller opens."""

    output: dict[str, Any]
    payload: bytes | None = None
    encoding: str = "cloudpickle"


@dataclass(frozen=True)
class Operation:
    """A named kind of work.

    `run(params, context)` is called in a worker, on its main thread, and returns a dict for JSON or a `Result`. `memory(params)` and
    `seconds(params)` estimate bytes and seconds from the parameters alone, or return None. They are called in the server and must not
    import MLX; an exception in them is logged and counts as None. `warm()` is called in a worker before its first task of this kind, for
    slow imports.

    A `shared` operation leaves no state in a worker (modules of its caller, seeds, settings), so its tasks run one after the other in one
    process. Each task of any other operation runs in a new process.

    An `inline` operation waits for I/O instead of computing, so the runtime's event loop runs it and never calls its `run`. A `resident`
    operation has `ModelParameters` and runs in the worker of that model. Both answer prompts, and have the timeout `PROMPT_TIMEOUT` unless
    the request sets one.
    """

    name: str
    summary: str
    params: type[Parameters]
    run: Callable[[Any, TaskContext], dict[str, Any] | Result]
    memory: Callable[[Any], int | None] = lambda params: None
    seconds: Callable[[Any], float | None] = lambda params: None
    needs_execute: bool = False
    warm: Callable[[], None] | None = None
    inline: bool = False
    resident: bool = False
    shared: bool = False
    returns_arrays: bool = True
    """False for an operation whose results never have arrays, so that no folder for them is chosen before each task."""

    @property
    def answers_prompts(self) -> bool:
        """Return whether its tasks are AI tasks."""
        return self.inline or self.resident

    def validate(self, parameters: dict[str, Any]) -> Parameters:
        """Validate `parameters`; raise `InvalidRequest` that names each invalid field."""
        try:
            return validated(self.params, parameters, "parameters")
        except OpenRuntimeError:
            raise
        except (Exception, SystemExit) as problem:  # validators of other packages may raise anything
            raise InvalidRequest.of("parameters", f"validation by {self.name} failed: {type(problem).__name__}: {problem}") from problem

    def bytes_needed(self, parameters: Parameters) -> int | None:
        """Return the estimate of `memory` in bytes, or None if it is missing or invalid. Only an `OpenRuntimeError` propagates."""
        estimate = self._estimate("memory", self.memory, parameters)
        return None if estimate is None else math.ceil(estimate)

    def seconds_needed(self, parameters: Parameters) -> float | None:
        """Return the estimate of `seconds`, or None if it is missing or invalid. Only an `OpenRuntimeError` propagates."""
        return self._estimate("seconds", self.seconds, parameters)

    def _estimate(self, hook: str, estimate: Callable[[Any], float | None], parameters: Parameters) -> float | None:
        try:
            value = estimate(parameters)
            if value is None or (math.isfinite(value) and value >= 0):
                return value
            problem = f"{value!r} is not a valid estimate"
        except OpenRuntimeError:
            raise
        except (Exception, SystemExit) as error:  # estimates are optional
            problem = f"{type(error).__name__}: {error}"
        log.warning("Ignored %s() of the operation %s: %s", hook, self.name, problem)
        return None


MOST_ERRORS = 20
"""Maximum number of invalid fields that an error lists."""
MOST_HINTS = 5
"""Number of them with suggestions, and in the message."""
MANY_ERRORS = 1_000
"""Number of errors from which they are taken from a part of the value: pydantic creates all of them at once, at 2 µs each."""
LONGEST_FIELD, LONGEST_PROBLEM = 200, 1_000
"""Maximum lengths in characters of a field's name and of its problem in an error."""

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], value: Any, prefix: str = "") -> Model:
    """Return `value` as a `model`; raise `InvalidRequest` with fields as dotted names below `prefix`."""
    try:
        return model.model_validate(value)
    except ValidationError as problem:
        some, count = problem, problem.error_count()
    if count > MANY_ERRORS:
        try:
            model.model_validate(_shortened(value, iter(range(MANY_ERRORS))))
        except ValidationError as problem:
            some = problem
        else:
            raise InvalidRequest.of(prefix or "body", f"{count:,} values are invalid")
    raise invalid(some, prefix, model.model_fields, count)


def _shortened(value: Any, room: Iterator[int]) -> Any:
    """Return a JSON value with the first entries of its lists and objects, as many as there is `room` for."""
    if isinstance(value, dict):
        return {name: _shortened(item, room) for name, item in islice(value.items(), 2 * MOST_ERRORS) if next(room, None) is not None}
    if isinstance(value, list):
        return [_shortened(item, room) for item in islice(value, 2 * MOST_ERRORS) if next(room, None) is not None]
    return value


def invalid(problem: ValidationError, prefix: str = "", known: Iterable[str] = (), count: int = 0) -> InvalidRequest:
    """Convert pydantic's errors to one `InvalidRequest`.

    Fields are dotted names below `prefix`. Suggestions for unknown fields are from `known`. `count` is the number of errors if `problem`
    does not have all of them.
    """
    names, more = list(known), count > problem.error_count()
    errors = problem.errors(include_url=False, include_context=False, include_input=False)
    # A part of the value may lack fields that the whole one has.
    errors = [error for error in errors if not (more and error["type"] == "missing")] or errors
    details = [
        {
            "field": ".".join([*([prefix] if prefix else []), *(str(part)[:LONGEST_FIELD] for part in error["loc"])]) or "body",
            "problem": describe_error(error, names if number < MOST_HINTS else [])[:LONGEST_PROBLEM],
        }
        for number, error in enumerate(errors[:MOST_ERRORS])
    ]
    message = "; ".join(f"{detail['field']}: {detail['problem']}" for detail in details[:MOST_HINTS])
    left = max(count, len(errors)) - MOST_HINTS
    return InvalidRequest(f"{message}; and {left:,} more" if left > 0 else message, details)


def describe_error(error: ErrorDetails, known: list[str]) -> str:
    """Return pydantic's message, or for an unknown field a message with suggestions from `known`."""
    if error["type"] != "extra_forbidden":
        return error["msg"].replace("Input should be", "must be", 1)
    if len(error["loc"]) > 1 or not known:
        return "unknown field"
    close = get_close_matches(str(error["loc"][0])[:LONGEST_FIELD], known, n=1)
    return f"unknown field: did you mean {close[0]}?" if close else f"unknown field; known fields: {', '.join(known)}"
