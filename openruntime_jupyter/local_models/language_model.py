"""A model in memory, and the text that it writes."""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten

from openruntime_jupyter.errors import InvalidRequest, MemoryRefused
from openruntime_jupyter.local_models.chunking import LARGEST, AdaptiveChunking
from openruntime_jupyter.local_models.stop_sequences import StopFilter
from openruntime_jupyter.memory import MemoryReader
from openruntime_jupyter.schemas.values import GenerationOptions

if TYPE_CHECKING:
    from openruntime_jupyter.worker.context import TaskContext

CACHE_KEPT = 256 << 20
"""Bytes of freed buffers that MLX may keep while a prompt is read."""
PENALISED = 20
"""Tokens before the next one that a repetition penalty looks at: mlx-lm's own number."""


@dataclass(slots=True)
class _Timing:
    """When what happened, by `time.perf_counter`."""

    began: float
    read: float = 0.0
    first: float | None = None
    last: float = 0.0
    written: int = 0

    def token(self, written: int) -> None:
        """So many are written."""
        self.last, self.written = time.perf_counter(), written
        self.first = self.first or self.last

    def figures(self, prompt: int) -> dict[str, Any]:
        """As `Answer` has them; the speed of writing is that after the first token."""
        first = self.first or self.last
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.written,
            "tokens_used": prompt + self.written,
            "tokens_per_second": (self.written - 1) / (self.last - first) if self.last > first else None,
            "prompt_tokens_per_second": prompt / (first - self.read) if first > self.read else None,
            "time_to_first_token_s": first - self.began,
        }


