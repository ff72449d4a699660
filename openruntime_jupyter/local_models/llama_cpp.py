"""GGUF model in memory, run by llama.cpp (`xllamacpp`)."""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.errors import ContextExceeded, EngineError, InvalidRequest, MemoryRefused
from openruntime_jupyter.local_models.folder import NotAModel
from openruntime_jupyter.local_models.gguf import cache_bytes, context_for, memory_for, read_header
from openruntime_jupyter.local_models.json_grammar import grammar_of
from openruntime_jupyter.local_models.language_model import (
    INSTALL,
    PENALTY_WINDOW,
    REPETITION_WINDOW,
    Timing,
    loading,
    require_reasoning_effort,
    require_tools,
    template_arguments,
)
from openruntime_jupyter.local_models.response_text import ResponseText
from openruntime_jupyter.local_models.system_role import without_system_role
from openruntime_jupyter.local_models.tool_calls import ToolCalls
from openruntime_jupyter.memory import MemoryReader
from openruntime_jupyter.schemas.values import GenerationOptions, ModelSource

if TYPE_CHECKING:
    from openruntime_jupyter.operations.context import TaskContext

BATCH, BATCH_ON_GPU = 64, 512
"""Tokens of a prompt that are processed at once. After an interrupt, llama.cpp still finishes its batch."""
NEUTRAL = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
"""Options of every request, so that neither llama.cpp's defaults nor those in a file apply."""
TEMPLATES = ("tokenizer.chat_template", "tokenizer.chat_template.tool_use")
"""Keys of a file for its chat template, and for the one that replaces it where a request has tools."""
LLGUIDANCE = "%llguidance"
"""Beginning of a grammar for llguidance. Builds of llama.cpp without it only have their own conversion of schemas."""
SEEDS = 2**32 - 1
"""Number of seeds of llama.cpp, which takes the next number as a request for a random seed."""
LONGEST_SOCKET_FOLDER = 80
"""Bytes; the path of a UNIX socket has at most 103."""
LOG_SECONDS = 1.0
"""Maximum time in which llama.cpp writes its log after an error."""
QUIET, REASONS = -1, 1
"""Verbosity of llama.cpp: nothing, or the reasons of errors."""


