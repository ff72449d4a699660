"""Model of an MLX folder in memory, run by mlx-lm."""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten

from openruntime_jupyter.errors import ContextExceeded, InvalidRequest, MemoryRefused
from openruntime_jupyter.local_models.json_grammar import grammar_of, grammar_of_calls, import_llguidance
from openruntime_jupyter.local_models.language_model import Timing, require_reasoning_effort, require_tools, template_arguments
from openruntime_jupyter.local_models.mlx_logits import GrammarConstraint, LogprobRecorder, Processor, penalties
from openruntime_jupyter.local_models.mlx_prompt_cache import PromptCaches
from openruntime_jupyter.local_models.reasoning import TAGS
from openruntime_jupyter.local_models.response_text import ResponseText
from openruntime_jupyter.local_models.system_role import without_system_role
from openruntime_jupyter.local_models.tool_calls import ToolCallFilter
from openruntime_jupyter.memory import MemoryReader
from openruntime_jupyter.schemas.values import GenerationOptions

if TYPE_CHECKING:
    from openruntime_jupyter.operations.context import TaskContext

Result = TypeVar("Result")

CACHE_KEPT = 256 << 20
"""Maximum bytes of freed buffers that MLX keeps while a prompt is processed."""
WITH_JSON = "json_tools"
"""Parser of mlx-lm for calls that are JSON objects between markers."""
LONGEST_TAG = 32
"""Tokens at the end of a prompt in which a tag of reasoning is looked for."""


