"""Context of a running task, as operations get it."""

from __future__ import annotations

import contextlib
import math
import operator
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.errors import MemoryRefused
from openruntime_jupyter.schemas.values import ModelSource
from openruntime_jupyter.worker.array_io import ArrayIO

if TYPE_CHECKING:
    from openruntime_jupyter.local_models.language_model import LanguageModel

KEPT = "language model"
PROGRESS_INTERVAL = 0.1
"""Seconds between two progress messages of one task: ten a second are enough for any eye."""
LARGEST_EXACT = 2**53
"""The largest integer up to which every reader of JSON tells one from the next."""
LONGEST_MESSAGE = 1000
"""Characters of what a task says beside its figures."""

Send = Callable[[str, dict[str, Any]], None]


class TaskContext:
    """The task that this worker runs now.

    `device_type` is `"gpu"` or `"cpu"` (MLX's default device is set to it already), `memory_total` the device's memory in
    bytes (None where unknown). `send(kind, body)` reaches the runtime; a context made without it reports to nobody, which is
    what calling an operation by hand needs. `model` is what the runtime's catalogue found for an operation with a model, and
    `resident` what such an operation keeps in its worker from one task to the next: a worker has one model. `fast_float32` says
    that the CPU computes best in float32, `session` that variables stay for the next task.
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
    ) -> None:
        self.task_id = task_id
        self.device_type = device_type
        self.memory_total = memory_total
        self.array_io = array_io or ArrayIO()
        self.model = model
        self.resident: dict[str, Any] = {} if resident is None else resident
        self.fast_float32 = fast_float32
        self.session = session
        self.modules = len(sys.modules)
        """How many were imported when the task began, or its model was loaded: an interrupt may have left half of a later one behind."""
        self.imported: list[str] = []
        """Installed modules that the task imported, where importing them ahead of another task gives the same."""
        self._send = send
        # Held while a message leaves, so that none of an ended task's is on its way. Reentrant: a task's signal handler may speak too.
        self._speaking = threading.RLock()
        self._progress: dict[str, Any] | None = None
        self._sent_at = float("-inf")

    def end(self) -> None:
        """The task is over: what a thread of its still says reaches nobody, least of all the next task's watchers."""
        with self._speaking:
            self._send = None

    def progress(self, n: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the task is; more than ten a second are coalesced, the last one always arrives.

        Any kind of number will do, NumPy's and MLX's too. One that is not finite tells nothing: such an `n` is passed over, and such a
        `total` is unknown. Raises TypeError for what is no number.
        """
        done, whole = _finite(n), None if total is None else _finite(total)
        if done is None:
            return
        self._progress = {"n": done, "total": whole, "message": None if message is None else str(message)[:LONGEST_MESSAGE]}
        if time.monotonic() - self._sent_at >= PROGRESS_INTERVAL:
            self.flush_progress()

    def flush_progress(self) -> None:
        """Send what `progress` held back."""
        with self._speaking:
            if self._progress is not None and self._send is not None:
                self._send("progress", self._progress)
                self._sent_at = time.monotonic()
            self._progress = None

    def token(self, text: str) -> None:
        """Send a piece of generated text, at once: somebody reads along."""
        with self._speaking:
            if text and self._send is not None:
                self._send("token", {"text": text})

    def display(self, data: dict[str, Any], metadata: dict[str, Any] | None = None, output_type: str = "display_data") -> None:
        """Show a MIME bundle where the task is watched, after everything printed so far."""
        with self._speaking:
            if self._send is not None:
                self._send("display", {"output_type": output_type, "data": data, "metadata": metadata or {}})

    def silent(self) -> TaskContext:
        """Return a context of the same task that reports nothing."""
        return TaskContext(self.task_id, self.device_type, self.memory_total)

    def language_model(self) -> LanguageModel:
        """The model of this worker, loaded unless it is in memory; raises what `worker.models.loading.load` raises."""
        from openruntime_jupyter.local_models.loading import load

        if KEPT not in self.resident:
            assert self.model is not None, "the runtime finds the model of an operation that is resident"
            self.resident[KEPT] = load(self.model, self)
            self.modules = len(sys.modules)
        kept: LanguageModel = self.resident[KEPT]
        return kept

    def array(self, array_id: str, kind: str | None = None) -> Any:
        """An array that the parameters name.

        `kind` is `"numpy"` for a NumPy array on the file's own memory (changing it changes no one else's), `"mlx"` for an MLX array,
        a copy; by default what it was where it came from. Raises `ArrayNotFound` where its file is gone.
        """
        from openruntime_jupyter.arrays import conversion

        view = self.array_io.view(array_id)
        return conversion.as_mlx(view) if (kind or self.array_io.layout(array_id).kind) == "mlx" else view

    def give(self, array: Any) -> None:
        """Leave an MLX or NumPy array as a result of its own: the task's `arrays` name it, in the order in which they are given.

        Raises `StorageUnavailable` where there is no room, and TypeError for what is no array.
        """
        from openruntime_jupyter.arrays import conversion

        layout = conversion.layout_of(array)
        if layout is None:
            raise TypeError(f"{type(array).__name__} can't be given as an array")
        self.array_io.store(array, layout)

    def pack(self, value: Any) -> tuple[bytes, str]:
        """`value` pickled, its large arrays left on the shelf, and how that is encoded; raises what pickling it raises."""
        from openruntime_jupyter.arrays import pickling as parcels

        if not self.array_io.usable:
            return parcels.pack(value, None), parcels.PLAIN
        try:
            return parcels.pack(value, self.array_io.store), parcels.OUTSIDE if self.array_io.stored else parcels.PLAIN
        except BaseException:
            self.array_io.clear()
            raise

    def measure(self, value: Any) -> int:
        """Return the bytes that `pack` needs for `value`, its arrays included; raises what pickling it raises."""
        from openruntime_jupyter.arrays import pickling as parcels

        return parcels.measure(value)

    def require_memory(self, needed: int, what: str = "This task") -> None:
        """Raise `MemoryRefused` with both figures if `needed` bytes are more than the device has.

        MLX answers a failed allocation with a segmentation fault, so this comes before the evaluation.
        """
        if self.memory_total is not None and needed > self.memory_total:
            raise MemoryRefused(needed, self.memory_total, what)


def _finite(value: Any) -> float | None:
    """`value` as a finite number that JSON holds, an int where it is one; None if it is infinite, NaN or too large; raises TypeError."""
    with contextlib.suppress(TypeError):  # no integer, nor an array of one
        if -LARGEST_EXACT <= (number := operator.index(value)) <= LARGEST_EXACT:
            return number
    try:
        real = math.fsum((value,))  # unlike float(), it takes no text
    except OverflowError:
        return None
    except (TypeError, ValueError):
        raise TypeError(f"progress() takes numbers, and not {type(value).__name__}") from None
    return real if math.isfinite(real) else None
