"""Parameters as stored in the history: every value that a caller may pass, in either of the two encoders."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pytest

from openruntime_jupyter.runtime.storage.rows import decode_parameters, encode_parameters


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [1, 1.5, None, True, "é\n\0\U0001f600", "\ud800", [], {"": {}}, 2**200, -math.inf, nested(150), nested(500)],
    ids=lambda value: type(value).__name__,
)
def test_parameters_survive_the_history(value: Any) -> None:
    encoded = encode_parameters({"value": value})
    assert decode_parameters(encoded.encode()) == {"value": value}


def test_nan_and_other_objects_are_stored() -> None:
    day = dt.date(2026, 11, 30)
    stored = decode_parameters(encode_parameters({"nan": math.nan, "day": day, "text": "\ud800", "path": object}).encode())
    assert math.isnan(stored["nan"])
    assert (stored["day"], stored["text"]) == ("2026-11-30", "\ud800")


@pytest.mark.parametrize("damaged", [b"", b"{", b'{"a": }', b"\xff", b"5", b"[1]", b"null"])
def test_damaged_parameters_raise(damaged: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        decode_parameters(damaged)