class LlamaCppModel:
    """One GGUF model, which is loaded when the object is made. A request that needs a larger context loads it again."""

    def __init__(self, source: ModelSource, context: TaskContext) -> None:
        self.name = source.name
        self._source = source
        self._path = Path(source.path)
        if not self._path.exists():
            raise NotAModel(f"{source.path} no longer exists")
        header = read_header(self._path)
        self._template = "".join(str(header[name]) for name in TEMPLATES if name in header)
        self._memory = MemoryReader()
        self._requests = Requests()
        self._on_gpu = context.device_type == "gpu" and _has_gpu()
        self._context = context_for(source, 0)
        self._require_memory(memory_for(source, self._context), self._context, context)
        self._server = self._load(context)

    def answer(
        self, prompt: str | None, messages: Sequence[dict[str, Any]], options: GenerationOptions, context: TaskContext
    ) -> dict[str, Any]:
        """Generate the response; see `LanguageModel.answer`."""
        body = self._request(prompt, options)
        timing = Timing(time.perf_counter())
        rejected: _Refused | None = None
        while True:
            if self._server is None:  # an earlier attempt to load it again failed
                self._server = self._load(context)
            ask = self._server.handle_completions if prompt is not None else self._server.handle_chat_completions
            if prompt is None:
                body["messages"] = [_in_its_form(message) for message in messages]
            try:
                return self._write(self._requests.chunks(ask, body), prompt is None, options, timing, context)
            except _NeedsContext as problem:
                tokens = problem.prompt
            except _Refused as problem:
                if timing.written:
                    raise EngineError(f"llama.cpp can't read the response of {self.name}: {problem}") from None
                rejected = rejected or problem
                plain = without_system_role(messages)
                if prompt is None and plain != list(messages):  # the template may have no system role
                    messages = plain
                    continue
                field = "parameters.messages" if prompt is None else "parameters.prompt"
                raise InvalidRequest.of(field, f"rejected by {self.name}: {rejected}") from None
            self._enlarge(tokens, options.max_tokens, context)

    def _request(self, prompt: str | None, options: GenerationOptions) -> dict[str, Any]:
        """Return the request without messages. Raises `InvalidRequest` for an option that the model does not support."""
        if prompt is None and not self._template:
            raise InvalidRequest.of(
                "parameters.messages", f"{self.name} has no chat template and does not accept messages: give a plain prompt"
            )
        require_tools(options, self.name, "tools" in self._template)
        require_reasoning_effort(options, self.name, self._template)
        if options.tools and options.logprobs is not None:
            raise InvalidRequest.of("parameters.logprobs", "llama.cpp can't combine them with tools: remove one of both")
        body = _body(prompt, options)
        if options.schema is not None:
            grammar = grammar_of(options.schema, self._template if prompt is None else "")
            if _import_xllamacpp().json_schema_to_grammar({}).startswith(LLGUIDANCE):
                body["grammar"] = f"{LLGUIDANCE} {{}}\n{grammar}"
            else:
                body["json_schema"] = options.schema
        return body

    def _write(
        self,
        chunks: Generator[dict[str, Any], None, None],
        templated: bool,
        options: GenerationOptions,
        timing: Timing,
        context: TaskContext,
    ) -> dict[str, Any]:
        receiver = context if options.streamed else None
        response, calls = ResponseText(receiver, templated), ToolCalls(None if receiver is None else receiver.tool_call)
        logprobs: list[dict[str, Any]] = []
        reason: str | None = None
        usage: dict[str, Any] = {}
        timing.read = 0.0
        with contextlib.closing(chunks):
            for chunk in chunks:
                if (read := chunk.get("prompt_progress")) is not None:
                    if not timing.read:
                        timing.read = time.perf_counter()
                        self._require_context(read["total"], options.max_tokens)
                    context.progress(read["processed"], read["total"], "reading the prompt")
                elif chunk["choices"]:  # one a token, of which a part of a character has no text
                    timing.token(timing.written + 1)
                    context.progress(timing.written, None, response.activity)
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    reason = choice.get("finish_reason") or reason
                    logprobs += ((choice.get("logprobs") or {}).get("content")) or []
                    delta = choice.get("delta", choice)
                    response.add_reasoning(delta.get("reasoning_content") or "")
                    calls.add(delta.get("tool_calls"))
                    response.add(delta.get("content") or delta.get("text") or "")
        response.end(cut=reason == "length" or bool(options.stop))
        if options.call_required and not calls.finished() and reason == "stop":
            raise EngineError(f"{self.name} called no tool, because llama.cpp can't read calls in its form: use the tool_choice 'auto'")
        timing.written = usage["completion_tokens"]
        cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        return {
            "text": response.text,
            "reasoning": response.reasoning,
            "tool_calls": calls.finished() or None,
            "logprobs": None if options.logprobs is None else [_token_logprob(each, options.logprobs) for each in logprobs],
            "finish_reason": reason,
            **timing.statistics(usage["prompt_tokens"], cached),
        }

    def _require_context(self, prompt: int, max_tokens: int) -> None:
        """Raise `_NeedsContext` if the model could generate more than fits into its present context."""
        if min(prompt + max_tokens, self._source.context_length or sys.maxsize) > self._context:
            raise _NeedsContext(prompt)

    def _enlarge(self, prompt: int, max_tokens: int, context: TaskContext) -> None:
        """Load the model again with a context for `prompt` tokens and the response."""
        most = self._source.context_length
        if most is not None and prompt >= most:
            raise ContextExceeded.because(prompt, self.name, most)
        wanted = context_for(self._source, prompt + max_tokens)
        more = memory_for(self._source, wanted) - memory_for(self._source, self._context)
        self._require_memory(more, wanted, context)
        context.progress(0, None, loading(self.name))
        context.flush_progress()
        self._requests.wait()
        self._server, self._context = None, wanted
        self._server = self._load(context)

    @property
    def _has_own_memory(self) -> bool:
        """Return whether the model is in the memory of a GPU that is not the machine's."""
        return self._on_gpu and sys.platform != "darwin"

    def _require_memory(self, needed: int, tokens: int, context: TaskContext) -> None:
        what = f"Model {self.name} with a context of {tokens:,} tokens"
        if self._has_own_memory:
            context.require_memory(needed, what)
        elif needed > (free := self._memory.read().available):
            raise MemoryRefused.because(needed, free, what)

    def _load(self, context: TaskContext) -> Any:
        return open_server(self._path, self._context, context.threads, self._on_gpu, self._room_for_caches(), self._source.adapter)

    def _room_for_caches(self) -> int:
        """Return the bytes for key-value caches of earlier prompts: those of one context, or 0 if that is over half of the free memory."""
        wanted = cache_bytes(self._source, self._context)
        free = self._memory.read().available - (0 if self._has_own_memory else memory_for(self._source, self._context))
        return wanted if 2 * wanted <= free else 0


