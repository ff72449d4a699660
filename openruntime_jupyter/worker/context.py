"""Context of a running task for its operation."""

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
"""Minimum seconds between two progress messages of one task."""
LARGEST_EXACT = 2**53
"""Largest integer that every JSON parser represents exactly."""
LONGEST_MESSAGE = 1000
"""Maximum characters of a progress message."""

Send = Callable[[str, dict[str, Any]], None]


class TaskContext:
    """Context of the task that this worker runs.

    Parameters
    ----------
    device_type : `"gpu"` or `"cpu"`, which is already MLX's default device
    memory_total : memory of the device in bytes; None if unknown
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
        """Number of modules imported when the task began or its model was loaded; an interrupt may leave later ones incomplete."""
        self.imported: list[str] = []
        """Installed modules that the task imported and that can be imported ahead of other tasks."""
        self._send = send
        # Held while a message is sent, so that no message follows the end of the task. Reentrant, because signal handlers may send too.
        self._send_lock = threading.RLock()
        self._progress: dict[str, Any] | None = None
        self._sent_at = float("-inf")

    def end(self) -> None:
        """End the task: messages from its remaining threads are dropped."""
        with self._send_lock:
            self._send = None

    def progress(self, n: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress. At most ten messages a second are sent; the last one is always sent.

        Numbers may be of any type, including NumPy and MLX scalars. A non-finite `n` is ignored, and a non-finite `total` counts as
        unknown. Raises TypeError for other types.
        """
        done, limit = _finite(n), None if total is None else _finite(total)
        if done is None:
            return
        self._progress = {"n": done, "total": limit, "message": None if message is None else str(message)[:LONGEST_MESSAGE]}
        if time.monotonic() - self._sent_at >= PROGRESS_INTERVAL:
            self.flush_progress()

    def flush_progress(self) -> None:
        """Send the pending progress message."""
        with self._send_lock:
            if self._progress is not None and self._send is not None:
                self._send("progress", self._progress)
                self._sent_at = time.monotonic()
            self._progress = None

    def token(self, text: str) -> None:
        """Send a piece of generated text immediately."""
        with self._send_lock:
            if text and self._send is not None:
                self._send("token", {"text": text})

    def display(self, data: dict[str, Any], metadata: dict[str, Any] | None = None, output_type: str = "display_data") -> None:
        """Send a MIME bundle to the watchers, after everything printed so far."""
        with self._send_lock:
            if self._send is not None:
                self._send("display", {"output_type": output_type, "data": data, "metadata": metadata or {}})

    def silent(self) -> TaskContext:
        """Return a context of the same task that reports nothing."""
        return TaskContext(self.task_id, self.device_type, self.memory_total)

    def language_model(self) -> LanguageModel:
        """Return the model of this worker, loaded on first use; raise the errors of `local_models.loading.load`."""
        from openruntime_jupyter.local_models.loading import load

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
        """Raise `MemoryRefused` with both sizes if `needed` bytes are more than the device has.

        Call it before the evaluation, because a failed allocation in MLX is a segmentation fault.
        """
        if self.memory_total is not None and needed > self.memory_total:
            raise MemoryRefused(needed, self.memory_total, what)


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