class MlxModel:
    """One model and its tokenizer.

    `context_length` is in tokens, and `cache_numbers` is the growth of the key-value cache per token; None if unknown.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, context_length: int | None, cache_numbers: int | None) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self._context_length = context_length
        self._token_bytes = cache_numbers and cache_numbers * _item_size(model)
        self._heads = int(getattr(getattr(model, "args", None), "num_attention_heads", 0) or 0)
        self._memory = MemoryReader()
        self._chunking = AdaptiveChunking()
        self._caches = PromptCaches(model, self._token_bytes)
        self._thread = ComputingThread()

    # The prompt

    def tokens_of(self, prompt: str | None, messages: Sequence[dict[str, Any]], **arguments: Any) -> list[int]:
        """Tokenize a plain prompt, or messages with the chat template and its further arguments; raise `InvalidRequest`."""
        if prompt is not None:
            bos = self.tokenizer.bos_token
            tokens = self.tokenizer.encode(prompt, add_special_tokens=bos is None or not prompt.startswith(bos))
        else:
            tokens = self._templated([_for_template(message) for message in messages], arguments)
        if not tokens:
            raise InvalidRequest.of("parameters.prompt", "has no tokens: give a prompt that is not empty")
        return list(tokens)

    def _templated(self, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> Any:
        if not self.tokenizer.has_chat_template:
            raise InvalidRequest.of(
                "parameters.messages", f"{self.name} has no chat template and does not accept messages: give a plain prompt"
            )
        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, **arguments)
        except Exception as problem:  # a template is a program and may raise anything
            plain = without_system_role(messages)
            if plain != messages:  # it may have no system role
                with contextlib.suppress(Exception):
                    return self.tokenizer.apply_chat_template(plain, add_generation_prompt=True, **arguments)
            raise InvalidRequest.of("parameters.messages", f"rejected by the chat template of {self.name}: {problem}") from problem

    @property
    def _template(self) -> str:
        """Return the source of the chat template, or of all if there are several."""
        return str(self.tokenizer.chat_template or "")

    def require_room(self, prompt: int, max_tokens: int, context: TaskContext) -> int:
        """Return the maximum number of tokens to generate after `prompt` tokens, at most `max_tokens`.

        Caches of earlier prompts are deleted if memory is short. Raises `InvalidRequest` for a prompt that fills the context of the model,
        and `MemoryRefused` for one whose key-value cache does not fit into the free memory: a failed allocation in MLX is a segmentation
        fault.
        """
        room = max_tokens if self._context_length is None else min(max_tokens, self._context_length - prompt)
        if self._context_length is not None and room < 1:
            raise ContextExceeded.because(prompt, self.name, self._context_length)
        if self._token_bytes:
            total = prompt + room
            needed = total * self._token_bytes
            if context.device_type == "cpu":  # the CPU computes attention per piece, for all heads at once
                needed += 4 * total * self._heads * min(LARGEST, prompt)
            free = self._free(context)
            if needed > free and self._caches.nbytes:
                self._caches.release()
                mx.clear_cache()
                free = self._free(context)
            if needed > free:
                raise MemoryRefused.because(
                    needed, free, f"A prompt of {prompt:,} tokens with up to {room:,} tokens to generate (max_tokens)"
                )
        return room

    def _free(self, context: TaskContext) -> int:
        if context.device_type == "gpu" and not mx.metal.is_available() and context.memory_total is not None:
            return max(0, context.memory_total - mx.get_active_memory())
        return self._memory.read().available

    # The answer

    def answer(
        self, prompt: str | None, messages: Sequence[dict[str, Any]], options: GenerationOptions, context: TaskContext
    ) -> dict[str, Any]:
        """Generate the response; see `LanguageModel.answer`."""
        require_tools(options, self.name, self.tokenizer.has_tool_calling and "tools" in self._template)
        if options.call_required and not self._calls_are_json:
            problem = f"mlx-lm can't require calls in the form of {self.name}: use 'auto', or a GGUF model"
            raise InvalidRequest.of("parameters.tool_choice", problem)
        require_reasoning_effort(options, self.name, self._template)
        arguments = template_arguments(options) | ({"tools": list(options.tools)} if options.tools else {})
        return self.write(self.tokens_of(prompt, messages, **arguments), options, context, templated=prompt is None)

    def write(self, tokens: list[int], options: GenerationOptions, context: TaskContext, templated: bool = False) -> dict[str, Any]:
        """Generate the response and return the fields of `Answer`. Each piece of text is passed to `context.token` once it is final.

        The response is only split into reasoning and text if the prompt is `templated`.
        """
        timing = Timing(time.perf_counter())
        room = self.require_room(len(tokens), options.max_tokens, context)
        stops = StopFilter(options.stop)
        receiver = context if options.streamed else None
        response_text = ResponseText(receiver, templated, self._opened_tag(tokens))
        calls = self._call_filter(response_text, receiver, options)
        pass_on = calls.add if calls is not None else response_text.add
        recorder = None if options.logprobs is None else LogprobRecorder(self.tokenizer, options.logprobs)
        sampling = self._thread.run(self._sampling, tokens, options, recorder)
        reason = None
        cache, cached = self._thread.run(self._caches.take, tokens)
        stop = threading.Event()
        seed = secrets.randbits(63) if options.seed is None else options.seed
        computed = self._responses(tokens, cache, cached, room, sampling, timing, seed, context, stop)
        generated: list[int] = []
        # The stdout of a task is only the generated text.
        with (
            contextlib.redirect_stdout(sys.stderr),
            contextlib.closing(self._thread.iterate(computed, stop)) as responses,
        ):
            for response in responses:
                generated.append(response.token)
                timing.token(response.generation_tokens)
                pass_on(stops.feed(response.text))
                if recorder is not None:
                    recorder.take(response.token, ends=response.finish_reason == "stop")
                context.progress(timing.written, None, response_text.activity)
                reason = "stop" if stops.found else response.finish_reason
                if reason is not None:
                    break
        pass_on(stops.flush())
        cut = reason == "length" or stops.found
        if calls is not None:
            calls.end(cut)
        response_text.end(cut)
        self._thread.run(self._caches.keep, tokens + generated, cache, self._free(context))
        found = None if calls is None else calls.finished() or None
        return {
            "text": response_text.text,
            "reasoning": response_text.reasoning,
            "tool_calls": found,
            "logprobs": None if recorder is None else recorder.entries,
            "finish_reason": "tool_calls" if found and reason == "stop" else reason,
            **timing.statistics(len(tokens), cached),
        }

    @property
    def _calls_are_json(self) -> bool:
        return bool(self.tokenizer.init_kwargs.get("tool_parser_type") == WITH_JSON)

    def _opened_tag(self, tokens: list[int]) -> str | None:
        """Return the tag of reasoning at the end of a prompt, where the chat template opens it, or None."""
        end = self.tokenizer.decode(tokens[-LONGEST_TAG:]).rstrip()
        return next((tag for tag in TAGS if end.endswith(tag)), None)

    def _call_filter(self, response: ResponseText, receiver: TaskContext | None, options: GenerationOptions) -> ToolCallFilter | None:
        if not options.tools:
            return None
        tokenizer, tools = self.tokenizer, list(options.tools)
        return ToolCallFilter(
            response.add,
            tokenizer.tool_call_start,
            tokenizer.tool_call_end,
            lambda text: tokenizer.tool_parser(text, tools),
            None if receiver is None else receiver.tool_call,
            as_json=self._calls_are_json,
        )

    def _responses(
        self,
        tokens: list[int],
        cache: list[Any],
        cached: int,
        room: int,
        sampling: dict[str, Any],
        timing: Timing,
        seed: int,
        context: TaskContext,
        stop: threading.Event,
    ) -> Generator[Any, None, None]:
        """Yield one mlx-lm response per token. Closing the generator, or `stop`, ends the computation and frees the buffers.

        After each response, `cache` holds the prompt and the tokens so far.
        """
        from mlx_lm.generate import generation_stream, stream_generate

        timing.read = time.perf_counter()
        mx.random.seed(seed)
        try:
            with mx.stream(generation_stream):
                self._read(tokens, cache, cached, context, stop)
            if not stop.is_set():
                last = mx.array(tokens[-1:])
                yield from stream_generate(self.model, self.tokenizer, last, max_tokens=room, prompt_cache=cache, **sampling)
        finally:
            mx.synchronize(generation_stream)
            mx.clear_cache()

    def _read(self, tokens: list[int], cache: list[Any], cached: int, context: TaskContext, stop: threading.Event) -> None:
        """Process the tokens from `cached` to the last but one in short steps, until `stop` is set."""
        done, total = cached, len(tokens)
        context.progress(done, total, "reading the prompt")
        while done < total - 1 and not stop.is_set():
            piece = tokens[done : min(done + self._chunking.tokens, total - 1)]
            self.model(mx.array(piece)[None], cache=cache)  # lazy
            layer = 0
            while layer < len(cache) and not stop.is_set():
                layer = self._step(len(piece), cache, layer)
                context.progress(done + len(piece) * layer // len(cache), total, "reading the prompt")
            done += len(piece)
            if mx.get_cache_memory() > CACHE_KEPT:
                mx.clear_cache()

    def _step(self, tokens: int, cache: list[Any], first: int) -> int:
        """Compute a piece of the prompt from layer `first` for one step; return the next layer."""
        started = time.perf_counter()
        step = cache[first : first + self._chunking.layers(tokens)]
        mx.eval([layer.state for layer in step])
        self._chunking.record(tokens, len(step), time.perf_counter() - started)
        return first + len(step)

    @cached_property
    def _vocabulary(self) -> int:
        # Before mlx-lm 0.32 tokenizers have no length. Building the dictionary takes 30 ms.
        return len(self.tokenizer.get_vocab())

    @cached_property
    def _grammar_tokenizer(self) -> Any:
        """Return the tokenizer of llguidance."""
        llguidance = import_llguidance()
        return llguidance.LLTokenizer(self.tokenizer.backend_tokenizer.to_str(), eos_token=max(self.tokenizer.eos_token_ids))

    def _marker(self, text: str) -> str:
        """Return a marker of tool calls in the syntax of a grammar, where special tokens are not texts."""
        return text if text in self.tokenizer.all_special_tokens else json.dumps(text)

    def _sampling(self, tokens: list[int], options: GenerationOptions, recorder: LogprobRecorder | None) -> dict[str, Any]:
        from mlx_lm.sample_utils import make_sampler

        sampling = dict(options.sampling)
        if "top_k" in sampling and sampling["top_k"] >= self._vocabulary:  # no restriction; mlx-lm rejects it
            del sampling["top_k"]
        chosen: dict[str, Any] = {"sampler": make_sampler(**sampling)} if sampling else {}
        processors: list[Processor] = [] if recorder is None else [recorder]
        processors += penalties(options, tokens[:-1])
        if options.schema is not None:
            processors.append(GrammarConstraint(self._grammar_tokenizer, grammar_of(options.schema, self._template)))
        if options.call_required:
            start, end = (self._marker(text) for text in (self.tokenizer.tool_call_start, self.tokenizer.tool_call_end))
            processors.append(GrammarConstraint(self._grammar_tokenizer, grammar_of_calls(options.tools, start, end, self._template)))
        return {**chosen, "logits_processors": processors} if processors else chosen


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as chat templates expect it: arguments of tool calls are objects, and a text is never null."""
    result = {**message, "content": message["content"] or ""}
    if "reasoning" in result:
        result["reasoning_content"] = result.pop("reasoning")
    if "tool_calls" in result:
        result["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _arguments(call["function"])}} for call in result["tool_calls"]
        ]
    return result


