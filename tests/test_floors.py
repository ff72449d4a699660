"""Rooms of the package: their order of imports, and the rooms that may import heavy packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "openruntime_jupyter"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE
FLOORS = (
    *(
        "environment",
        "start_environment",
        "imports",
        "terminal",
        "current_task",
        "memory",
        "time_left",
        "errors",
        "schemas",
        "arrays",
        "local_models",
        "operations",
        "worker",
        "engines",
        "runtime",
        "agent",
        "ai",
    ),
    *("server", "client", "notebook", "cli"),
)
"""Rooms, lowest first. A room imports from itself and from lower rooms; `__init__` of the package may import all."""

NOT_EVEN_BELOW = {("client", "server"), ("notebook", "server")}
"""Forbidden imports from lower rooms: clients use HTTP, and notebooks use clients."""


@dataclass(frozen=True)
class Import:
    """Imported module with its location; `for_types`: for type checkers only; `late`: inside a function."""

    file: str
    line: int
    module: str
    names: tuple[str, ...]
    for_types: bool
    late: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"

    def of(self, *packages: str) -> bool:
        """Return True for one of `packages` or a module inside one."""
        return any(self.module == package or self.module.startswith(f"{package}.") for package in packages)


def sources() -> list[Path]:
    return sorted(file for file in ROOT.rglob("*.py") if "node_modules" not in file.parts)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(source: str, file: str) -> Iterator[Import]:
    """Yield all imports of a source text, including those in functions."""
    yield from _visit(ast.parse(source), file, for_types=False, late=False)


def _visit(node: ast.AST, file: str, *, for_types: bool, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(file, child.lineno, alias.name, (), for_types, late)
        elif isinstance(child, ast.ImportFrom):
            yield from _from(child, file, for_types=for_types, late=late)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for statement in child.body:
                yield from _visit(ast.Module([statement], []), file, for_types=True, late=late)
            for statement in child.orelse:
                yield from _visit(ast.Module([statement], []), file, for_types=for_types, late=late)
        else:
            inside = late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _visit(child, file, for_types=for_types, late=inside)


def _from(node: ast.ImportFrom, file: str, *, for_types: bool, late: bool) -> Iterator[Import]:
    """Yield the imports of `from a import b`, where b is a module of this package or a name in a."""
    module = "." * node.level + (node.module or "")
    names = tuple(alias.name for alias in node.names)
    package, *inner = module.split(".")
    for name in names if package == PACKAGE else ():
        place = ROOT.joinpath(*inner, name)
        if place.is_dir() or place.with_suffix(".py").exists():
            yield Import(file, node.lineno, f"{module}.{name}", (), for_types, late)
            names = tuple(other for other in names if other != name)
    if names:
        yield Import(file, node.lineno, module, names, for_types, late)


def floor(file: str) -> str:
    """Return the room of a file."""
    return file.split("/", maxsplit=1)[0].removesuffix(".py")


def all_imports() -> list[Import]:
    return [found for path in sources() for found in imports_of(path.read_text(), relative(path))]


def too_high(found: Import) -> bool:
    """Return True for an import from a higher room than that of its file. Imports for type checkers are allowed."""
    if not found.of(PACKAGE) or found.for_types:
        return False
    here = floor(found.file)
    if here == "__init__":
        return False
    if found.module == PACKAGE:
        return found.names != ("__version__",)
    there = found.module.split(".")[1]
    return (here, there) in NOT_EVEN_BELOW or FLOORS.index(there) > FLOORS.index(here)


def misplaced(found: Import) -> bool:
    """Return True for an import of a heavy package outside of the rooms that may import it."""
    here = floor(found.file)
    if found.of("mlx"):
        return not (here in ("arrays", "local_models", "worker") or (here == "operations" and (found.late or found.for_types)))
    if found.of("tornado", "jupyter_server"):
        return here != "server"
    if found.of("ipywidgets", "IPython"):
        late_in_python = found.file == "operations/python.py" and found.late
        return not (here == "notebook" or late_in_python or found.file == "operations/code/shell.py")
    return False


def test_every_file_is_in_a_known_room() -> None:
    strays = [relative(path) for path in sources() if floor(relative(path)) not in (*FLOORS, "__init__")]
    assert not strays


def test_no_file_imports_from_a_higher_room() -> None:
    assert not [str(found) for found in all_imports() if too_high(found)]


def test_imports_of_the_package_are_absolute() -> None:
    assert not [str(found) for found in all_imports() if found.module.startswith(".")]


def test_heavy_packages_are_imported_in_their_rooms_only() -> None:
    assert not [str(found) for found in all_imports() if misplaced(found)]


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("schemas/tasks.py", "from openruntime_jupyter.errors import TaskError", False),
        ("errors.py", "from openruntime_jupyter.schemas.tasks import Task", True),
        ("errors.py", "def f():\n    from openruntime_jupyter.schemas import tasks", True),
        ("errors.py", "if TYPE_CHECKING:\n    from openruntime_jupyter.schemas.tasks import Task", False),
        ("notebook/extension.py", "from openruntime_jupyter.server import app", True),
        ("cli/__init__.py", "from openruntime_jupyter.server import app", False),
        ("runtime/runtime.py", "from openruntime_jupyter import connect", True),
        ("worker/__main__.py", "from openruntime_jupyter import __version__", False),
        ("operations/compute.py", "import mlx.core as mx", True),
        ("operations/compute.py", "def run():\n    import mlx.core as mx", False),
        ("client/transport/http.py", "def f():\n    from tornado import web", True),
        ("operations/python.py", "def run():\n    import IPython", False),
        ("operations/code/shell.py", "import IPython", False),  # what python.py imports late
        ("operations/call.py", "def run():\n    import IPython", True),
    ],
)
def test_rules_detect_forbidden_imports(file: str, source: str, wrong: bool) -> None:
    found = list(imports_of(source, file))
    assert len(found) == 1
    assert (too_high(found[0]) or misplaced(found[0])) is wrong


def modules_by_name() -> dict[str, Path]:
    """Return the files of the package by module name."""
    names = {".".join([PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]): path for path in sources()}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def needs(module: str, source: str, modules: Collection[str]) -> set[str]:
    """Return the modules of the package that are imported before `module`, including its parent packages."""
    wanted = {found.module for found in imports_of(source, module) if found.of(PACKAGE) and not found.late and not found.for_types}
    packages = {name.rsplit(".", count)[0] for name in (module, *wanted) for count in range(1, name.count(".") + 1)}
    return ((wanted & set(modules)) | packages) - {module}


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one import cycle in order, or an empty list."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as problem:
        found: list[str] = problem.args[1]
        return found
    return []


def test_no_module_takes_part_in_import_cycle() -> None:
    modules = modules_by_name()
    assert not cycle_in({name: needs(name, path.read_text(), modules) for name, path in modules.items()})


def test_import_of_submodule_by_its_package_is_a_cycle() -> None:
    base, package = f"{PACKAGE}.operations.base", f"{PACKAGE}.operations"
    modules = (PACKAGE, package, base)
    graph = {base: needs(base, "", modules), package: needs(package, f"from {base} import World", modules)}
    assert set(cycle_in(graph)) == {base, package}
    late = {**graph, package: needs(package, f"def f():\n    from {base} import World", modules)}
    assert not cycle_in(late)


def loaded_by(module: str) -> set[str]:
    """Return the top-level packages in a new interpreter after importing `module`."""
    program = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "kept_out"),
    [
        (PACKAGE, {"mlx", "tornado", "jupyter_server", "ipywidgets", "IPython", "openai", "numpy"}),
        (
            f"{PACKAGE}.client.transport.http",
            {"mlx", "tornado", "jupyter_server", "jupyter_core", "jupyter_client", "ipywidgets", "IPython", "openai"},
        ),
        (f"{PACKAGE}.runtime.runtime", {"mlx", "tornado", "jupyter_server", "ipywidgets", "IPython", "openai", "prometheus_client"}),
        (f"{PACKAGE}.operations.registry", {"mlx", "tornado", "jupyter_server", "ipywidgets", "IPython", "openai"}),
        (f"{PACKAGE}.server.app", {"mlx", "ipywidgets", "IPython", "openai"}),
        (f"{PACKAGE}.worker.__main__", {"tornado", "jupyter_server", "ipywidgets", "IPython", "openai", "httpx"}),
    ],
)
def test_importing_a_room_does_not_load_heavy_packages(module: str, kept_out: set[str]) -> None:
    assert not loaded_by(module) & kept_out
