"""Validation and authorisation of a request."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from openruntime_jupyter.arrays.array_file import Layout
from openruntime_jupyter.engines.protocol import ExecutionEnvironment, ModelUse
from openruntime_jupyter.errors import InvalidRequest, NotAllowed, Unavailable, UnknownOperation
from openruntime_jupyter.operations.arrays import references
from openruntime_jupyter.operations.base import PROMPT_TIMEOUT, ModelParameters, Operation, Parameters, World
from openruntime_jupyter.operations.registry import operation
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import TaskRequest
from openruntime_jupyter.schemas.values import ModelSource

LONGEST_KEY = 255


@dataclass(frozen=True)
class Caller:
    """The caller. `may_execute` allows code, `trusted` means logged in, `may_spend` allows remote providers with the owner's accounts."""

    owner: str | None = None
    may_execute: bool = True
    trusted: bool = True
    may_spend: bool = True


@dataclass(slots=True)
class Checked:
    """A valid request. `needs` is in bytes, `timeout` in seconds."""

    operation: Operation
    parameters: bytes
    timeout: float | None
    needs: int | None
    interpreter: str | None
    environment: ExecutionEnvironment
    world: World | None = None
    burst: str | None = None
    arrays: tuple[str, ...] = ()
    model: ModelUse | None = None


Known = Callable[[str], Layout | None]
FindModel = Callable[[str | None, Caller], ModelSource]
"""Resolves the name or path of a model for a caller; raises `InvalidRequest`, `NotAllowed` or `Unavailable`."""


def minds_execute(name: str) -> bool:
    """Return whether the operation needs the permission to execute code; True for an unknown operation."""
    try:
        kind = operation(name)
    except UnknownOperation:
        return True
    return kind.needs_execute or kind.resident


def no_models(*_: object) -> ModelSource:
    """Reject every model, for a runtime without a catalogue."""
    raise Unavailable("This runtime has no models.", retry_after=60.0)


def check(
    request: TaskRequest,
    caller: Caller,
    settings: Settings,
    known: Known = lambda array_id: None,
    find_model: FindModel = no_models,
) -> Checked:
    """Validate and authorise a request; raise `InvalidRequest` and its subclasses, `NotAllowed`, and what `find_model` raises.

    `known` tells what an array is. One that it does not know is refused later, when the task would lease it: a request that is
    sent again must find its task though its arrays may be gone.
    """
    kind = operation(request.operation)
    if kind.needs_execute and not caller.may_execute:
        raise NotAllowed(
            f"The operation {kind.name!r} runs your own code and needs the permission to execute: log in, "
            "or give the token that was printed when the server started"
        )
    if kind.inline and not caller.may_spend:
        raise NotAllowed(
            f"The operation {kind.name!r} uses a remote provider at the owner's cost and needs a login: log in, give the token "
            "that was printed when the server started, or use a local model"
        )
    parameters = kind.validate(request.parameters)
    encoded = to_json(request.parameters, inf_nan_mode="constants")
    if len(encoded) > settings.max_parameters_bytes:
        raise InvalidRequest.of(
            "parameters",
            f"{len(encoded):,} bytes of JSON, and the most is {settings.max_parameters_bytes:,} (max_parameters_bytes); "
            "let the task load large data itself",
        )
    named = list(references(parameters))
    arrays = tuple(dict.fromkeys(each.array for each in named))
    for each in named:
        if (layout := known(each.array)) is not None:
            each.resolve(layout.shape, layout.dtype, layout.nbytes)
    model = _model(parameters, caller, settings, find_model) if isinstance(parameters, ModelParameters) else None
    timeout = request.timeout or (PROMPT_TIMEOUT if kind.answers_prompts else None)
    if not caller.trusted:
        timeout = _bounded(kind, parameters, timeout, settings.untrusted_timeout)
    world = getattr(parameters, "world", None)
    interpreter = world.interpreter if world is not None else None
    if interpreter is not None and not os.path.isabs(interpreter):  # noqa: PTH117 - with a Path it is a tenth of submitting a batch
        raise InvalidRequest.of("parameters.world.interpreter", "give an absolute path")
    environment = execution_environment(world) if world is not None else ExecutionEnvironment()
    burst = getattr(parameters, "burst", None)
    if burst is not None:  # a process is never shared between users or kernels
        burst = f"{caller.owner or ''} {environment.kernel or ''} {burst}"
    if request.session is not None and kind.name not in ("python", "call"):
        raise InvalidRequest.of("session", f"{kind.name} uses no variables of a session: only python and call do")
    return Checked(kind, encoded, timeout, kind.bytes_needed(parameters), interpreter, environment, world, burst, arrays, model)


def execution_environment(world: World) -> ExecutionEnvironment:
    """Return the part of a request's `world` that decides which prepared worker its task may have."""
    path = None if world.path is None else tuple(world.path)
    return ExecutionEnvironment(world.directory, path, tuple(sorted(world.environment.items())), world.kernel)


def _model(parameters: ModelParameters, caller: Caller, settings: Settings, find_model: FindModel) -> ModelUse:
    source = find_model(parameters.model, caller)
    parameters.use(source)
    return ModelUse(source, settings.keep_alive if parameters.keep_alive is None else parameters.keep_alive)


def _bounded(kind: Operation, parameters: Parameters, timeout: float | None, most: float) -> float:
    seconds = kind.seconds_needed(parameters)
    if seconds is not None and seconds > most:
        raise InvalidRequest.of(
            "parameters", f"about {seconds:,.0f} s of work, and without a login the most is {most:g} s: make it smaller, or log in"
        )
    return min(timeout or most, most)


def fingerprint(request: TaskRequest) -> str:
    """Return the fingerprint of a request, which leaves out `wait`."""
    same: dict[str, Any] = request.model_dump(exclude={"wait"})
    return hashlib.sha256(to_json(same, inf_nan_mode="constants")).hexdigest()
