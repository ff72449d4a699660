"""Input and result arrays of a task."""

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
        for number, place in enumerate(self._places):
            folder, most, room = place
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
