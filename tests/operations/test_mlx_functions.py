from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import pytest

from openruntime_jupyter.operations.mlx import functions
from openruntime_jupyter.operations.mlx.expressions import FUNCTIONS

SCRIPT = Path(__file__).parents[2] / "tools" / "list-mlx-functions"
TOOL = runpy.run_path(str(SCRIPT))
UNSAFE = """
    load save save_gguf save_safetensors savez savez_compressed import_function export_function export_to_dot exporter eval async_eval
    compile disable_compile enable_compile checkpoint grad value_and_grad vjp jvp vmap stream new_stream new_thread_local_stream
    new_thread_unsafe_stream set_default_device set_default_stream set_cache_limit set_memory_limit set_wired_limit set_printoptions
    clear_cache clear_streams reset_peak_memory synchronize from_dlpack asarray array custom_function random.seed random.state
    fast.metal_kernel fast.cuda_kernel fast.precompiled_cuda_kernel metal.start_capture distributed.init distributed.send depends
    as_strided take gather_mm put_along_axis device_info printoptions
"""


def test_function_list_matches_installed_mlx():
    assert functions.functions() == TOOL["derive"](), "run `tools/list-mlx-functions` and look at the change"


def test_unsafe_functions_are_excluded():
    assert not functions.functions().keys() & {*UNSAFE.split()}


def test_function_with_other_parameter_types_is_excluded():
    assert TOOL["_fits"]("f(a: array, axis: None | int = None) -> tuple[array, array]")
    for text in (
        "f(a: array, file: str | Path) -> array",
        "f(fun: Callable, a: array) -> array",
        "f(a: array, source: bytes) -> array",
        "f(a: array) -> object",
        "f(a: array) -> array | dict[str, array]",
        "f(a: array)",
        "f() -> array",
    ):
        assert not TOOL["_fits"](text), text


def test_every_mlx_module_is_included_or_excluded_explicitly():
    modules = {name for name, value in vars(mx).items() if isinstance(value, ModuleType)}
    assert modules - {"cuda", "distributed", "metal"} == set(TOOL["MODULES"]) - {""}


def test_every_signature_is_parsed_without_stream():
    for name in functions.functions():
        signature = functions.signature(name)
        assert signature.by_name or signature.positional, name
        assert "stream" not in signature.by_name
        assert "mlx" not in signature.text


def test_compute_functions_are_allowed_and_take_no_indices():
    assert set(FUNCTIONS.values()) <= set(functions.functions())
    assert not set(FUNCTIONS.values()) & set(functions.REJECTED)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("matmull", "did you mean matmul"),
        ("take", "take is not available: MLX does not check its indices"),
        ("__class__", "'__class__' is not one of the"),
    ],
)
def test_unavailable_function_is_rejected_with_hint(name, hint):
    assert hint in functions.rejection(name)


PROGRAM = """
import sys
from pathlib import Path
from openruntime_jupyter.operations.registry import BUILT_IN, operation
for name in BUILT_IN:
    kind = operation(name)
    kind.params.model_json_schema()
    if not kind.needs_execute:
        params = kind.validate({"messages": [{"role": "user", "content": "hello"}]} if kind.answers_prompts else {})
        kind.memory(params), kind.seconds(params)
operation("compute").validate({"expression": "sum(a)", "inputs": {"a": {"random": [3, 3]}}})
operation("mlx_operation").validate({"function": "linalg.norm", "args": [[3, 4]]})
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("mlx", "numpy", "IPython", "tornado", "jupyter_server")))
"""


def test_listing_and_validation_import_neither_mlx_nor_numpy():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