class LanguageModel:
    """One model and its tokenizer.

    `context_length` is in tokens and `cache_numbers` what its key-value cache keeps for each; both None where that is not known.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, context_length: int | None, cache_numbers: int | None) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self._context_length = context_length
        self._token_bytes = cache_numbers and cache_numbers * _item_size(model)
        self._heads = int(getattr(getattr(model, "args", None), "num_attention_heads", 0) or 0)
        self._memory = MemoryReader()
        self._pace = AdaptiveChunking()

    # The prompt

    def tokens_of(self, prompt: str | None, messages: Sequence[dict[str, str]]) -> list[int]:
        """The prompt as the model reads it: plain text, or messages by its template; raises `InvalidRequest`."""
        if prompt is not None:
            bos = self.tokenizer.bos_token
            tokens = self.tokenizer.encode(prompt, add_special_tokens=bos is None or not prompt.startswith(bos))
        else:
            tokens = self._templated(list(messages))
        if not tokens:
            raise InvalidRequest.of("parameters.prompt", "there is not a single token in it")
        return list(tokens)

    def _templated(self, messages: list[dict[str, str]]) -> Any:
        if not self.tokenizer.has_chat_template:
            raise InvalidRequest.of(
                "parameters.messages", f"{self.name} has no chat template, so it takes no messages: give a plain prompt"
            )
        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        except Exception as problem:  # a template is a program of the model's, and raises what it likes
            said = f"the chat template of {self.name} does not take them: {problem}"
            raise InvalidRequest.of("parameters.messages", said) from problem

    def require_room(self, prompt: int, max_tokens: int, context: TaskContext) -> int:
        """How many tokens may be written after `prompt` of them, `max_tokens` at most.

        Raises `InvalidRequest` for a prompt that fills the context of the model, and `MemoryRefused` for one whose key-value cache does
        not fit into the memory that is free now: MLX answers a failed allocation with a segmentation fault.
        """
        room = max_tokens if self._context_length is None else min(max_tokens, self._context_length - prompt)
        if room < 1:
            problem = f"the prompt has {prompt:,} tokens, and {self.name} takes {self._context_length:,} with its answer: shorten it"
            raise InvalidRequest.of("parameters.prompt", problem)
        if self._token_bytes:
            total = prompt + room
            needed = total * self._token_bytes
            if context.device_type == "cpu":  # attention is computed there piece by piece, all heads at once
                needed += 4 * total * self._heads * min(LARGEST, prompt)
            free = self._free(context)
            if needed > free:
                raise MemoryRefused(needed, free, f"A prompt of {prompt:,} tokens with {room:,} to be written (max_tokens)")
        return room

    def _free(self, context: TaskContext) -> int:
        if context.device_type == "gpu" and not mx.metal.is_available() and context.memory_total is not None:
            return max(0, context.memory_total - mx.get_active_memory())
        return self._memory.read().available

    # The answer

    def write(self, tokens: list[int], wishes: GenerationOptions, context: TaskContext) -> dict[str, Any]:
        """Answer the prompt; each piece of text goes to `context.token` as it is certain. The output as `Answer` has it."""
        timing = _Timing(time.perf_counter())
        room = self.require_room(len(tokens), wishes.max_tokens, context)
        mx.random.seed(secrets.randbits(63) if wishes.seed is None else wishes.seed)
        stops = StopFilter(wishes.stop)
        text: list[str] = []

        def pass_on(piece: str) -> None:
            if piece:
                text.append(piece)
                context.token(piece)

        reason = None
        with _quiet(), contextlib.closing(self._responses(tokens, room, wishes, timing, context)) as responses:
            for response in responses:
                timing.token(response.generation_tokens)
                pass_on(stops.feed(response.text))
                context.progress(timing.written, None, "writing")
                reason = "stop" if stops.found else response.finish_reason
                if reason is not None:
                    break
        pass_on(stops.flush())
        return {"text": "".join(text), "finish_reason": reason, **timing.figures(len(tokens))}

    def _responses(
        self, tokens: list[int], room: int, wishes: GenerationOptions, timing: _Timing, context: TaskContext
    ) -> Generator[Any, None, None]:
        """mlx-lm's responses, one a token. Nothing computes on any more once it is closed, and the buffers are given back."""
        from mlx_lm.generate import generation_stream, stream_generate
        from mlx_lm.models.cache import make_prompt_cache

        timing.read = time.perf_counter()
        cache = make_prompt_cache(self.model)
        try:
            with mx.stream(generation_stream):
                self._read(tokens, cache, context)
            yield from stream_generate(
                self.model, self.tokenizer, mx.array(tokens[-1:]), max_tokens=room, prompt_cache=cache, **self._sampling(tokens, wishes)
            )
        finally:
            mx.synchronize(generation_stream)
            del cache
            mx.clear_cache()

    def _read(self, tokens: list[int], cache: list[Any], context: TaskContext) -> None:
        """All but the last token, in steps so short that an interrupt is heard soon."""
        done, total = 0, len(tokens)
        context.progress(done, total, "reading the prompt")
        while done < total - 1:
            piece = tokens[done : min(done + self._pace.tokens, total - 1)]
            self.model(mx.array(piece)[None], cache=cache)  # computes nothing yet
            layer = 0
            while layer < len(cache):
                layer = self._step(len(piece), cache, layer)
                context.progress(done + len(piece) * layer // len(cache), total, "reading the prompt")
            done += len(piece)
            if mx.get_cache_memory() > CACHE_KEPT:
                mx.clear_cache()

    def _step(self, tokens: int, cache: list[Any], first: int) -> int:
        """Compute a piece of the prompt from layer `first` on, as far as there is time for; returns the next layer."""
        started = time.perf_counter()
        step = cache[first : first + self._pace.layers(tokens)]
        mx.eval([layer.state for layer in step])
        self._pace.took(tokens, len(step), time.perf_counter() - started)
        return first + len(step)

    @cached_property
    def _vocabulary(self) -> int:
        # Before 0.32 mlx-lm's tokenizers have no length; to make the dictionary takes 30 ms.
        return len(self.tokenizer.get_vocab())

    def _sampling(self, tokens: list[int], wishes: GenerationOptions) -> dict[str, Any]:
        from mlx_lm.sample_utils import make_logits_processors, make_sampler

        sampling = dict(wishes.sampling)
        if "top_k" in sampling and sampling["top_k"] >= self._vocabulary:  # no restriction; mlx-lm refuses it
            del sampling["top_k"]
        chosen: dict[str, Any] = {"sampler": make_sampler(**sampling)} if sampling else {}
        if wishes.repetition_penalty is not None:
            processors = make_logits_processors(repetition_penalty=wishes.repetition_penalty, repetition_context_size=PENALISED)
            chosen["logits_processors"] = [_remembering(processor, tokens[:-1]) for processor in processors]
        return chosen


def _remembering(processor: Callable[[Any, Any], Any], before: list[int]) -> Callable[[Any, Any], Any]:
    """mlx-lm tells it only of the tokens that mlx-lm itself has read; this adds those `before` them."""
    earlier = mx.array(before[-PENALISED:], dtype=mx.int32)

    def process(tokens: Any, logits: Any) -> Any:
        return processor(mx.concatenate([earlier, tokens.astype(mx.int32)]), logits)

    return process


def weights_of(model: Any) -> dict[str, Any]:
    """Every array of a model by its name."""
    weights: Any = tree_flatten(model.parameters(), destination={})
    return dict(weights)


def _item_size(model: Any) -> int:
    """Bytes of a number that the model computes with: that of its widest weights, scales of packed ones among them."""
    return max((weight.dtype.size for weight in weights_of(model).values() if mx.issubdtype(weight.dtype, mx.floating)), default=4)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What is printed goes to stderr: a task's stdout is what the model writes."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
