"""Choice of the BLAS that MLX uses on the CPU, before `import mlx.core`.

The `mlx-cpu` wheel bundles the reference BLAS, about 40 times slower in float32 than an optimised one. A library loaded
with `RTLD_GLOBAL` before MLX replaces it. This is only for Linux: on macOS MLX uses Accelerate.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ADVICE = (
    "MLX uses its slow bundled BLAS. For up to 40 times faster float32: `apt-get install libopenblas0-pthread` "
    "(or your system's OpenBLAS), or `pip install 'openruntime-jupyter[blas]'`."
)


@dataclass(frozen=True)
class Blas:
    """BLAS in use, with a function to limit its threads."""

    name: str
    advice: str | None = None
    set_threads: Callable[[int], None] = lambda count: None
    fast: bool = True
    """True if it is optimised for float32, so that models compute faster in float32 than quantised."""


def _candidates() -> Iterator[str]:
    yield "libopenblas.so.0"
    yield "libopenblas.so"
    for folder in map(Path, sys.path):
        yield from map(str, sorted(folder.glob("cmeel.prefix/lib/libopenblas.so*")))
        if platform.machine() == "aarch64":
            yield from map(str, sorted(folder.glob("nvpl/lib/libnvpl_blas_lp64_gomp.so*")))
    if platform.machine() in ("x86_64", "AMD64"):
        yield from map(str, sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")))


def _described(library: ctypes.CDLL, path: str) -> Blas | None:
    """Return the BLAS in `library`; None for an unusable one (no CBLAS, or 64-bit integers, which give wrong LAPACK results)."""
    if not hasattr(library, "cblas_sgemm"):
        return None
    if hasattr(library, "openblas_get_config"):
        library.openblas_get_config.restype = ctypes.c_char_p
        config = (library.openblas_get_config() or b"").decode(errors="replace")
        if "USE64BITINT" in config:
            return None
        return Blas(" ".join(config.split()[:2]) or "OpenBLAS", set_threads=library.openblas_set_num_threads)
    if hasattr(library, "MKL_Set_Num_Threads"):
        return Blas("MKL", set_threads=library.MKL_Set_Num_Threads)
    return Blas(Path(path).name)


def choose(configured: str) -> Blas | None:
    """Load a BLAS for MLX: `configured` is a path, `none`, or empty for the best one found.

    Returns None on platforms where MLX has a fast one. An unusable configured path is reported in `advice`.
    """
    if not sys.platform.startswith("linux"):
        return None
    built_in = Blas("reference (bundled with MLX)", ADVICE, fast=False)
    if configured == "none":
        return Blas(built_in.name, fast=False)
    problem = ""
    for path in [configured] if configured else _candidates():
        try:
            library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            problem = str(error)
            continue
        if (blas := _described(library, path)) is not None:
            return blas
        problem = f"{path} is not a CBLAS with 32-bit integers"
    if configured:
        return Blas(built_in.name, f"The configured BLAS can't be used: {problem}. {ADVICE}", fast=False)
    return built_in