def _arguments(function: dict[str, str]) -> Any:
    try:
        return json.loads(function["arguments"])
    except json.JSONDecodeError as problem:
        message = f"the arguments of the call of {function['name']} are not JSON: {problem}"
        raise InvalidRequest.of("parameters.messages", message) from None


def weights_of(model: Any) -> dict[str, Any]:
    """Return the arrays of a model by name."""
    weights: Any = tree_flatten(model.parameters(), destination={})
    return dict(weights)


def _item_size(model: Any) -> int:
    """Return the size in bytes of the model's activations: that of its widest weights or scales."""
    return max((weight.dtype.size for weight in weights_of(model).values() if mx.issubdtype(weight.dtype, mx.floating)), default=4)


class ComputingThread:
    """Thread for everything that MLX computes, because an interrupt can't end a call of MLX on the main thread.

    An interrupted caller does not wait for the present step, but the next caller does. The thread runs as long as the process. MLX may
    abort the process when a thread ends that has computed.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, args=(mx.default_device(),), name="openruntime-mlx", daemon=True).start()

    def _work(self, device: mx.Device) -> None:
        mx.set_default_device(device)
        while True:
            future, call = self._calls.get()
            try:
                future.set_result(call())
            except BaseException as problem:
                future.set_exception(problem)
            del future, call  # and the arrays in them

    def _submit(self, call: Callable[[], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        self._calls.put((future, call))
        return future

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function on the thread and return its result."""
        return self._submit(partial(function, *arguments)).result()

    def iterate(self, items: Generator[Result, None, None], stop: threading.Event) -> Generator[Result, None, None]:
        """Yield the items of a generator that runs on the thread. `stop` is set to end it early."""
        interrupted = False
        try:
            while (item := self.run(next, items, None)) is not None:
                yield item
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            stop.set()
            closed = self._submit(items.close)
            if not interrupted:
                closed.result()


