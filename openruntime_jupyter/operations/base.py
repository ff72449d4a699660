"""What an operation is: a name, typed parameters, and a function that a worker runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError
from openruntime_jupyter.schemas.values import ModelSource

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from openruntime_jupyter.worker.context import TaskContext

log = logging.getLogger(__name__)

PROMPT_TIMEOUT = 300.0
"""Seconds that a prompt may take where nothing else is said."""


class Parameters(BaseModel):
    """The base of every operation's `Params`: unknown fields are an error, every field has a default."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class ModelParameters(Parameters):
    """The base of the `Params` of every operation that runs a local model."""

    model: str | None = Field(None, description="Name or path of a model on this machine; null for the default one.", max_length=4096)
    keep_alive: float | None = Field(
        None, description="Seconds that the model stays in memory afterwards; null for the runtime's own.", ge=0, le=31_536_000
    )
    _source: ModelSource | None = PrivateAttr(None)

    @property
    def source(self) -> ModelSource | None:
        """What the runtime's catalogue found for `model`; None before it was asked."""
        return self._source

    def use(self, source: ModelSource) -> None:
        """Tell what was found, for estimates and for the operation itself."""
        self._source = source


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("has a NUL character, which no path can have")
    return text


Place = Annotated[str, AfterValidator(_path)]


MOST_VARIABLES = 1_000
LONGEST_VARIABLE = 100_000
LARGEST_ENVIRONMENT = 500_000
"""Variables, bytes of one with its name, and bytes of all. Linux starts no process with a variable of 128 KiB or more."""


def _environment(variables: dict[str, str | None]) -> dict[str, str | None]:
    if len(variables) > MOST_VARIABLES:
        raise ValueError(f"has {len(variables):,} variables, and at most {MOST_VARIABLES:,} are allowed: remove some from os.environ")
    total = 0
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"{name!r} is not a valid name of a variable: it is empty, or has '=' or a NUL character")
        if value is not None and "\0" in value:
            raise ValueError(f"{name} has a NUL character, which no variable can have")
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
    """Where the caller's code feels at home: its interpreter, folder, import path and environment variables."""

    interpreter: Place | None = Field(None, description="Path of the Python to run it with; null for the runtime's own.", max_length=4096)
    directory: Place | None = Field(None, description="Working directory.", max_length=4096)
    path: list[Place] | None = Field(None, description="`sys.path` of the caller.", max_length=1000)
    environment: Annotated[dict[str, str | None], AfterValidator(_environment)] = Field(
        {},
        description="Environment variables that the caller has set since it started; null for one that it has removed. At most 1,000, "
        "of 100,000 bytes each and 500,000 bytes together, names included.",
    )
    kernel: str | None = Field(
        None, description="Random id of the calling process. Tasks of different callers share no imports.", max_length=64
    )
    notebook: str | None = Field(
        None, description="Path of the calling notebook: sessions of different notebooks are apart.", max_length=4096
    )


@dataclass(slots=True)
class Result:
    """What `run` returns where a plain dict is not enough: JSON-able `output`, and bytes that nobody but the caller opens."""

    output: dict[str, Any]
    payload: bytes | None = None
    encoding: str = "cloudpickle"


@dataclass(frozen=True)
class Operation:
    """A named kind of work.

    `run(params, context)` is called in a worker, on its main thread, and returns a JSON-able dict or a `Result`.
    `memory(params)` and `seconds(params)` estimate bytes and seconds from the parameters alone, or return None; they are called in
    the server and must not import MLX; one that raises is logged and counts as None. `warm()` is called in a worker ahead of its
    first task of this kind, to import what takes long.

    A `shared` operation leaves nothing behind in a worker (no modules of its caller, no seeds, no settings), so its tasks follow each
    other in one process. Each task of any other operation has a process of its own.

    An `inline` operation waits for others rather than compute, so the runtime's own loop runs it: its `run` is never called. A
    `resident` one has `ModelParameters`, and runs in that model's own worker. Both answer prompts, and end after `PROMPT_TIMEOUT`
    unless their request says otherwise.
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

    @property
    def answers_prompts(self) -> bool:
        """Whether its tasks are AI tasks."""
        return self.inline or self.resident

    def validate(self, parameters: dict[str, Any]) -> Parameters:
        """`parameters` as this operation's `Params`; raises `InvalidRequest` that names each wrong field."""
        try:
            return self.params.model_validate(parameters)
        except ValidationError as problem:
            raise invalid(problem, "parameters", self.params.model_fields) from None
        except OpenRuntimeError:
            raise
        except (Exception, SystemExit) as problem:  # a validator of another package's may raise anything: no fault of the server
            raise InvalidRequest.of("parameters", f"{self.name} could not check them: {type(problem).__name__}: {problem}") from problem

    def bytes_needed(self, parameters: Parameters) -> int | None:
        """What `memory` says, in bytes; None where it says nothing or nothing sensible. Raises only what is one of ours."""
        estimate = self._estimate("memory", self.memory, parameters)
        return None if estimate is None else math.ceil(estimate)

    def seconds_needed(self, parameters: Parameters) -> float | None:
        """What `seconds` says; None where it says nothing or nothing sensible. Raises only what is one of ours."""
        return self._estimate("seconds", self.seconds, parameters)

    def _estimate(self, hook: str, estimate: Callable[[Any], float | None], parameters: Parameters) -> float | None:
        try:
            said = estimate(parameters)
            if said is None or (math.isfinite(said) and said >= 0):
                return said
            problem = f"{said!r} is no estimate"
        except OpenRuntimeError:
            raise
        except (Exception, SystemExit) as raised:  # an estimate is advice: without it the task is taken as one that says nothing
            problem = f"{type(raised).__name__}: {raised}"
        log.warning("%s() of the operation %s was ignored: %s", hook, self.name, problem)
        return None


def invalid(problem: ValidationError, prefix: str = "", known: Iterable[str] = ()) -> InvalidRequest:
    """pydantic's errors as one `InvalidRequest`, fields as dotted names below `prefix`; of one that there is not, with the `known` ones."""
    details = [
        {
            "field": ".".join(str(part) for part in ((prefix,) if prefix else ()) + error["loc"]) or "body",
            "problem": told(error, list(known)),
        }
        for error in problem.errors(include_url=False, include_context=False, include_input=False)
    ]
    message = "; ".join(f"{detail['field']}: {detail['problem']}" for detail in details[:5])
    if len(details) > 5:
        message += f"; and {len(details) - 5} more"
    return InvalidRequest(message, details)


def told(error: ErrorDetails, known: list[str]) -> str:
    """What is wrong, in pydantic's words, or for a field that there is not in ours, with those that are `known`."""
    if error["type"] != "extra_forbidden":
        return error["msg"]
    if len(error["loc"]) > 1 or not known:
        return "there is no such field"
    close = get_close_matches(str(error["loc"][0]), known, n=1)
    return f"there is no such field: did you mean {close[0]}?" if close else f"there is no such field; there are {', '.join(known)}"
