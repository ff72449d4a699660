"""JSON summaries of arrays: type, statistics, and the values of small ones."""

from __future__ import annotations

import math
from typing import Any

INLINE_VALUES = 1000
"""Maximum number of elements for which the values are included."""
CHUNK = 250_000
"""Elements that are processed at once; interrupts are handled between chunks."""
LOOKING = 5 * CHUNK
"""Bytes that a summary needs in MLX: a chunk of bfloat16 as float32, and overhead."""


def summary(array: Any) -> dict[str, Any]:
    """Summarise an evaluated MLX array as JSON.

    Returns
    -------
    `shape`, `dtype`, `size` (elements), `nbytes`;
    `min`, `max`, `mean` of the finite elements, or of their magnitudes for complex arrays; None without finite elements;
    `non_finite`: number of infinite and NaN elements;
    `value`: nested lists, or None for more than 1,000 elements. Non-finite elements are None, complex ones `{"real": …, "imag": …}`.
    """
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype).rpartition(".")[2].removesuffix("_"),
        "size": math.prod(array.shape),
        "nbytes": array.nbytes,
        **_statistics(array),
        "value": plain(array.tolist()) if _small(array.shape) else None,
    }


def plain(value: Any) -> Any:
    """Replace numbers in nested lists that JSON does not support."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, complex):
        return {"real": plain(value.real), "imag": plain(value.imag)}
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _small(shape: tuple[int, ...]) -> bool:
    """Return whether the nested lists are small; an empty array can have any number of empty rows."""
    return math.prod(side for side in shape if side) <= INLINE_VALUES


def _statistics(array: Any) -> dict[str, Any]:
    import mlx.core as mx
    import numpy as np

    least = most = None
    total, finite, size = 0.0, 0, math.prod(array.shape)
    flat: Any = mx.reshape(array, (-1,)) if size else None
    for start in range(0, size, CHUNK):
        piece = flat[start : start + CHUNK]
        if array.dtype == mx.bfloat16:
            piece = piece.astype(mx.float32)  # NumPy has no bfloat16
        values = np.array(piece)
        if values.dtype.kind == "c":
            with np.errstate(all="ignore"):
                values = np.abs(values)
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        if values.size:
            low, high = values.min().item(), values.max().item()
            least = low if least is None else min(least, low)
            most = high if most is None else max(most, high)
            finite += values.size
            total += float(values.sum(dtype=np.float64))
    return {"min": least, "max": most, "mean": total / finite if finite else None, "non_finite": size - finite}
