from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MLX brings a good BLAS of its own on macOS")

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
    """What a fresh process gets, and what its MLX computes then."""
    answer = subprocess.run([sys.executable, "-c", ASK, path], capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(answer.stdout)
    return found


def library(folder: Path, source: str) -> str:
    """A shared library of that C source."""
    (folder / "blas.c").write_text(source)
    built = folder / "libspy.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(built), str(folder / "blas.c")], check=True)
    return str(built)


SPY = """
void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb,
                 float beta, float *c, int ldc) { for (int i = 0; i < m; i++) for (int j = 0; j < n; j++) c[i * ldc + j] = 42.0f; }
"""


def test_mlx_multiplies_with_the_library_that_was_loaded_before_it(tmp_path: Path) -> None:
    found = choose(library(tmp_path, SPY))
    assert found == {"name": "libspy.so", "advice": None, "corner": 42.0}


def test_a_blas_with_64_bit_integers_is_refused_and_that_is_said(tmp_path: Path) -> None:
    wide = SPY + 'char *openblas_get_config(void) { return "OpenBLAS 0.3.29 USE64BITINT DYNAMIC_ARCH"; }'
    found = choose(library(tmp_path, wide))
    assert "reference" in str(found["name"])
    assert "32-bit integers" in str(found["advice"])


def test_a_configured_path_that_does_not_exist_is_told_and_mlx_computes_all_the_same() -> None:
    found = choose("/no/such/libblas.so")
    assert "/no/such/libblas.so" in str(found["advice"])
    assert found["corner"] == 64.0


def test_none_takes_mlxs_own_without_advice() -> None:
    assert choose("none") == {"name": "reference (bundled with MLX)", "advice": None, "corner": 64.0}


def test_the_best_one_found_is_named_and_without_one_there_is_advice() -> None:
    found = choose("")
    assert found["corner"] == 64.0
    assert ("apt-get install libopenblas0-pthread" in str(found["advice"])) == ("reference" in str(found["name"]))
