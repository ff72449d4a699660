"""Build `openruntime` from the files of `openruntime_jupyter` that a client over HTTP needs, found by their imports and renamed."""

from __future__ import annotations

import ast
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

HERE = Path(__file__).resolve().parent
NAME, SOURCE = "openruntime", "openruntime_jupyter"
BUILT = HERE / NAME
"""The built package, in a source distribution."""
PACKAGE = HERE.parents[1] / SOURCE
ROOT = f"{SOURCE}.client.sdk"
"""Module that becomes the package's `__init__.py`."""


def file_of(module: str) -> Path | None:
    """Return the file of a module of the source package, or None for other names."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    found = [path / "__init__.py"] if path.is_dir() else [path.with_suffix(".py")]
    return found[0] if module.startswith(f"{SOURCE}.") and found[0].is_file() else None


def imports_of(node: ast.AST) -> Iterator[str]:
    """Yield the modules that a module imports, also late ones, and the names that it imports from them. Skip imports for types."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        if isinstance(child, ast.ImportFrom):
            yield child.module or ""
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imports_of(child)


def closure() -> dict[str, Path]:
    """Return the files of the modules that the root imports, directly or not, by module."""
    found: dict[str, Path] = {}
    left = [ROOT]
    while left:
        module = left.pop()
        path = file_of(module)
        if path is not None and module not in found:
            found[module] = path
            left += imports_of(ast.parse(path.read_text(encoding="utf-8")))
            left.append(module.rpartition(".")[0])
    return found


def version() -> str:
    """Return the version, which is that of the source package."""
    folder = BUILT if BUILT.is_dir() else PACKAGE
    found = re.search(r'^__version__ = "(.+)"$', (folder / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def build(folder: Path) -> None:
    """Write the package into a folder."""
    for module, path in closure().items():
        text = path.read_text(encoding="utf-8")
        if module == ROOT:
            text = text.replace(f"from {SOURCE} import __version__, errors", f'__version__ = "{version()}"\n\nfrom {SOURCE} import errors')
        target = folder / ("__init__.py" if module == ROOT else path.relative_to(PACKAGE))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(re.sub(rf"\b{SOURCE}\b", NAME, text), encoding="utf-8")
    (folder / "py.typed").touch()


class VersionHook(MetadataHookInterface):
    """Version of the distribution."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the version."""
        metadata["version"] = version()


class SourceHook(BuildHookInterface[Any]):
    """Files of the distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the package, unless this is a source distribution, which contains it and the license."""
        self._folder = Path(tempfile.mkdtemp())
        included = build_data["force_include"]
        if not BUILT.is_dir():
            build(self._folder / NAME)
            included[str(self._folder / NAME)] = NAME
        if self.target_name == "sdist":
            included[str(HERE.parents[1] / "LICENSE")] = "LICENSE"
        elif BUILT.is_dir():
            included[str(BUILT)] = NAME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete the built package."""
        shutil.rmtree(self._folder)
