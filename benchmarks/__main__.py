"""`python -m benchmarks [NAME ...]`: runs the benchmarks one after the other and prints their rows.

Each runs its peers in the same run, in turns, and prints ratios of medians. Nothing else should run on the machine.
"""

from __future__ import annotations

import importlib
import sys

from benchmarks.rows import HEAD, Missing, not_measured

NAMES = ("arrays", "engine", "generate", "http", "insights", "magics", "map", "matmul", "prompts", "reload", "sampler", "start")


def main(names: list[str]) -> int:
    """Print the rows of the named benchmarks, or of all; 1 if one was not met, 2 for a name that there is not."""
    if unknown := sorted(set(names) - set(NAMES)):
        print(f"There is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    print(HEAD, flush=True)
    met = True
    for name in names or NAMES:
        try:
            for row in importlib.import_module(f"benchmarks.{name}").rows():
                print(row, flush=True)
                met = met and row.met
        except Missing as problem:
            print(not_measured(name, problem), flush=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
