"""Arguments for which a library would end the process are rejected, and the worker lives on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtimes import ended, runtime_in, submit


@pytest.mark.parametrize("function", ["linalg.eig", "linalg.eigvals"])
async def test_eigenvalues_of_infinities_are_rejected(tmp_path: Path, function: str) -> None:
    async with runtime_in(tmp_path) as runtime:
        for numbers in ([[1.0, 2.0], [3.0, 1e39]], [[1.0, 2.0], [3.0, 4.0]]):  # 1e39 is infinite in float32
            task = await ended(runtime, await submit(runtime, "mlx_operation", {"function": function, "args": [numbers]}))
            if numbers[1][1] == 4.0:
                assert task.status == "completed", task.failure
            else:
                assert task.failure is not None
                assert (task.failure.kind, task.failure.type) == ("raised", "InvalidRequest")
                assert "infinities" in task.failure.message
