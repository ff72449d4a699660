"""Arguments for which a library would end the process are rejected, and the worker lives on."""

from __future__ import annotations

import pytest

from openruntime_jupyter.runtime.runtime import Runtime
from tests.runtimes import completed, failed, submit


@pytest.mark.parametrize("function", ["linalg.eig", "linalg.eigvals"])
async def test_eigenvalues_of_infinities_are_rejected(runtime: Runtime, function: str) -> None:
    infinite = {"function": function, "args": [[[1.0, 2.0], [3.0, 1e39]]]}  # 1e39 is infinite in float32
    failure = await failed(runtime, await submit(runtime, "mlx_operation", infinite))
    assert (failure.kind, failure.type) == ("raised", "InvalidRequest")
    assert "infinities" in failure.message
    await completed(runtime, await submit(runtime, "mlx_operation", {"function": function, "args": [[[1.0, 2.0], [3.0, 4.0]]]}))
