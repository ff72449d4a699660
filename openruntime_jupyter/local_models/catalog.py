"""Catalog of the models of this runtime, and the permissions to use them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openruntime_jupyter.errors import InvalidRequest, NoModel, NotAllowed, OpenRuntimeError
from openruntime_jupyter.local_models.adapter import with_adapter
from openruntime_jupyter.local_models.folder import NotAModel, Shape, model_files, shape_of
from openruntime_jupyter.local_models.gguf import QUANTISATION, parts_of, shape_of_gguf
from openruntime_jupyter.local_models.model_folders import models_in
from openruntime_jupyter.schemas.values import ModelSource

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.settings import Settings
    from openruntime_jupyter.runtime.tasks.submission import Caller

log = logging.getLogger(__name__)

FETCHED = "SmolLM2-135M-Instruct"
"""Prefix of the name of the default model, which `jupyter openruntime pull` downloads."""
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
NO_MODEL = (
    "No local model is installed. Download one with `jupyter openruntime pull`, or set up a remote provider: "
    "a profile in the configuration, or OPENAI_API_KEY in the server's environment."
)

MOST_NAMED = 5
"""Number of hosts that an error names."""

FRESH_SECONDS = 0.5
"""Time for which the list of a refresh is used."""

Stamp = tuple[tuple[str, int, int, int], ...]
"""Names of files with their times of change and sizes."""


def _plain(source: ModelSource) -> str:
    """Return the name of a source without the conventional suffix for its quantisation."""
    plain, _, kind = source.name.rpartition(".")
    return plain if source.kind == "gguf" and QUANTISATION.fullmatch(kind) else source.name


def _resolved(path: Path) -> Path:
    """Return a path without links, except for a GGUF file that links to another name, as in the Hugging Face cache."""
    resolved = Path(os.path.realpath(path))
    if path.suffix == ".gguf" and resolved.suffix != ".gguf":
        return Path(os.path.realpath(path.parent), path.name)  # the names of the other parts of a model follow from its name
    return resolved


def _stamp(path: Path, kind: Literal["mlx", "gguf"]) -> tuple[Stamp, int]:
    """Return the stamp of a model, and the time in nanoseconds when a file of it was written last; raise `NotAModel`."""
    try:
        found = [(each.name, each.stat()) for each in (model_files(path) if kind == "mlx" else parts_of(path))]
    except OSError as problem:
        raise NotAModel(f"{path} can't be read: {problem.strerror}") from None
    # The time of change, unlike that of modification, also tells a file that was copied with its time.
    stamp = tuple((name, status.st_mtime_ns, status.st_ctime_ns, status.st_size) for name, status in found)
    return stamp, max((status.st_mtime_ns for _, status in found), default=0)


class ModelCatalog:
    """Catalog of the folders of models and the settings, as they are at each request.

    A model is an MLX folder, a GGUF file, or a name on the Hugging Face hub. A model in a folder of models has the name of its folder
    or file, without `.gguf`. Names are compared, never joined to a path.

    `elsewhere` returns the models of other hosts, by host. A local model hides others with the same name.

    Call `refresh` on an event loop before any other method, which then does not list the folder or read files.
    """

    def __init__(self, settings: Settings, elsewhere: Callable[[], Mapping[str, Sequence[ModelSource]]] = dict) -> None:
        self._settings = settings
        self._elsewhere = elsewhere
        self._shapes: dict[Path, tuple[Stamp, Shape | str]] = {}
        self._reading = asyncio.Lock()
        self._known: list[ModelSource] = []
        self._known_until = float("-inf")

    async def refresh(self, name: str | None = None, caller: Caller | None = None) -> None:
        """Read the headers of new and changed models in a thread, and that of the model at the path `name` if the caller may use it."""
        async with self._reading:
            self._known_until = float("-inf")
            await asyncio.to_thread(self._read, name, caller)

    def _read(self, name: str | None, caller: Caller | None) -> None:
        self._known = self.known()
        self._known_until = time.monotonic() + FRESH_SECONDS
        if name is not None and caller is not None:
            with contextlib.suppress(OpenRuntimeError):
                self.resolve(name, caller)

    def known(self) -> list[ModelSource]:
        """Return the models that every user with permission to submit tasks may use, the default one first."""
        if time.monotonic() < self._known_until:
            return self._known
        sources = {source.name: source for source in self._listed()}
        for models in self._elsewhere().values():
            for source in models:
                sources.setdefault(source.name, replace(source, path=""))
        return sorted(sources.values(), key=lambda source: not source.name.startswith(FETCHED))

    def named(self, name: str) -> ModelSource | None:
        """Return the known model with that name. A name without the quantisation (`.Q4_1`) works if it is unambiguous."""
        known = self.known()
        found = [source for source in known if source.name == name] or [source for source in known if _plain(source) == name]
        return found[0] if len(found) == 1 else None

    def resolve(self, name: str | None, caller: Caller, adapter: str | None = None) -> ModelSource:
        """Return the model with that name or path, with the adapter at a path; None means the default one, and no adapter.

        Raises `InvalidRequest` if the model or the adapter is unknown, `NotAllowed` if this caller may not use it, and `NoModel` if none
        is installed.
        """
        source = self._resolve(name, caller)
        if adapter is None:
            return source
        path = Path(adapter).expanduser() if adapter.startswith("~") else Path(adapter)
        if not path.is_absolute():
            raise InvalidRequest.of("parameters.adapter", "give an absolute path")
        if not caller.may_execute:  # as for paths of models
            raise NotAllowed("The path of an adapter requires the permission to execute code")
        return with_adapter(source, Path(os.path.realpath(path)))

    def _resolve(self, name: str | None, caller: Caller) -> ModelSource:
        known = self.known()
        if name is None:
            if not known:
                raise NoModel(NO_MODEL)
            return known[0]
        if (found := self.named(name)) is not None:
            return found
        path = Path(name).expanduser() if name.startswith("~") else Path(name)
        if path.is_absolute():
            return self._at(path, known, caller)
        if self.may_be_on_hub(name):
            return self._on_hub(name, caller)
        names = ", ".join(source.name for source in known) or "none, install one with `jupyter openruntime pull`"
        advice = ". A model of the Hugging Face hub requires the setting allow_hub" if HUB_NAME.fullmatch(name) else ""
        raise InvalidRequest.of("parameters.model", f"unknown model {name!r}; available: {names}{advice}{self._advice_for_hosts(name)}")

    def _advice_for_hosts(self, name: str) -> str:
        hosts = list(self._elsewhere())
        if not hosts:
            return ""
        more = f" and {len(hosts) - MOST_NAMED} more" if len(hosts) > MOST_NAMED else ""
        which = f"{', '.join(hosts[:MOST_NAMED])}{more}"
        return f". The other hosts ({which}) do not have it either: run `jupyter openruntime pull {shlex.quote(name)}` on one of them"

    def may_be_on_hub(self, name: str) -> bool:
        """Return whether the settings allow the hub, and a name has the form of names there."""
        return self._settings.allow_hub and HUB_NAME.fullmatch(name) is not None

    def _at(self, path: Path, known: list[ModelSource], caller: Caller) -> ModelSource:
        resolved = _resolved(path)
        for source in known:
            if source.path == str(resolved):
                return source
        if not caller.may_execute:  # before any access: other callers must not learn whether the file exists
            raise NotAllowed(
                "A model path requires the permission to execute code: use a name from `GET /models`, or ask the owner to add the path to "
                "allowed_models"
            )
        try:
            return self._described(resolved, path.name)
        except NotAModel as problem:
            raise InvalidRequest.of("parameters.model", str(problem)) from None

    def _on_hub(self, name: str, caller: Caller) -> ModelSource:
        if name not in self._settings.allowed_models and not caller.may_execute:
            raise NotAllowed(f"Model {name!r} is not in allowed_models: ask the owner to add it, or use a name from `GET /models`")
        return ModelSource(name, name, "hub")

    def _listed(self) -> list[ModelSource]:
        """Return the models of other programs, the allowed ones, and the downloaded ones, each before those that replace its name."""
        sources = []
        for folder in self._settings.models_dirs:
            for name, path in models_in(folder):
                sources += self._if_model(path, str(path), name)
        for given in self._settings.allowed_models:
            path = Path(given).expanduser()
            if path.is_absolute() or not HUB_NAME.fullmatch(given):
                sources += self._if_model(path, given)
            elif self._settings.allow_hub:
                sources.append(ModelSource(given, given, "hub"))
        try:
            entries = sorted(self._settings.models.iterdir())
        except OSError:  # no model was downloaded yet
            entries = []
        for entry in entries:
            if not entry.name.startswith(".") and (entry.suffix == ".gguf" or entry.is_dir()):
                sources += self._if_model(entry, str(entry))
        return sources

    def _if_model(self, path: Path, given: str, name: str | None = None) -> list[ModelSource]:
        try:
            return [self._described(_resolved(path), name or path.name)]
        except NotAModel as problem:
            log.debug("%s is not a model: %s", given, problem)
            return []

    def _described(self, path: Path, name: str) -> ModelSource:
        """Return the model at a resolved path, called `name` without `.gguf`; raise `NotAModel`."""
        try:
            f"{path}{name}".encode()
        except UnicodeEncodeError:  # answers and tasks could not name it
            raise NotAModel(f"{os.fspath(path)!a} is not valid Unicode: rename it") from None
        kind: Literal["mlx", "gguf"] = "gguf" if path.suffix == ".gguf" or path.is_file() else "mlx"  # Ollama's files have no suffix
        stamp, modified = _stamp(path, kind)
        shape = self._shape(path, kind, stamp)
        return ModelSource(name.removesuffix(".gguf"), str(path), kind, **shape.fields, modified=modified)

    def _shape(self, path: Path, kind: Literal["mlx", "gguf"], stamp: Stamp) -> Shape:
        """Return the shape of a model, cached while its files are unchanged."""
        cached_stamp, shape = self._shapes.get(path, (None, None))
        if cached_stamp != stamp or shape is None:
            try:
                shape = shape_of(path) if kind == "mlx" else shape_of_gguf(path)
            except NotAModel as problem:
                shape = str(problem)
            except Exception as problem:  # one damaged model must not hide the others
                log.exception("Unexpected error of the model %s", path)
                shape = f"{path} can't be read: {type(problem).__name__}: {problem}"
            self._shapes[path] = stamp, shape
        if isinstance(shape, str):
            raise NotAModel(shape)
        return shape
