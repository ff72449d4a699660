"""Logits processors for mlx-lm: constraint by a grammar, log-probabilities, and penalties that count the prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from openruntime_jupyter.errors import EngineError
from openruntime_jupyter.local_models.json_grammar import import_llguidance
from openruntime_jupyter.local_models.language_model import PENALTY_WINDOW, REPETITION_WINDOW
from openruntime_jupyter.schemas.values import GenerationOptions

Processor = Callable[[Any, Any], Any]
"""Function of the tokens so far and the logits that returns new logits. mlx-lm calls it one token ahead of the responses."""


def penalties(options: GenerationOptions, before: list[int]) -> list[Processor]:
    """Return the processors of the penalties in the options, which count the tokens `before` the ones that mlx-lm processes itself."""
    from mlx_lm.sample_utils import make_logits_processors

    made = make_logits_processors(
        repetition_penalty=options.repetition_penalty,
        repetition_context_size=REPETITION_WINDOW,
        presence_penalty=options.presence_penalty,
        presence_context_size=PENALTY_WINDOW,
        frequency_penalty=options.frequency_penalty,
        frequency_context_size=PENALTY_WINDOW,
    )
    earlier = mx.array(before[-PENALTY_WINDOW:], dtype=mx.int32)

    def counting(processor: Processor) -> Processor:
        return lambda tokens, logits: processor(mx.concatenate([earlier, tokens.astype(mx.int32)]), logits)

    return [counting(processor) for processor in made]


class GrammarConstraint:
    """Processor that only permits tokens that continue a text of a grammar.

    Parameters
    ----------
    tokenizer : `LLTokenizer` of llguidance
    grammar : grammar that llguidance has validated
    """

    def __init__(self, tokenizer: Any, grammar: str) -> None:
        import llguidance.numpy

        self._matcher = import_llguidance().LLMatcher(tokenizer, grammar)
        self._fill = llguidance.numpy.fill_next_token_bitmask
        self._mask = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
        self._seen: int | None = None

    def __call__(self, tokens: Any, logits: Any) -> Any:
        """Return the logits with those of forbidden tokens at minus infinity."""
        if self._seen is not None and not self._matcher.is_stopped():  # stopped: only the end of the response is permitted
            self._matcher.consume_tokens(tokens[self._seen :].tolist())
        self._seen = len(tokens)
        self._fill(self._matcher, self._mask)
        if self._matcher.is_error():
            raise EngineError(f"llguidance could not restrict the response: {self._matcher.get_error().partition('<state>')[0].strip()}")
        size = logits.shape[-1]
        permitted = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[:size].astype(bool)
        return mx.where(mx.array(np.pad(permitted, (0, size - len(permitted))))[None], logits, -mx.inf)


class LogprobRecorder:
    """Processor that records the log-probabilities of the model, before other processors and sampling options apply.

    Parameters
    ----------
    tokenizer : tokenizer of mlx-lm
    top : number of most likely tokens to return for each token
    """

    def __init__(self, tokenizer: Any, top: int) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._ahead: deque[Any] = deque()
        self.entries: list[dict[str, Any]] = []
        """Fields of `TokenLogprob` for each token of the response."""

    def __call__(self, _tokens: Any, logits: Any) -> Any:
        """Record and return the logits."""
        self._ahead.append(logits)
        return logits

    def take(self, token: int, ends: bool) -> None:
        """Add the entry of the next token of the response, unless it `ends` the response."""
        logits = self._ahead.popleft()[0].astype(mx.float32)
        if ends:
            return
        logprobs = np.array(logits - mx.logsumexp(logits))
        likely = np.argpartition(-logprobs, self._top)[: self._top] if self._top < len(logprobs) else np.arange(len(logprobs))
        ordered = sorted(likely.tolist(), key=lambda each: -logprobs[each])
        self.entries.append({**self._fields(token, logprobs), "top_logprobs": [self._fields(each, logprobs) for each in ordered]})

    def _fields(self, token: int, logprobs: np.ndarray) -> dict[str, Any]:
        text = self._tokenizer.decode([token])
        if self._tokenizer.convert_ids_to_tokens(token).startswith("▁") and not text.startswith(" "):
            text = f" {text}"  # decoding removes the space at the beginning of a text
        known = "\ufffd" not in text
        return {"token": text, "logprob": float(logprobs[token]), "bytes": list(text.encode()) if known else None}
