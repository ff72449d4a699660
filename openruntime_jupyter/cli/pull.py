"""The command `jupyter openruntime pull`, which downloads a local model."""

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
"""Width of the progress bar, in characters."""
EVERY = 0.1
"""Minimum interval between redraws, in seconds."""


def parser() -> argparse.ArgumentParser:
    """Return the parser for the command."""
    made = argparse.ArgumentParser("jupyter openruntime pull", description="Download a local model for prompts. No account is needed.")
    made.add_argument("name", nargs="?", help=f"model name (default: {KNOWN[0].name})")
    made.add_argument("--list", action="store_true", help="list the available models and whether each is downloaded")
    made.add_argument("--force", action="store_true", help="download again even if the model exists")
    made.add_argument(
        "--models-dir", type=Path, metavar="FOLDER", help="target folder (default: `models` in the data folder, where servers look)"
    )
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code: 1 after an error, which is printed to stderr."""
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
        print("jupyter openruntime pull: interrupted; completely downloaded wheels are kept and reused by the next pull", file=sys.stderr)
        return 130
    bar.end()
    print(f"{model.name} {'downloaded' if pulled.fetched else 'already exists'}: {pulled.path}")
    return 0


def _listed(folder: Path) -> str:
    lines = []
    for model in KNOWN:
        path = folder / model.file
        where = str(path) if path.exists() else f"not downloaded ({model.wheel_size / 1e6:.0f} MB)"
        lines.append(f"{model.name}: {model.summary}\n  {where}")
    return "\n".join(lines)


class Bar:
    """Progress bar on a terminal. Without a terminal, only the messages are printed."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._drawn_at = 0.0
        self._drawn = False

    def say(self, text: str) -> None:
        """Print a message on a separate line."""
        self.end()
        print(text, file=sys.stderr, flush=True)

    def show(self, step: str, done: int, total: int) -> None:
        """Draw the progress: `done` of `total` bytes."""
        now = time.monotonic()
        if not self._terminal or (now - self._drawn_at < EVERY and done < total):
            return
        filled = WIDTH * done // max(1, total)
        bar = "█" * filled + "░" * (WIDTH - filled)
        sys.stderr.write(f"\r{step:<10} {bar} {done / 1e6:6.1f} of {total / 1e6:.1f} MB")
        sys.stderr.flush()
        self._drawn_at, self._drawn = now, True

    def end(self) -> None:
        """End the line of the bar."""
        if self._drawn:
            sys.stderr.write("\n")
            self._drawn = False
