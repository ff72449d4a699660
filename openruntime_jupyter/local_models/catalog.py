"""Which models this runtime has, and who may ask for which."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openruntime_jupyter.errors import InvalidRequest, NotAllowed, Unavailable
from openruntime_jupyter.local_models.folder import NotAModel, Shape, shape_of
from openruntime_jupyter.local_models.gguf.header import ENCODINGS
from openruntime_jupyter.local_models.gguf.llama import shape_of_gguf
from openruntime_jupyter.schemas.values import ModelSource

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.settings import Settings
    from openruntime_jupyter.runtime.tasks.validation import Caller

log = logging.getLogger(__name__)

FETCHED = "SmolLM2-135M-Instruct"
"""How the name of the model begins that `jupyter openruntime pull` fetches: what answers where no model is named."""
CONVERTED = ".converted"
"""The folder, within that of the models, of weights in another form."""
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
NO_MODEL = (
    "There is no model on this machine. Fetch one by `jupyter openruntime pull`, or set up a remote provider: "
    "a profile in the configuration, or OPENAI_API_KEY in the server's environment."
)

KINDS = frozenset(encoding.name for encoding in ENCODINGS.values())

Stamp = tuple[int, int]


def _plain(source: ModelSource) -> str:
    """A file's name without the kind of numbers that it ends with by custom."""
    plain, _, kind = source.name.rpartition(".")
    return plain if source.kind == "gguf" and kind.upper() in KINDS else source.name


class ModelCatalog:
    """Looks into the folder of models, and at what the settings allow, each time that it is asked.

    A model is an MLX folder, a GGUF file, or a name on the Hugging Face hub. What lies in the folder of models goes by the name of
    its folder or file, without `.gguf`; names are compared, never joined to a path.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._shapes: dict[Path, tuple[Stamp, Shape | str]] = {}

    def known(self) -> list[ModelSource]:
        """Every model that anybody who may submit tasks may ask for, the default one first."""
        found = {source.name: source for source in self._listed()}
        return sorted(found.values(), key=lambda source: not source.name.startswith(FETCHED))

    def named(self, name: str) -> ModelSource | None:
        """The one of those of that name, or of that name before its kind of numbers (`.Q4_1`) where only one is so called."""
        known = self.known()
        found = [source for source in known if source.name == name] or [source for source in known if _plain(source) == name]
        return found[0] if len(found) == 1 else None

    def resolve(self, name: str | None, caller: Caller) -> ModelSource:
        """The model that a name or path stands for; None is the default one.

        Raises `InvalidRequest` where there is no such model, `NotAllowed` where this caller may not ask for it, and `Unavailable`
        where there is no model at all.
        """
        known = self.known()
        if name is None:
            if not known:
                raise Unavailable(NO_MODEL, retry_after=60.0)
            return known[0]
        if (found := self.named(name)) is not None:
            return found
        path = Path(name).expanduser() if name.startswith("~") else Path(name)
        if path.is_absolute():
            return self._at(path, known, caller)
        if HUB_NAME.fullmatch(name):
            return self._on_hub(name, caller)
        names = ", ".join(source.name for source in known) or "none yet: `jupyter openruntime pull` fetches one"
        raise InvalidRequest.of("parameters.model", f"there is no model {name!r}; there are {names}")

    def _at(self, path: Path, known: list[ModelSource], caller: Caller) -> ModelSource:
        place = os.path.realpath(path)
        for source in known:
            if source.path == place:
                return source
        if not caller.may_execute:  # before looking: whether a file is there is nobody's business
            raise NotAllowed(
                "A model by its path is for who may execute code here: name one of `GET /models`, or let the owner add the path to "
                "allowed_models."
            )
        try:
            return self._described(Path(place))
        except NotAModel as problem:
            raise InvalidRequest.of("parameters.model", str(problem)) from None

    def _on_hub(self, name: str, caller: Caller) -> ModelSource:
        if not self._settings.allow_hub:
            raise NotAllowed(f"The model {name!r} would be fetched from the Hugging Face hub, which is off here: see allow_hub.")
        if name not in self._settings.allowed_models and not caller.may_execute:
            raise NotAllowed(f"The model {name!r} is not in allowed_models: let the owner add it there, or name one of `GET /models`.")
        return ModelSource(name, name, "hub", converted=str(self._settings.models / CONVERTED))

    def _listed(self) -> list[ModelSource]:
        """What the settings allow, then what was fetched: of two with one name the latter counts."""
        found = []
        for given in self._settings.allowed_models:
            path = Path(given).expanduser()
            if path.is_absolute() or not HUB_NAME.fullmatch(given):
                found += self._if_model(path, given)
            elif self._settings.allow_hub:
                found.append(ModelSource(given, given, "hub", converted=str(self._settings.models / CONVERTED)))
        try:
            entries = sorted(self._settings.models.iterdir())
        except OSError:  # nothing was fetched yet
            entries = []
        for entry in entries:
            if not entry.name.startswith(".") and (entry.suffix == ".gguf" or entry.is_dir()):
                found += self._if_model(entry, str(entry))
        return found

    def _if_model(self, path: Path, given: str) -> list[ModelSource]:
        try:
            return [self._described(Path(os.path.realpath(path)), path)]
        except NotAModel as problem:
            log.debug("%s is no model: %s", given, problem)
            return []

    def _described(self, place: Path, called: Path | None = None) -> ModelSource:
        """The model at a place without links, named as it is `called`; raises `NotAModel`."""
        name = (called or place).name
        kind: Literal["mlx", "gguf"] = "gguf" if place.suffix == ".gguf" else "mlx"
        shape = self._shape(place, kind)
        return ModelSource(
            name.removesuffix(".gguf"),
            str(place),
            kind,
            shape.bytes,
            shape.context_length,
            shape.float32_bytes,
            shape.cache_numbers,
            str(self._settings.models / CONVERTED),
        )

    def _shape(self, place: Path, kind: Literal["mlx", "gguf"]) -> Shape:
        """Of a file or folder that has not changed since the last look, what was seen then."""
        try:
            looked_at = place.stat()
        except OSError as problem:
            raise NotAModel(f"{place} can't be read: {problem.strerror}") from None
        stamp = (looked_at.st_mtime_ns, looked_at.st_size)
        before, seen = self._shapes.get(place, (None, None))
        if before != stamp or seen is None:
            try:
                seen = shape_of(place) if kind == "mlx" else shape_of_gguf(place)
            except NotAModel as problem:
                seen = str(problem)
            self._shapes[place] = stamp, seen
        if isinstance(seen, str):
            raise NotAModel(seen)
        return seen
