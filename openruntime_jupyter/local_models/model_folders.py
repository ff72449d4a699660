"""Models in the folders of other programs: the Hugging Face cache, LM Studio and Ollama."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openruntime_jupyter.local_models.folder import NotAModel, open_file

DEEPEST = 3
"""Levels of folders that are searched: LM Studio has one for the publisher and one for the model."""
MOST_ENTRIES = 10_000
"""Maximum number of files and folders that are looked at in one folder of models."""
LONGEST_MANIFEST = 1_000_000
"""Maximum length in bytes of a manifest of Ollama."""
OLLAMA_WEIGHTS = "application/vnd.ollama.image.model"
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
HUB_FOLDER = "models--"

Found = tuple[str, Path]
"""Name, without `.gguf`, and path of a possible model."""


def models_in(folder: Path) -> Iterator[Found]:
    """Yield the possible models in a folder: GGUF files and folders with a `config.json`, at most three levels down.

    A model of the Hugging Face cache has the name of its repository, a GGUF file in it the name of the file; a model of Ollama has the
    name that Ollama shows. Folders that can't be read are skipped.
    """
    with contextlib.suppress(OSError):
        yield from _ollama(folder) if (folder / "manifests").is_dir() else _tree(folder, [MOST_ENTRIES], DEEPEST)


def _tree(folder: Path, left: list[int], depth: int) -> Iterator[Found]:
    for entry in sorted(folder.iterdir()):
        left[0] -= 1
        if left[0] < 0:
            return
        with contextlib.suppress(OSError):
            if entry.name.startswith("."):
                continue
            if entry.name.startswith(HUB_FOLDER):
                yield from _snapshot(entry, left)
            elif entry.suffix == ".gguf":
                yield entry.name.removesuffix(".gguf"), entry
            elif (entry / "config.json").exists():
                yield entry.name, entry
            elif depth > 1 and entry.is_dir():
                yield from _tree(entry, left, depth - 1)


def _snapshot(folder: Path, left: list[int]) -> Iterator[Found]:
    """Yield the models in the current snapshot of a repository in the Hugging Face cache, whose files are links."""
    current = folder / "refs" / "main"
    snapshots = folder / "snapshots"
    revision = current.read_text(encoding="ascii").strip() if current.exists() else max(entry.name for entry in snapshots.iterdir())
    if not re.fullmatch(r"\w+", revision):
        return
    if (snapshots / revision / "config.json").exists():
        yield folder.name.rpartition("--")[2], snapshots / revision
    yield from ((name, path) for name, path in _tree(snapshots / revision, left, 1) if path.suffix == ".gguf")


def _ollama(folder: Path) -> Iterator[Found]:
    """Yield the models of Ollama: each manifest names the file with the weights."""
    for number, manifest in enumerate(sorted((folder / "manifests").glob("*/*/*/*"))):
        if number >= MOST_ENTRIES:
            return
        with contextlib.suppress(OSError, NotAModel, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            for layer in _manifest(manifest)["layers"]:
                digest = DIGEST.fullmatch(layer["digest"])
                if layer["mediaType"] == OLLAMA_WEIGHTS and digest is not None:
                    yield f"{manifest.parent.name}:{manifest.name}", folder / "blobs" / f"sha256-{digest[1]}"


def _manifest(path: Path) -> dict[str, Any]:
    with open_file(path) as (file, _):
        read: dict[str, Any] = json.loads(file.read(LONGEST_MANIFEST))
    return read
