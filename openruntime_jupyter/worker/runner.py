"""Runner of tasks, one at a time on the main thread."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import resource
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from openruntime_jupyter.current_task import set_current
from openruntime_jupyter.errors import NoBackend, OpenRuntimeError, UnknownOperation
from openruntime_jupyter.operations.base import ModelParameters, Result, World, references
from openruntime_jupyter.operations.code.values import enter
from openruntime_jupyter.operations.context import ArrayIO, MemoryNotReserved, TaskContext
from openruntime_jupyter.operations.registry import operation
from openruntime_jupyter.schemas.base import dumps
from openruntime_jupyter.schemas.values import ModelSource
from openruntime_jupyter.worker.blas import Blas
from openruntime_jupyter.worker.channel import Channel, as_json, flush_output
from openruntime_jupyter.worker.control import InterruptGuard
from openruntime_jupyter.worker.devices import no_backend, select
from openruntime_jupyter.worker.frames import INLINE_PAYLOAD, MAX_DISPLAY_JSON, MAX_OUTPUT_JSON, Kind
from openruntime_jupyter.worker.imports import Imports
from openruntime_jupyter.worker.progress_bars import ProgressBars
from openruntime_jupyter.worker.resident import Resident, children_peak

MLX_CACHE_KEPT = 64 << 20
"""Maximum bytes of freed buffers that MLX keeps between tasks of one worker."""

UNPOSITIONED = {"progress": Kind.PROGRESS, "token": Kind.TOKEN}
"""Messages without a position among the printed lines of a task."""


class Runner:
    """Runner that executes `RUN` frames and sends `RESULT` or `RAISED` frames; exceptions of tasks never propagate."""

    def __init__(
        self,
        channel: Channel,
        guard: InterruptGuard,
        blas: Blas | None,
        marker: bytes,
        imports: Imports,
        bars: ProgressBars,
        problem: str | None = None,
    ) -> None:
        self._channel = channel
        self._guard = guard
        self._blas = blas
        self._marker = marker
        self._imports = imports
        self._bars = bars
        self._problem = problem
        self._resident = Resident()
        self._threads = 0
        self._device: tuple[str, int] | None = None
        self._kept: dict[str, Any] = {}
        self._used = False
        self._limits = _soft_limits()

    def prepare(self, body: dict[str, Any]) -> None:
        """Import the modules of a `PREPARE` frame with the caller's folder and import path."""
        with contextlib.suppress(OSError):  # the folder may not exist; the task that needs it reports that
            enter(World(directory=body["directory"], path=body["path"]))
            self._imports.import_ahead(body["modules"])
        flush_output()
        self._channel.send(Kind.PREPARED, b"{}")

    def run(self, body: dict[str, Any]) -> None:
        """Run the task of a `RUN` frame, send its result, and clean up."""
        task_id = body["task_id"]
        if body["check"] and (changed := self._imports.changed(self._used)) is not None:
            self._decline(task_id, f"{changed} has changed since this worker imported it", changed=True)
            return
        try:
            self._prepare(body)
        except Exception as problem:
            if body["session"]:
                raise
            self._decline(task_id, f"The worker can't run tasks: {problem!r}")
            return
        context = self._context(body)
        set_current(context)
        self._execute(body, context)
        set_current(None)
        self._guard.install()
        self._used = True
        _drop_caches()

    def _execute(self, body: dict[str, Any], context: TaskContext) -> None:
        begun, started = time.time_ns(), time.perf_counter()
        result: Result | None = None
        error: BaseException | None = None
        try:
            try:
                self._guard.enter(context.task_id)
                result = self._operate(body, context)
            finally:
                self._guard.leave()
        except BaseException as problem:  # SystemExit and KeyboardInterrupt end the task too, not the worker
            self._guard.leave()
            error = problem
            if self._guard.delivered:
                _finish_computing()
        # An interrupted import leaves an incomplete package, so no other task may run in this process.
        retire = self._guard.delivered and len(sys.modules) != context.modules
        context.flush_progress()
        context.end()
        if error is not None and self._is_fault(error, body, context):
            if self._used and not context.code_began:
                context.array_io.clear()
                self._decline(context.task_id, f"The worker can't run tasks any more: {error!r}")
                return
            retire = True
        report = {
            "task_id": context.task_id,
            "execution_time": time.perf_counter() - started,
            "keeps": bool(self._kept),
            "imported": context.imported,
            "retire": retire or (body["burst"] and not self._is_intact(begun)),
            **self._memory(),
        }
        if body["private"] and not (body["burst"] or body["session"]):
            _warn_about_threads()
        flush_output()
        if error is None and result is not None:
            error = self._send_result(result, {**report, "arrays": context.array_io.stored}, body)
        if isinstance(error, MemoryNotReserved):
            context.array_io.clear()
            self._channel.send(Kind.NEEDS_MEMORY, as_json({**report, "needs": error.needed}))
        elif error is not None:
            context.array_io.clear()
            described = describe(error, only_own=body["operation"] in CALLERS_CODE)
            self._channel.send(Kind.RAISED, as_json({**report, **described, "interrupted": self._guard.delivered}))
        if error is not None:
            error.__traceback__ = None
            _release_exception()

    def _is_fault(self, error: BaseException, body: dict[str, Any], context: TaskContext) -> bool:
        """Return whether an error comes from the worker rather than from the task."""
        if self._guard.delivered or body["session"]:  # a session is not moved, because its variables would be lost
            return False
        expected = context.code_began or isinstance(error, OpenRuntimeError) or body["model"]
        return not expected or not _computes()

    def _decline(self, task_id: str, reason: str, *, changed: bool = False) -> None:
        """Report that the task must run in another process. With `changed`, files that this one has imported have changed."""
        self._channel.send(Kind.DECLINED, as_json({"task_id": task_id, "reason": reason, "changed": changed}))

    def _is_intact(self, begun: int) -> bool:
        """Return whether another task can run in this process after one that began at `begun`, in ns since the epoch."""
        if (mx := sys.modules.get("mlx.core")) is not None and not isinstance(mx.array, type):
            return False
        return self._imports.end_task(begun) and all(now >= then for now, then in zip(_soft_limits(), self._limits, strict=True))

    def _prepare(self, body: dict[str, Any]) -> None:
        _find_directory()
        device = (body["device"]["type"], body["device"]["index"])
        if device != self._device and self._problem is None:
            select(*device)
            self._device = device
        threads = threads_for(body)
        if threads != self._threads:
            self._threads = threads
            if self._blas is not None:
                self._blas.set_threads(threads)
        if (mx := sys.modules.get("mlx.core")) is not None:
            mx.reset_peak_memory()

    def _context(self, body: dict[str, Any]) -> TaskContext:
        return TaskContext(
            body["task_id"],
            body["device"]["type"],
            body["memory_total"],
            self._send,
            ArrayIO(body.get("arrays")),
            ModelSource(**body["model"]) if body.get("model") else None,
            self._kept,
            fast_float32=self._blas is None or self._blas.fast,
            session=body["session"],
            memory_reserved=body["memory_reserved"],
            memory_largest=body["memory_largest"],
            threads=self._threads,
        )

    def _operate(self, body: dict[str, Any], context: TaskContext) -> Result:
        parameters = body.get("parameters")
        if parameters is None:
            parameters = json.loads(Path(body["parameters_file"]).read_bytes())
        try:
            kind = operation(body["operation"])
        except UnknownOperation as problem:
            raise UnknownOperation(f"The runtime has this operation, but its worker does not: {problem}", problem.details) from None
        if self._problem is not None:
            advice = no_backend(sys.executable, self._problem)
            if not kind.needs_execute:
                raise NoBackend(advice)
            sys.stderr.write(f"{advice}\n")  # the caller's code may not need MLX
        checked = kind.validate(parameters)
        if context.model is not None and isinstance(checked, ModelParameters):
            checked.use(context.model)
        world = getattr(checked, "world", None)
        if world is not None and not (body["session"] and self._used):  # a session keeps the folder and import path set by its tasks
            enter(world if body["folder"] is None else world.model_copy(update={"directory": body["folder"], "path": None}))
        if kind.name == "python" and world is not None and world.notebook is not None:
            self._bars.show_widgets()
        # Only for the first task of a burst: later ones import the same modules, and the check costs 200 µs.
        records_imports = body["private"] and not self._used
        environment = _import_environment() if records_imports else None
        for reference in references(checked):
            layout = context.array_io.layout(reference.array)
            reference.resolve(layout.shape, layout.dtype, layout.nbytes)
        returned = kind.run(checked, context)
        if records_imports and _import_environment() == environment:  # otherwise a later import may differ
            context.imported = self._imports.new_installed()
        return _result(kind.name, returned if isinstance(returned, Result) else Result(returned))

    def _send(self, kind: str, body: dict[str, Any]) -> None:
        message = as_json(body)
        if kind in UNPOSITIONED:
            self._channel.send(UNPOSITIONED[kind], message)
            return
        if len(message) > MAX_DISPLAY_JSON:
            text = f"[rich output of {len(message):,} bytes omitted: the maximum is {MAX_DISPLAY_JSON:,}]"
            message = json.dumps({**body, "data": {"text/plain": text}, "metadata": {}}).encode()
        with self._guard.shielded():
            flush_output()
            for descriptor in (1, 2):
                with contextlib.suppress(OSError):  # the task may have closed it
                    os.write(descriptor, self._marker)
            self._channel.send(Kind.DISPLAY, message)

    def _send_result(self, result: Result, report: dict[str, Any], body: dict[str, Any]) -> BaseException | None:
        """Send the result; return an error if it can't be sent."""
        try:
            output = as_json(result.output) if result.output else b"{}"
        except (TypeError, ValueError) as problem:
            return TypeError(f"the output of the operation {body['operation']} is not JSON: {problem}")
        if len(output) > MAX_OUTPUT_JSON:
            return ValueError(
                f"the result has {len(output):,} bytes as JSON, but the maximum is {MAX_OUTPUT_JSON:,}: return a summary, "
                "or return large data as an output of a cell or as the value of a call"
            )
        frame = {**report, "encoding": result.encoding, "payload_size": None, "payload_file": False}
        payload = result.payload
        if payload is not None:
            frame["payload_size"] = len(payload)
            if len(payload) > INLINE_PAYLOAD:
                try:
                    _write_private(Path(body["payload_file"]), payload)
                except OSError as problem:
                    return OSError(f"the result of {len(payload):,} bytes could not be stored: {problem}")
                frame["payload_file"], payload = True, b""
        encoded = dumps(frame)[:-1] + b',"output":' + output + b"}"
        self._channel.send(Kind.RESULT, encoded, payload or b"")
        return None

    def _memory(self) -> dict[str, int | None]:
        mx = sys.modules.get("mlx.core")
        return {
            "mlx_peak": mx.get_peak_memory() if mx is not None else None,
            "resident": self._resident.bytes(),
            "children_peak": children_peak(),
        }


