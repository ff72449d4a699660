"""Which BLAS MLX uses on the CPU, chosen before `import mlx.core`.

The `mlx-cpu` wheel bundles the reference BLAS, some 40 times slower in float32 than a tuned one. A library loaded with
`RTLD_GLOBAL` before MLX takes its place. Only Linux needs it: on macOS MLX uses Accelerate.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ADVICE = (
    "MLX computes on its slow built-in BLAS. For float32 up to 40 times as fast: `apt-get install libopenblas0-pthread` "
    "(or your system's OpenBLAS), or `pip install 'openruntime-jupyter[blas]'`."
)


@dataclass(frozen=True)
class Blas:
    """The BLAS in use, and how to bound its threads."""

    name: str
    advice: str | None = None
    set_threads: Callable[[int], None] = lambda count: None
    fast: bool = True
    """Whether float32 gains by it: then a model computes faster in float32 than quantised."""


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
    """What `library` is; None for one that MLX must not use (no CBLAS, or 64-bit integers, which LAPACK calls answer wrongly)."""
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

    Returns None where MLX brings a good one of its own. A configured path that does not load is told in `advice`.
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
        if (found := _described(library, path)) is not None:
            return found
        problem = f"{path} is no CBLAS with 32-bit integers"
    if configured:
        return Blas(built_in.name, f"The configured BLAS can't be used: {problem}. {ADVICE}", fast=False)
    return built_in
