"""Where a task finds the arrays that it was given, and leaves those that it gives back."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.arrays import array_file
from openruntime_jupyter.arrays.array_file import Layout
from openruntime_jupyter.arrays.blocks import UNFINISHED
from openruntime_jupyter.errors import ArrayNotFound, StorageUnavailable, gigabytes

if TYPE_CHECKING:
    from openruntime_jupyter.arrays.conversion import Array


class ArrayIO:
    """The arrays of one task.

    `said` is what the engine told: paths of `inputs` by id, `name`, and `places`: a folder, the bytes that results may have there, and
    how many of these without free blocks being given back.
    """

    def __init__(self, said: dict[str, Any] | None = None) -> None:
        said = said or {}
        self._inputs: dict[str, str] = said.get("inputs", {})
        self._name: str = said.get("name", "")
        self._places: list[list[Any]] = [[folder, most, room] for folder, most, room in said.get("places", ())]
        self.stored: list[dict[str, Any]] = []
        """What was left here, in the words of the result frame."""

    @property
    def usable(self) -> bool:
        """Whether arrays can be left here at all: an operation that is called by hand has no runtime around it."""
        return bool(self._places)

    def layout(self, array_id: str) -> Layout:
        """What an input is; raises `ArrayNotFound`."""
        descriptor = array_file.open_for_reading(self._path(array_id), array_id)
        try:
            return array_file.read(descriptor, array_id)
        finally:
            os.close(descriptor)

    def view(self, array_id: str) -> Array:
        """An input as NumPy array, mapped; changing it changes no one else's. Raises `ArrayNotFound`."""
        from openruntime_jupyter.arrays import conversion

        return conversion.view(self._path(array_id), array_id)

    def store(self, value: Any, layout: Layout) -> None:
        """Leave an array here; raises `StorageUnavailable` with figures where there is no room."""
        from openruntime_jupyter.arrays import conversion

        array_id = f"{self._name}.{len(self.stored)}"
        refusal: StorageUnavailable | None = None
        for number, place in enumerate(self._places):
            folder, most, room = place
            if layout.size > most:
                continue
            try:
                # The runtime takes the ending off once the task is done: what else has it was left by a worker that died.
                conversion.store(value, Path(folder, f"{array_id}{UNFINISHED}"), layout, room)
            except StorageUnavailable as problem:
                refusal = problem
                continue
            self._take(layout.size)
            told = {"id": array_id, "shape": layout.shape, "dtype": layout.dtype, "kind": layout.kind, "place": number}
            self.stored.append(told)
            return
        most = max((most for _, most, _ in self._places), default=0)
        raise refusal or StorageUnavailable(
            f"A result array of {gigabytes(layout.size)} does not fit: results may have {gigabytes(max(0, most))} now. Delete arrays that "
            "are no longer needed, raise the setting array_bytes, or return less."
        )

    def clear(self) -> None:
        """Delete the results that were left here."""
        for told in self.stored:
            with contextlib.suppress(OSError):
                Path(self._places[told["place"]][0], f"{told['id']}{UNFINISHED}").unlink()
            self._take(-Layout(tuple(told["shape"]), told["dtype"], told["kind"]).size)
        self.stored = []

    def _take(self, size: int) -> None:
        for place in self._places:
            place[1:] = [left - size for left in place[1:]]

    def _path(self, array_id: str) -> str:
        if array_id not in self._inputs:
            raise ArrayNotFound(f"The array {array_id} is none of this task's.")
        return self._inputs[array_id]