class _NeedsContext(Exception):
    """Prompt of `prompt` tokens that does not fit, with its response, into the present context."""

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt


class _Refused(Exception):
    """Request that llama.cpp or the chat template has rejected."""


def _body(prompt: str | None, options: GenerationOptions) -> dict[str, Any]:
    """Return the request for llama.cpp without its messages and without the grammar of a schema."""
    body: dict[str, Any] = {
        **({} if prompt is None else {"prompt": prompt}),
        **NEUTRAL,
        **options.sampling,
        "max_tokens": options.max_tokens,
        "stop": list(options.stop),
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
    }
    body["temperature"] = body.pop("temp", body["temperature"])
    if options.seed is not None:
        body["seed"] = options.seed % SEEDS
    if options.repetition_penalty is not None:
        body |= {"repeat_penalty": options.repetition_penalty, "repeat_last_n": REPETITION_WINDOW}
    if options.presence_penalty or options.frequency_penalty:
        body |= {"presence_penalty": options.presence_penalty or 0.0, "frequency_penalty": options.frequency_penalty or 0.0}
        body["repeat_last_n"] = PENALTY_WINDOW
    if options.logprobs is not None:
        # At least one of the most likely tokens, because zero is no limit.
        many = max(options.logprobs, 1)
        body |= {"logprobs": True, "top_logprobs": many} if prompt is None else {"logprobs": many}
    if options.tools:
        body |= {"tools": list(options.tools), "tool_choice": "required" if options.call_required else "auto", "parallel_tool_calls": True}
    if options.reasoning_effort is not None:
        body["chat_template_kwargs"] = template_arguments(options)
    return body


