"""Kept key-value caches of MLX models: their number and size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from openruntime_jupyter.local_models.gguf import CONTEXT

TOKEN = 256
"""Bytes of a token in the cache of the tiny model."""

PROGRAM = """
import json, sys
from openruntime_jupyter.local_models.mlx_loading import import_mlx_lm
import_mlx_lm(offline=True)
import mlx.core as mx, mlx_lm
from openruntime_jupyter.local_models.mlx_model import MlxModel
from openruntime_jupyter.local_models.mlx_prompt_cache import PromptCaches
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.schemas.values import GenerationOptions
model, tokenizer = mlx_lm.load(sys.argv[1])
caches, sizes = PromptCaches(model, int(sys.argv[2])), []

def kept(number, length, free=1 << 40):
    tokens = [number, *range(length - 1)]
    cache, _ = caches.take(tokens)
    model(mx.array(tokens)[None], cache=cache)
    caches.keep(tokens, cache, free)
    sizes.append(caches.nbytes)
    return caches.take(tokens)[1]

found = [kept(number, 256) for number in range(40)]
oldest = caches.take([0, *range(255)])[1]
long = kept(50, 290)
scarce = kept(60, 256, -sizes[-1] // 2)

loaded = MlxModel("tiny", model, tokenizer, None, int(sys.argv[2]) // 4)
tokens, options = list(range(300)), GenerationOptions(max_tokens=2)
context = TaskContext(device_type="gpu", memory_total=mx.get_active_memory() + (1 << 20))
reused = [loaded.write(tokens, options, context)["cached_tokens"] for _ in range(2)]
context.memory_total = mx.get_active_memory() + int(sys.argv[2]) * 302 - 1
reused.append(loaded.write(tokens, options, context)["cached_tokens"])
print(json.dumps([found, oldest, max(sizes), long, scarce, sizes[-1], reused]))
"""


def test_caches_of_mlx_stay_within_their_bytes(folder: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(TOKEN)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, oldest, most, long, scarce, last, reused = json.loads(done.stdout)
    assert found == [255] * 40, "the last token is computed again"
    assert oldest == 0, "it is deleted"
    assert most <= CONTEXT * TOKEN
    assert long == 289
    assert scarce == 255
    assert last <= most // 2, "half of the memory is left to others"
    assert reused == [0, 299, 0], "a prompt deletes them if it needs their memory"
