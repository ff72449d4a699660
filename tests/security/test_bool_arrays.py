"""Bool arrays with bytes other than 0 and 1: programs compute different values with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openruntime_jupyter.arrays import conversion
from openruntime_jupyter.arrays.array_layout import Layout
from openruntime_jupyter.errors import ArrayNotFound, InvalidRequest
from tests.runtime.array_support import store_in


async def test_array_with_bad_bool_bytes_is_rejected_and_removed(tmp_path: Path) -> None:
    layout = Layout((3, 1_000_000), "bool")
    async with store_in(tmp_path) as arrays:
        for name, byte in (("good", 1), ("bad", 7)):
            info = await arrays.allocate(layout, name=name)
            with open(str(info.path), "r+b") as file:
                file.seek(layout.offset + 2_500_000)
                file.write(bytes([1, byte]))
            if byte == 1:
                assert (await arrays.ready(name)).state == "ready"
            else:
                with pytest.raises(InvalidRequest, match=r"element 2500001 of the bool array has the byte 7: use 0 or 1"):
                    await arrays.ready(name)
        with pytest.raises(ArrayNotFound):
            await arrays.info("bad")
        assert [array.id for array in arrays.page().arrays] == ["good"]


@pytest.mark.parametrize("order", ["C", "F"])
def test_views_with_other_bytes_are_stored_as_0_and_1(tmp_path: Path, order: str) -> None:
    array = np.frombuffer(bytes(range(12)), bool).reshape(3, 4)
    if order == "F":
        array = array.T
    conversion.store(array, tmp_path / "array.part")
    found = conversion.view(tmp_path / "array.part", "array")
    assert found.view(np.uint8).max() == 1
    assert (found == (array.view(np.uint8) != 0)).all()
