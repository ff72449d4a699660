from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
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
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
