"""Kept key-value caches of MLX models: their number and size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from openruntime_jupyter.local_models.gguf import CONTEXT

BOUNDED = """
import json, sys
from openruntime_jupyter.local_models.mlx_loading import import_mlx_lm
import_mlx_lm(offline=True)
import mlx.core as mx, mlx_lm
from mlx_lm.models.cache import make_prompt_cache
from openruntime_jupyter.local_models.mlx_prompt_cache import PromptCaches
model, _ = mlx_lm.load(sys.argv[1])
caches, free, sizes = PromptCaches(model, 256), 1 << 40, []

def keep(number, length, free):
    tokens = [number, *range(length - 1)]
    cache, _ = caches.take(tokens)
    model(mx.array(tokens)[None], cache=cache)
    caches.keep(tokens, cache, free)
    sizes.append(caches.nbytes)
    return caches.take(tokens)[1]

held = [keep(number, 256, free) for number in range(40)]
first = caches.take([0, *range(255)])[1]
long = keep(50, 290, free)
scarce = keep(60, 256, 0)
print(json.dumps([held, first, max(sizes), long, scarce, sizes[-1]]))
"""


def test_caches_of_mlx_stay_within_their_bytes(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BOUNDED, str(folder)], capture_output=True, text=True, check=True)
    held, first, most, long, scarce, last = json.loads(done.stdout)
    assert held == [255] * 40, "each one is found again"
    assert first == 0, "the oldest one is deleted"
    assert most <= CONTEXT * 256
    assert long == 289
    assert scarce == 0 or last <= most // 2
    assert last <= most // 2, "half of the memory is left to others"
