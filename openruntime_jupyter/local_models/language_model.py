"""Language model in a worker: the interface of both engines, and the choice of the engine.

llama.cpp runs GGUF files, mlx-lm runs MLX folders.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError
from openruntime_jupyter.local_models.folder import NotAModel
from openruntime_jupyter.schemas.values import GenerationOptions, ModelSource

if TYPE_CHECKING:
    from openruntime_jupyter.operations.context import TaskContext

INSTALL = "-m pip install 'openruntime-jupyter[local]'"
"""Arguments of Python that install both engines."""


class LanguageModel(Protocol):
    """One loaded model."""

    name: str

    def answer(
        self, prompt: str | None, messages: Sequence[dict[str, Any]], options: GenerationOptions, context: TaskContext
    ) -> dict[str, Any]:
        """Generate the response and return the fields of `Answer`.

        Each piece of text is passed to `context.token` once it is final.

        Parameters
        ----------
        prompt : plain text to continue; None for `messages`, which are formatted with the chat template
        messages : dictionaries with `role`, `content` and the other fields of `Message`

        Raises
        ------
        InvalidRequest : the prompt fills the context of the model, or the chat template rejects the messages
        MemoryRefused : the prompt with the longest response does not fit into the free memory
        """
        ...


REPETITION_WINDOW, PENALTY_WINDOW = 20, 64
"""Number of previous tokens for a repetition penalty, and for presence and frequency penalties. The prompt counts."""


REASONING_EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")
"""Amounts of reasoning from the least to the most."""
USUAL_EFFORTS = ("low", "medium", "high")
"""Amounts that each chat template with a setting has, because those of gpt-oss, which insert any value, do not name theirs."""


def require_tools(options: GenerationOptions, name: str, supported: bool) -> None:
    """Raise `InvalidRequest` if the options have tools that the model `name` does not support."""
    if options.tools and not supported:
        problem = f"{name} can't call tools, because its chat template has none: use a model that was trained to call them"
        raise InvalidRequest.of("parameters.tools", problem)


def require_reasoning_effort(options: GenerationOptions, name: str, template: str) -> None:
    """Raise `InvalidRequest` if the chat template of the model `name` can't set the effort in the options."""
    effort = options.reasoning_effort
    if effort is None:
        return
    settable = "reasoning_effort" in template
    known = [each for each in REASONING_EFFORTS if each in USUAL_EFFORTS or re.search(f"""['"]{each}['"]""", template)] if settable else []
    if "enable_thinking" in template:
        known.insert(0, "none")
    if effort not in known:
        problem = f"can't set it to {effort!r}: use {' or '.join(map(repr, known))}, or" if known else "has no setting for reasoning:"
        raise InvalidRequest.of("parameters.reasoning_effort", f"{name} {problem} remove it")


def template_arguments(options: GenerationOptions) -> dict[str, Any]:
    """Return the arguments of the chat template that set the reasoning effort."""
    if options.reasoning_effort is None:
        return {}
    return {"enable_thinking": False} if options.reasoning_effort == "none" else {"reasoning_effort": options.reasoning_effort}


def loading(name: str) -> str:
    """Return the progress message of a task that loads a model. The runtime tells from it when a worker died while loading."""
    return f"loading {name}"


def load(source: ModelSource, context: TaskContext) -> LanguageModel:
    """Load a model and warm it up.

    Raises `InvalidRequest` if it can't be loaded, `MemoryRefused` if it does not fit, and `EngineError` without the package of its engine.
    """
    context.progress(0, None, loading(source.name))
    context.flush_progress()
    try:
        if source.kind == "gguf":
            from openruntime_jupyter.local_models.llama_cpp import LlamaCppModel

            return LlamaCppModel(source, context)
        from openruntime_jupyter.local_models.mlx_loading import load_mlx

        return load_mlx(source, context)
    except OpenRuntimeError:
        raise
    except NotAModel as problem:
        raise InvalidRequest.of("parameters.model", str(problem)) from None
    except Exception as problem:  # damaged files and unknown types cause many exceptions; each needs a message for the user
        raise InvalidRequest.of("parameters.model", f"{source.name} can't be loaded: {type(problem).__name__}: {problem}") from problem


@dataclass(slots=True)
class Timing:
    """Times of one generation, by `time.perf_counter`. `read` is the time when the engine begins to process the prompt."""

    began: float
    read: float = 0.0
    first: float | None = None
    last: float = 0.0
    written: int = 0

    def token(self, written: int) -> None:
        """Record that `written` tokens are generated."""
        self.last, self.written = time.perf_counter(), written
        self.first = self.first or self.last

    def statistics(self, prompt: int, cached: int = 0) -> dict[str, Any]:
        """Return the statistics fields of `Answer` for a prompt of which `cached` tokens were in the key-value cache.

        The generation speed counts from the first token on.
        """
        first = self.first or self.last
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.written,
            "tokens_used": prompt + self.written,
            "cached_tokens": cached,
            "tokens_per_second": (self.written - 1) / (self.last - first) if self.last > first else None,
            "prompt_tokens_per_second": (prompt - cached) / (first - self.read) if first > self.read else None,
            "time_to_first_token_s": first - self.began,
        }