def threads_for(body: dict[str, Any]) -> int:
    """Return the number of threads for a task: those of its slot, and one less for a language model.

    The threads of a model wait for each other several times per layer. If one of them shares its core with another program, such as a
    kernel, all of them are as slow as that one.
    """
    threads: int = body["threads"]
    return max(1, threads - 1) if body.get("model") else threads


def _result(name: str, result: Result) -> Result:
    """Return `result` after checking its types, which operations of other packages may violate; raise TypeError."""
    output: Any = result.output
    payload: Any = result.payload
    if isinstance(output, dict) and isinstance(payload, bytes | None):
        return result
    kinds = f"{type(output).__name__} as output, {type(payload).__name__} as payload"
    raise TypeError(f"the operation {name} returned {kinds}: it must return a dict, or a Result of a dict and bytes")


def _find_directory() -> None:
    """Recreate the working directory if it was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        folder = Path(os.environ.get("TMPDIR", "/"))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chdir(folder)


def _import_environment() -> tuple[dict[str, str], list[str], str]:
    """Return environment variables, import path and working directory, on which imports may depend."""
    try:
        directory = os.getcwd()
    except FileNotFoundError:
        directory = ""
    return dict(os.environ), list(sys.path), directory


def _warn_about_threads() -> None:
    """Print the threads that end with the task, because in a kernel they would continue."""
    running = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    if running:
        sys.stderr.write(f"[threads stopped, because the process ends with the task: {', '.join(running[:10])}]\n")


def _drop_caches() -> None:
    """Free the buffers that MLX keeps after a large task."""
    mx = sys.modules.get("mlx.core")
    if mx is not None and mx.get_cache_memory() > MLX_CACHE_KEPT:
        mx.clear_cache()


def _release_exception() -> None:
    """Release the frames of a failed task and the arrays in them."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)
    gc.collect()