def _in_its_form(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = message.get("reasoning")
    return message if reasoning is None else {**message, "reasoning_content": reasoning}


def _token_logprob(entry: dict[str, Any], top: int) -> dict[str, Any]:
    """Return the fields of a `TokenLogprob` with the `top` most likely tokens."""

    def fields(each: dict[str, Any]) -> dict[str, Any]:
        return {"token": each["token"], "logprob": each["logprob"], "bytes": each["bytes"]}

    return {**fields(entry), "top_logprobs": [fields(each) for each in entry["top_logprobs"][:top]]}


class Requests:
    """Requests to a server of llama.cpp, one at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def wait(self) -> None:
        """Wait until llama.cpp has stopped the last request, for example before the server is deleted."""
        if self._thread is not None:
            self._thread.join()

    def chunks(self, ask: Callable[..., Any], body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Yield the chunks of a response. Closing the generator stops the computation after the present token or batch.

        Only the next request waits for that. The request runs on a thread, because Cython swallows an interrupt that is raised in its
        callback.
        """
        self.wait()
        came: queue.SimpleQueue[dict[str, Any] | Exception | None] = queue.SimpleQueue()
        closed = False

        def receive(chunk: dict[str, Any]) -> bool:
            came.put(chunk)
            return closed

        def work() -> None:
            try:
                ask(body, receive)
            except Exception as problem:  # anything that C++ throws, such as the error of a chat template
                came.put(problem)
            finally:
                came.put(None)

        self._thread = threading.Thread(target=work, name="openruntime-llama.cpp", daemon=True)
        self._thread.start()
        try:
            while (chunk := came.get()) is not None:
                if isinstance(chunk, Exception):
                    raise _Refused(chunk)
                if (error := chunk.get("error")) is not None:
                    if error.get("type") == "exceed_context_size_error":
                        raise _NeedsContext(error["n_prompt_tokens"])
                    raise _Refused(error.get("message", error))
                yield chunk
        finally:
            closed = True


def open_server(path: Path, tokens: int, threads: int, on_gpu: bool = False, caches: int = 0, adapter: str | None = None) -> Any:
    """Load a file and its adapter with a context of `tokens`. Return llama.cpp's server, which frees the model when it is deleted.

    The server keeps the key-value cache of its last prompt, and those of earlier ones in at most `caches` bytes of memory. It has generated
    one token: it would never end if it were deleted before its first request. Raises `NotAModel` with llama.cpp's reason, and `EngineError`
    with the install command if xllamacpp is missing.
    """
    xllamacpp = _import_xllamacpp()
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel = tokens, 1
    params.n_batch = params.n_ubatch = BATCH_ON_GPU if on_gpu else BATCH
    params.n_gpu_layers = -1 if on_gpu else 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.fit_params, params.ui, params.cache_ram_mib = False, False, -(-caches >> 20)
    params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_AUTO
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    params.api_keys = [secrets.token_hex()]
    try:
        server = _start(xllamacpp, params, QUIET)
    except RuntimeError:
        raise NotAModel(f"{path} can't be loaded: {_why(xllamacpp, params)}") from None
    try:
        requests = Requests()
        for _ in requests.chunks(server.handle_completions, {"prompt": "?", "max_tokens": 1, "stream": True}):
            pass
        requests.wait()
    except _Refused as problem:
        raise NotAModel(f"{path} can't generate text: {problem}") from None
    return server


def _why(xllamacpp: Any, params: Any) -> str:
    """Return the reason why a file can't be loaded, from another attempt: llama.cpp only writes it to stderr."""
    with _captured_stderr() as text:
        try:
            _start(xllamacpp, params, REASONS)
        except RuntimeError as problem:
            _, *reasons = _settled(text).split(" E ", maxsplit=2)
            # After the first reason and the time of the next message, which repeats it in general words.
            return " ".join(reasons[0].rpartition("\n")[0].split()) if reasons else str(problem)
    return "it failed once, try again"


def _import_xllamacpp() -> Any:
    # Both are read when the library is loaded. Waiting threads sleep instead of spinning, which would stop the others if a core is busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        import xllamacpp
    except ImportError as problem:
        message = f"GGUF models need xllamacpp, which can't be imported ({problem}). Install it with: {sys.executable} {INSTALL}"
        raise EngineError(message) from problem
    return xllamacpp


def _has_gpu() -> bool:
    """Return whether this build of llama.cpp has a GPU to compute on. The Linux builds on PyPI only use the CPU."""
    xllamacpp = _import_xllamacpp()
    kinds = xllamacpp.ggml_backend_dev_type
    gpus = (kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU)
    return any(device["type"] in gpus for device in xllamacpp.get_device_info())


def _start(xllamacpp: Any, params: Any, verbosity: int) -> Any:
    """Return a new server. It always serves HTTP, so it gets a UNIX socket, which is removed before anything can connect."""
    params.verbosity = verbosity
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > LONGEST_SOCKET_FOLDER:
        folder = "/tmp"  # noqa: S108 - a private folder is made in it
    with tempfile.TemporaryDirectory(dir=folder) as private:
        params.hostnames = [str(Path(private, "llama.sock"))]
        return xllamacpp.Server(params)


def _settled(text: Callable[[], str]) -> str:
    """Return a text once it stops growing, because a thread of llama.cpp writes the log."""
    until, before = time.monotonic() + LOG_SECONDS, ""
    while time.monotonic() < until:
        time.sleep(LOG_SECONDS / 20)
        if (now := text()) and now == before:
            break
        before = now
    return before


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Redirect the descriptor of stderr to a file; yield a function that returns what was written to it."""
    with tempfile.TemporaryFile() as file:
        real = os.dup(2)
        os.dup2(file.fileno(), 2)

        def text() -> str:
            file.seek(0)
            return file.read().decode("utf-8", "replace")

        try:
            yield text
        finally:
            os.dup2(real, 2)
            os.close(real)
