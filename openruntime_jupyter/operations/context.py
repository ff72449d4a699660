"""Context of a running task for its operation: its arrays, its model, and its messages to the runtime."""

from __future__ import annotations

import contextlib
import math
import operator
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.arrays import array_file
from openruntime_jupyter.arrays.array_layout import Layout
from openruntime_jupyter.arrays.blocks import UNFINISHED
from openruntime_jupyter.errors import ArrayNotFound, MemoryRefused, OpenRuntimeError, StorageUnavailable, gigabytes
from openruntime_jupyter.schemas.values import ModelSource, ToolCallPiece

if TYPE_CHECKING:
    from openruntime_jupyter.arrays.conversion import Array
    from openruntime_jupyter.local_models.language_model import LanguageModel

KEPT = "language model"
PROGRESS_INTERVAL = 0.1
"""Minimum seconds between two progress messages of one task, on average."""
PROGRESS_AHEAD = 3
"""Messages that may be sent early. A slow loop reports a step and its message at once, and the second would wait for the next step."""
LARGEST_EXACT = 2**53
"""Largest integer that every JSON parser represents exactly."""
LONGEST_MESSAGE = 1000
"""Maximum characters of a progress message."""

UNRESERVED_SHARE = 1 / 32
"""Share of the device's memory that a task may use beyond its reservation, so that small tasks need none."""

Send = Callable[[str, dict[str, Any]], None]