def _soft_limits() -> list[float]:
    """Return the resource limits of this process; a task may lower them so far that nothing works any more."""
    limits = [resource.getrlimit(number)[0] for number in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_FSIZE)]
    return [math.inf if limit == resource.RLIM_INFINITY else limit for limit in limits]


def _computes() -> bool:
    """Return whether MLX still computes. An error of a GPU's driver lasts as long as the process."""
    mx = sys.modules.get("mlx.core")
    try:
        if mx is not None:
            mx.eval(mx.array(1) + 1)
    except Exception:
        return False
    return True


def _finish_computing() -> None:
    """Wait for computations of an interrupted task, so that they do not compete with the next one."""
    if (mx := sys.modules.get("mlx.core")) is not None:
        mx.synchronize()


def _write_private(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)


PACKAGE = Path(__file__).resolve().parent.parent
MACHINERY = (
    *(str(PACKAGE / name) for name in ("worker", "arrays", "local_models", "current_task.py")),
    *(str(PACKAGE / "operations" / name) for name in ("base.py", "context.py", "call.py", "python.py", "code/shell.py")),
    "/IPython/core/",
)
INTERNAL = (str(PACKAGE), "/IPython/core/")
LIBRARIES = ("/site-packages/", "/dist-packages/", f"/python{sys.version_info.major}.{sys.version_info.minor}/", "<frozen ")
MAX_CHARACTERS = 100_000
LONGEST_NAME = 500


