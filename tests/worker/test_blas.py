from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MLX has a fast BLAS on macOS")

ASK = """
import json, sys
from openruntime_jupyter.worker.blas import choose
blas = choose(sys.argv[1])
import mlx.core as mx
a = mx.ones((64, 64))
product = a @ a
mx.eval(product)
print(json.dumps({"name": blas.name, "advice": blas.advice, "corner": product[0, 0].item()}))
"""


def choose(path: str) -> dict[str, object]:
    """Return the BLAS of a new process and a result of its MLX."""
    answer = subprocess.run([sys.executable, "-c", ASK, path], capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(answer.stdout)
    return found


def library(folder: Path, source: str) -> str:
    """Build a shared library from C source."""
    (folder / "blas.c").write_text(source)
    built = folder / "libspy.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(built), str(folder / "blas.c")], check=True)
    return str(built)


SPY = """
void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb,
                 float beta, float *c, int ldc) { for (int i = 0; i < m; i++) for (int j = 0; j < n; j++) c[i * ldc + j] = 42.0f; }
"""


def test_mlx_uses_library_loaded_before_it(tmp_path: Path) -> None:
    found = choose(library(tmp_path, SPY))
    assert found == {"name": "libspy.so", "advice": None, "corner": 42.0}


def test_blas_with_64_bit_integers_is_rejected(tmp_path: Path) -> None:
    wide = SPY + 'char *openblas_get_config(void) { return "OpenBLAS 0.3.29 USE64BITINT DYNAMIC_ARCH"; }'
    found = choose(library(tmp_path, wide))
    assert "reference" in str(found["name"])
    assert "32-bit integers" in str(found["advice"])


def test_missing_configured_path_is_reported() -> None:
    found = choose("/no/such/libblas.so")
    assert "/no/such/libblas.so" in str(found["advice"])
    assert found["corner"] == 64.0


def test_none_selects_bundled_blas_without_advice() -> None:
    assert choose("none") == {"name": "reference (bundled with MLX)", "advice": None, "corner": 64.0}


def test_best_blas_is_named_or_advice_given() -> None:
    found = choose("")
    assert found["corner"] == 64.0
    assert ("apt-get install libopenblas0-pthread" in str(found["advice"])) == ("reference" in str(found["name"]))
