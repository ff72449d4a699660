"""Progress of tasks from their tqdm bars: the outermost bar in use is the progress of the task. All bars share one line of text.

`tqdm.std` is patched when the task imports it. All variants of tqdm (`auto`, `notebook`, `contrib`, `asyncio`) inherit from its class.
tqdm redraws a bar at most ten times a second, and reports follow only then: `for i in tqdm(range(10**6))` takes 0.33 s instead of 0.32 s.

`tqdm.auto` looks for a kernel in its process. In the cells of a notebook it shows widgets, as it does in the kernel of the notebook.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from openruntime_jupyter.current_task import current

Patch = Callable[[ModuleType], None]

BARS, CHOICE, AUTOMATIC = "tqdm.std", "tqdm.autonotebook", "tqdm.auto"
"""Modules of tqdm: the base class of all bars, the choice between text and widgets, and the usual name of its result."""


class Bars:
    """Bars of the running task, oldest first. Dead, closed and disabled ones do not count."""

    def __init__(self) -> None:
        self._task_id: str | None = None
        self._bars: list[weakref.ref[Any]] = []
        self._last: tuple[Any, ...] | None = None
        self._forked = False
        os.register_at_fork(after_in_child=self._leave)

    def changed(self, bar: Any) -> None:
        """Report the bar if it is the outermost one. Never raises an error of the bar's values, nor waits."""
        context = current()
        if context is None or self._forked or getattr(bar, "disable", True):
            return
        if context.task_id != self._task_id:
            self._task_id, self._bars, self._last = context.task_id, [], None
        living = [other for each in self._bars if (other := each()) is not None and not other.disable]
        if not any(other is bar for other in living):
            living.append(bar)
        self._bars = list(map(weakref.ref, living))
        if living[0] is bar:
            try:
                progress = bar.n, _total(bar), _message(bar)
                if progress != self._last:
                    self._last = progress
                    context.bar_progress(*progress)
            except (TypeError, ValueError, AttributeError):  # the bar counts something else than numbers, or is incomplete
                return

    def _leave(self) -> None:
        """Report nothing in a forked child of the task, which has no connection to the runtime."""
        self._forked = True


def _total(bar: Any) -> Any:
    """Return the total; None if unknown or exceeded, as in the bar's text."""
    return None if not bar.total or bar.n >= bar.total + 0.5 else bar.total


def _message(bar: Any) -> str | None:
    """Return description and postfix."""
    parts = [str(bar.desc or "").strip().removesuffix(":"), bar.postfix if isinstance(getattr(bar, "postfix", None), str) else ""]
    return ", ".join(filter(None, parts)) or None


def _patch(module: ModuleType, bars: Bars) -> None:
    """Let the bars of `tqdm.std` report their creation, each redrawing and their end, and draw them on one line."""
    kind: Any = getattr(module, "tqdm", None)
    if not all(callable(getattr(kind, name, None)) for name in ("__init__", "refresh", "close", "moveto", "status_printer")):
        return
    _draw_on_one_line(kind)

    def reporting(method: Callable[..., Any], first: bool) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(bar: Any, *arguments: Any, **keywords: Any) -> Any:
            if first:
                bars.changed(bar)
            returned = method(bar, *arguments, **keywords)
            if not first:
                bars.changed(bar)
            return returned

        return call

    kind.__init__ = reporting(kind.__init__, first=False)
    kind.refresh = reporting(kind.refresh, first=False)
    kind.close = reporting(kind.close, first=True)  # a closed bar is disabled


def _draw_on_one_line(kind: Any) -> None:
    """Draw nested bars over each other, because pages cannot move the cursor up: each redrawing would add lines there."""
    printer = kind.status_printer
    drawn = 0

    def shared_line(file: Any) -> Callable[[str], None]:
        write = printer(file)

        def draw(text: str) -> None:
            nonlocal drawn
            write(text.ljust(drawn))  # over the whole text of another bar
            drawn = len(text)

        return draw

    kind.status_printer = staticmethod(shared_line)
    kind.moveto = lambda _bar, _lines: None


class _PatchingLoader(Loader):
    """Loader of a module that patches it after its execution, and leaves the original loader in it."""

    def __init__(self, loader: Any, patch: Patch) -> None:
        self._loader = loader
        self._patch = patch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module; see `Loader`."""
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        """Execute and patch the module."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._patch(module)


class ProgressBars(MetaPathFinder):
    """Finder that only changes the loaders of tqdm's modules. It patches `tqdm.std` also if it is already imported."""

    def __init__(self) -> None:
        self._patches: dict[str, Patch] = {BARS: functools.partial(_patch, bars=Bars()), CHOICE: self._choose}
        self._widgets = False
        if BARS in sys.modules:
            self._patches[BARS](sys.modules[BARS])
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec that the other finders return for a module of tqdm, with a patching loader."""
        if fullname not in self._patches:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target) if finder is not self and hasattr(finder, "find_spec") else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _PatchingLoader(spec.loader, self._patches[fullname])
                return spec
        return None

    def show_widgets(self) -> None:
        """Let `tqdm.auto` show widgets from now on, also if this worker has imported it ahead of its task."""
        if not self._widgets:
            self._widgets = True
            for name in (CHOICE, AUTOMATIC):
                if name in sys.modules:
                    importlib.reload(sys.modules[name])

    def _choose(self, module: Any) -> None:
        """Choose the bars of `tqdm.notebook`, unless the environment has no ipywidgets."""
        if self._widgets:
            with contextlib.suppress(Exception):  # as tqdm does with a broken ipywidgets
                notebook: Any = importlib.import_module("tqdm.notebook")
                if notebook.IProgress is not None:
                    module.tqdm, module.trange = notebook.tqdm, notebook.trange