CALLERS_CODE = ("python", "call")
"""Operations that run the code of a caller."""


def own_frame(tb: TracebackType) -> bool:
    """Return whether this frame belongs to the worker or IPython and not to the task."""
    name = tb.tb_frame.f_code.co_filename
    return any(part in name for part in MACHINERY)


def describe(error: BaseException, only_own: bool = False) -> dict[str, str]:
    """Return `type`, `message` and `traceback` of `error`, without the frames above the task's code.

    With `only_own`, also without the frames of this package and IPython below it, and without the causes that only these have.
    """
    tb = error.__traceback__
    while tb is not None and own_frame(tb):
        tb = tb.tb_next
    try:
        described = traceback.TracebackException(type(error), error, tb)
        if only_own:
            _hide_machinery(described)
        # The message of an error of this package is complete, and the frames of its operations help no caller.
        lines = "".join(described.format() if only_own or not isinstance(error, OpenRuntimeError) else described.format_exception_only())
        message = str(error)
    except Exception as problem:  # a task's exception may have a broken __str__
        lines, message = f"{type(error).__name__} (its __str__ failed: {problem!r})", ""
    if len(lines) > MAX_CHARACTERS:
        lines = f"{lines[: MAX_CHARACTERS // 2]}\n…\n{lines[-MAX_CHARACTERS // 2 :]}"
    return {"type": type(error).__qualname__[:LONGEST_NAME], "message": message[:10_000], "traceback": lines}


def _of_user(frame: traceback.FrameSummary) -> bool:
    return not any(part in frame.filename for part in (*INTERNAL, *LIBRARIES))


def _hide_machinery(error: traceback.TracebackException) -> None:
    """Remove the frames of this package and IPython from `error`, its causes and the members of a group."""
    error.stack = traceback.StackSummary.from_list([frame for frame in error.stack if not any(part in frame.filename for part in INTERNAL)])
    cause = error.__cause__
    if cause is not None and not error.stack and not any(_of_user(frame) for frame in cause.stack):
        # Raised by this package, with a message that includes the cause.
        error.__cause__ = None
        error.__suppress_context__ = True
    for each in (error.__cause__, error.__context__, *(getattr(error, "exceptions", None) or ())):
        if each is not None:
            _hide_machinery(each)
