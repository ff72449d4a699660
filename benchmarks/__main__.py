"""`python -m benchmarks [NAME ...]`: runs the benchmarks one after the other and prints their rows.

Each runs its peers in the same run, in turns, and prints ratios of medians. Nothing else should run on the machine.
"""

from __future__ import annotations

import importlib
import sys

from benchmarks.rows import HEAD

NAMES = ("arrays", "engine", "generate", "http", "insights", "matmul", "prompts", "sampler", "start")


def main(names: list[str]) -> int:
    """Print the rows of the named benchmarks, or of all; 1 if one was not met."""
    print(HEAD, flush=True)
    met = True
    for name in names or NAMES:
        for row in importlib.import_module(f"benchmarks.{name}").rows():
            print(row, flush=True)
            met = met and row.met
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
