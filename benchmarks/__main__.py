"""Command line of the benchmarks: `python -m benchmarks [NAME ...]`.

Each benchmark alternates with its peers in one run and prints ratios of medians. Run them on an idle machine.
"""

from __future__ import annotations

import importlib
import sys

from benchmarks.rows import HEAD, Missing, not_measured

NAMES = (
    "arrays",
    "cluster",
    "engine",
    "generate",
    "history",
    "hosts",
    "http",
    "insights",
    "labextension",
    "magics",
    "map",
    "matmul",
    "prompts",
    "reload",
    "sampler",
    "soak",
    "schemathesis",
    "sdk",
    "start",
    "transfer",
)


def main(names: list[str]) -> int:
    """Print the rows of the named benchmarks, or of all. Return 1 if a row missed its target, 2 for an unknown name."""
    if unknown := sorted(set(names) - set(NAMES)):
        print(f"Unknown benchmark {', '.join(unknown)}; known: {', '.join(NAMES)}", file=sys.stderr)
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
        except ModuleNotFoundError as problem:
            print(not_measured(name, f"{problem}: pip install 'openruntime-jupyter[test,bench]'"), flush=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