STEP_SECONDS = 0.2
"""Target duration of a step. After an interrupt, MLX still finishes its step."""
SMALLEST = 32
"""Tokens. All weights are read once for each piece, so smaller pieces are hardly faster."""
LARGEST = 512
"""Tokens. Larger pieces gain little and need more memory for attention."""


class AdaptiveChunking:
    """Estimate of the numbers of tokens and layers that take about `STEP_SECONDS` for this model and device.

    A piece of the prompt that passes all layers in one step would have to be short, and every piece reads all weights again. So a piece
    has as many tokens as one layer can process in a step, and a step covers as many layers as fit into its time.
    """

    def __init__(self) -> None:
        self._work = 4.0 * SMALLEST
        """Work of one step, in tokens times layers."""

    @property
    def tokens(self) -> int:
        """Return the number of tokens of the next piece."""
        return int(min(max(self._work, SMALLEST), LARGEST))

    def layers(self, tokens: int) -> int:
        """Return the number of layers of a step for a piece of `tokens`."""
        return max(1, int(self._work / max(tokens, SMALLEST)))

    def record(self, tokens: int, layers: int, seconds: float) -> None:
        """Record the duration of a step. One measurement changes the work of a step by at most a factor of four."""
        wanted = max(tokens, SMALLEST) * layers * STEP_SECONDS / max(seconds, 1e-6)
        self._work = max(1.0, min(max(wanted, self._work / 4), self._work * 4))


class StopFilter:
    """Filter for streamed text that holds back a possible beginning of a stop string and drops everything from the first one on."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found = False
        """True once a stop string was found."""

    def feed(self, text: str) -> str:
        """Add a piece of text; return the text that is final."""
        if self.found:
            return ""
        self._held += text
        found = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if found:  # the first complete one counts, so that the result does not depend on the cuts
            self.found = True
            return self._release(min(found)[1])
        return self._release(len(self._held) - self._beginning())

    def flush(self) -> str:
        """Return the held text at the end of the stream."""
        return "" if self.found else self._release(len(self._held))

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text

    def _beginning(self) -> int:
        """Return the length of the longest suffix of the held text that begins a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