class MemoryNotReserved(OpenRuntimeError):
    """Task that needs more memory than the runtime has reserved for it, in bytes. The runtime lets it wait until that is free."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"{gigabytes(needed)} of memory are not reserved")
        self.needed = needed


class ArrayIO:
    """Input and result arrays of one task.

    Parameters
    ----------
    arrays : description from the engine: paths of `inputs` by id, prefix `name` of result ids, and `places`, a list of folder, maximum
        bytes of results there, and the part of these for which no free blocks are deleted
    """

    def __init__(self, arrays: dict[str, Any] | None = None) -> None:
        arrays = arrays or {}
        self._inputs: dict[str, str] = arrays.get("inputs", {})
        self._name: str = arrays.get("name", "")
        self._places: list[list[Any]] = [[folder, most, room] for folder, most, room in arrays.get("places", ())]
        self.stored: list[dict[str, Any]] = []
        """Stored results, as in the result frame."""

    @property
    def usable(self) -> bool:
        """Return whether results can be stored; not for operations that run without a runtime."""
        return bool(self._places)

    def layout(self, array_id: str) -> Layout:
        """Return the layout of an input; raise `ArrayNotFound`."""
        descriptor = array_file.open_for_reading(self._path(array_id), array_id)
        try:
            return array_file.read(descriptor, array_id)
        finally:
            os.close(descriptor)

    def view(self, array_id: str) -> Array:
        """Return an input as a memory-mapped NumPy array with private changes; raise `ArrayNotFound`."""
        from openruntime_jupyter.arrays import conversion

        return conversion.view(self._path(array_id), array_id)

    def store(self, value: Any, layout: Layout) -> None:
        """Store a result array; raise `StorageUnavailable` with sizes if it does not fit."""
        from openruntime_jupyter.arrays import conversion

        array_id = f"{self._name}.{len(self.stored)}"
        refusal: StorageUnavailable | None = None
        for number, (folder, most, room) in enumerate(self._places):
            if layout.size > most:
                continue
            try:
                # The runtime removes the suffix when the task is done. Remaining files with it are from crashed workers.
                conversion.store(value, Path(folder, f"{array_id}{UNFINISHED}"), layout, room)
            except StorageUnavailable as problem:
                refusal = problem
                continue
            self._take(layout.size)
            entry = {"id": array_id, "shape": layout.shape, "dtype": layout.dtype, "kind": layout.kind, "place": number}
            self.stored.append(entry)
            return
        most = max((most for _, most, _ in self._places), default=0)
        raise refusal or StorageUnavailable(
            f"A result array of {gigabytes(layout.size)} does not fit: the current limit is {gigabytes(max(0, most))}. Delete arrays "
            "that are no longer needed, raise the setting array_bytes, or return less data."
        )

    def clear(self) -> None:
        """Delete the stored results."""
        for entry in self.stored:
            with contextlib.suppress(OSError):
                Path(self._places[entry["place"]][0], f"{entry['id']}{UNFINISHED}").unlink()
            self._take(-Layout(tuple(entry["shape"]), entry["dtype"], entry["kind"]).size)
        self.stored = []

    def _take(self, size: int) -> None:
        for place in self._places:
            place[1:] = [left - size for left in place[1:]]

    def _path(self, array_id: str) -> str:
        if array_id not in self._inputs:
            raise ArrayNotFound(f"Array {array_id} is not an input of this task")
        return self._inputs[array_id]


class TaskContext:
    """Context of the task that this worker runs.

    Parameters
    ----------
    device_type : `"gpu"` or `"cpu"`, which is already MLX's default device
    memory_total : memory of the device in bytes; None if unknown
    memory_reserved : bytes that the runtime has reserved for the task; None without a runtime
    memory_largest : memory in bytes of the largest device that may run the task; None: of this one
    threads : number of threads that the task should compute with
    send : called as `send(kind, body)` to report to the runtime; without it nothing is reported, for operations called directly
    model : entry of the model catalog, for an operation with a model
    resident : state that such an operation keeps in its worker between tasks; a worker has one model
    fast_float32 : the CPU computes fastest in float32
    session : variables are kept for the next task
    """

    def __init__(
        self,
        task_id: str = "task_0",
        device_type: str = "cpu",
        memory_total: int | None = None,
        send: Send | None = None,
        array_io: ArrayIO | None = None,
        model: ModelSource | None = None,
        resident: dict[str, Any] | None = None,
        fast_float32: bool = False,
        session: bool = False,
        memory_reserved: int | None = None,
        memory_largest: int | None = None,
        threads: int = 1,
    ) -> None:
        self.task_id = task_id
        self.device_type = device_type
        self.memory_total = memory_total
        self.memory_reserved = memory_reserved
        self.memory_largest = memory_largest
        self.threads = threads
        self.array_io = array_io or ArrayIO()
        self.model = model
        self.resident: dict[str, Any] = {} if resident is None else resident
        self.fast_float32 = fast_float32
        self.session = session
        self.modules = len(sys.modules)
        """Number of modules imported when the task began or its model was loaded; an interrupt may leave later ones incomplete."""
        self.code_began = False
        """True once code of the caller runs, or text was sent; a task that fails before can run in another process."""
        self.imported: list[str] = []
        """Installed modules that the task imported and that can be imported ahead of other tasks."""
        self._send = send
        # Held while a message is sent, so that no message follows the end of the task. Reentrant, because signal handlers may send too.
        self._send_lock = threading.RLock()
        self._sending = False
        self._progress: dict[str, Any] | None = None
        self._progress_due = float("-inf")
        self._explicit = False

    def end(self) -> None:
        """End the task: messages from its remaining threads are dropped."""
        with self._send_lock:
            self._send = None

    def progress(self, n: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress. At most ten messages a second are sent; the last one is always sent.

        Numbers may be of any type, including NumPy and MLX scalars. A non-finite `n` is ignored, and a non-finite `total` counts as
        unknown. Raises TypeError for other types.
        """
        self.claim_progress()
        if self._note_progress(n, total, message):
            self.flush_progress()

    def claim_progress(self) -> None:
        """Ignore the progress bars of this task from now on."""
        self._explicit = True

    def bar_progress(self, n: float, total: float | None, message: str | None) -> None:
        """Report the progress of a progress bar, unless the task reports its own. Raises TypeError as `progress`.

        Never waits: the caller may hold the lock of all bars, which a thread that sends may wait for when it finalizes a bar.
        """
        if self._explicit or not self._note_progress(n, total, message) or not self._send_lock.acquire(blocking=False):
            return
        try:
            if not self._sending:  # otherwise this thread is sending, and a finalizer came in between
                self._flush_progress()
        finally:
            self._send_lock.release()

    def _note_progress(self, n: float, total: float | None, message: str | None) -> bool:
        """Store a progress message, and return whether it is due."""
        done, limit = _finite(n), None if total is None else _finite(total)
        if done is None:
            return False
        self._progress = {"n": done, "total": limit, "message": None if message is None else str(message)[:LONGEST_MESSAGE]}
        return time.monotonic() >= self._progress_due

    def flush_progress(self) -> None:
        """Send the pending progress message."""
        with self._send_lock:
            self._flush_progress()

    def _flush_progress(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            self._emit("progress", progress)
            self._progress_due = max(self._progress_due, time.monotonic() - PROGRESS_AHEAD * PROGRESS_INTERVAL) + PROGRESS_INTERVAL

    def _emit(self, kind: str, body: dict[str, Any]) -> None:
        """Send a message. The caller holds the lock."""
        if self._send is None:
            return
        before, self._sending = self._sending, True
        try:
            self._send(kind, body)
        finally:
            self._sending = before

    def token(self, text: str) -> None:
        """Send a piece of generated text immediately."""
        if text:
            self._piece({"text": text})

    def reasoning(self, text: str) -> None:
        """Send a piece of the reasoning before a generated text immediately."""
        if text:
            self._piece({"reasoning": text})

    def tool_call(self, piece: ToolCallPiece) -> None:
        """Send a piece of a tool call immediately."""
        self._piece({"call": asdict(piece)})

    def _piece(self, body: dict[str, Any]) -> None:
        with self._send_lock:
            self.code_began = True
            self._emit("token", body)

    def display(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        output_type: str = "display_data",
        display_id: str | None = None,
    ) -> None:
        """Send a MIME bundle to the watchers, after everything printed so far.

        The output type `update_display_data` replaces the displays with the same `display_id`.
        """
        known = None if display_id is None else str(display_id)
        self._output({"output_type": output_type, "data": data, "metadata": metadata or {}, "display_id": known})

    def clear_output(self, wait: bool = False) -> None:
        """Delete the output so far; with `wait` when the next output replaces it."""
        self._output({"output_type": "clear_output", "wait": bool(wait)})

    def capture_output(self, region: str | None) -> None:
        """Assign the following output to the output widget `region`, or to none. `clear_output` deletes only its output then."""
        self._output({"output_type": "capture", "region": region})

    def _output(self, item: dict[str, Any]) -> None:
        with self._send_lock:
            self._emit("display", item)

    def silent(self) -> TaskContext:
        """Return a context of the same task that reports nothing."""
        return TaskContext(self.task_id, self.device_type, self.memory_total)

    def language_model(self) -> LanguageModel:
        """Return the model of this worker, loaded on first use; raise the errors of `local_models.language_model.load`."""
        from openruntime_jupyter.local_models.language_model import load

        if KEPT not in self.resident:
            assert self.model is not None, "the runtime resolves the model of a resident operation"
            self.resident[KEPT] = load(self.model, self)
            self.modules = len(sys.modules)
        kept: LanguageModel = self.resident[KEPT]
        return kept

    def array(self, array_id: str, kind: str | None = None) -> Any:
        """Return an array that the parameters refer to.

        `kind` is `"numpy"` for a memory-mapped NumPy array with private changes, or `"mlx"` for an MLX array (a copy); the default is the
        caller's type. Raises `ArrayNotFound` if the file no longer exists.
        """
        from openruntime_jupyter.arrays import conversion

        view = self.array_io.view(array_id)
        return conversion.as_mlx(view) if (kind or self.array_io.layout(array_id).kind) == "mlx" else view

    def give(self, array: Any) -> None:
        """Store an MLX or NumPy array as a separate result, which the task's `arrays` list in order.

        Raises `StorageUnavailable` if it does not fit, and TypeError for other types.
        """
        from openruntime_jupyter.arrays import conversion

        layout = conversion.layout_of(array)
        if layout is None:
            raise TypeError(f"{type(array).__name__} can't be stored as an array")
        self.array_io.store(array, layout)

    def pack(self, value: Any) -> tuple[bytes, str]:
        """Pickle `value` with large arrays out of band; return pickle and encoding. Exceptions of the pickling propagate."""
        from openruntime_jupyter.arrays import pickling

        if not self.array_io.usable:
            return pickling.pack(value, None), pickling.PLAIN
        try:
            return pickling.pack(value, self.array_io.store), pickling.OUTSIDE if self.array_io.stored else pickling.PLAIN
        except BaseException:
            self.array_io.clear()
            raise

    def measure(self, value: Any) -> int:
        """Return the bytes that `pack` needs for `value`, its arrays included. Exceptions of the pickling propagate."""
        from openruntime_jupyter.arrays import pickling

        return pickling.measure(value)

    def require_memory(self, needed: int, what: str = "This task") -> None:
        """Raise `MemoryRefused` with both sizes if `needed` bytes are more than any device has that may run the task.

        Call it before the evaluation, because a failed allocation in MLX is a segmentation fault. Raises `MemoryNotReserved`, which an
        operation must not catch, if the task has to wait for the memory, of this device or of a larger one.
        """
        if self.memory_total is None:
            return
        largest = max(self.memory_total, self.memory_largest or 0)
        if needed > largest:
            raise MemoryRefused.because(needed, largest, what)
        if needed > self.memory_total:
            raise MemoryNotReserved(needed)
        if self.memory_reserved is not None and needed - self.memory_reserved > self.memory_total * UNRESERVED_SHARE:
            raise MemoryNotReserved(needed)


def _finite(value: Any) -> float | None:
    """Convert `value` to an int or a finite float for JSON; None if it is infinite, NaN or too large; raise TypeError for other types."""
    with contextlib.suppress(TypeError):  # not an integer or an integer array scalar
        if -LARGEST_EXACT <= (number := operator.index(value)) <= LARGEST_EXACT:
            return number
    try:
        real = math.fsum((value,))  # unlike float(), it rejects text
    except OverflowError:
        return None
    except (TypeError, ValueError):
        raise TypeError(f"progress() takes numbers, not {type(value).__name__}") from None
    return real if math.isfinite(real) else None
