"""llama.cpp server in a separate process, as an independent reference: `python llama_cpp.py MODEL` prints its address."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

FOUND = "listening at "
LIMIT = 60.0


@contextmanager
def llama_cpp(model: Path) -> Iterator[httpx.Client]:
    """Start a server for this model, yield a client, and stop it at the end."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        address = next((line.removeprefix(FOUND).strip() for line in process.stdout if line.startswith(FOUND)), None)
        assert address is not None, f"llama.cpp did not load {model}"
        with httpx.Client(base_url=address, trust_env=False, timeout=LIMIT) as client:
            yield client
    finally:
        process.kill()
        process.communicate()


def _serve(model: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.port = 0
    params.n_ctx = 512
    params.n_parallel = 1
    params.flash_attn_type = 0  # it computes in 16 bits
    params.warmup = False
    params.fit_params = False
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{FOUND}{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()  # until the parent process exits


if __name__ == "__main__":
    _serve(sys.argv[1])
