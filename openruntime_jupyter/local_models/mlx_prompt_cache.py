"""Key-value caches of earlier prompts of an MLX model, for prompts with the same beginning."""

from __future__ import annotations

from typing import Any

from openruntime_jupyter.local_models.gguf import CONTEXT

MOST = 100
"""Maximum number of kept caches. Their size is the usual limit."""
FEWEST = 32
"""Tokens that two prompts must have in common. MLX processes fewer in the same time as one."""
ONLY = "model"
"""Key of the model in mlx-lm's collection, which could hold the caches of several models."""


class PromptCaches:
    """Caches of the last prompts and their responses, least recently inserted first.

    Parameters
    ----------
    model : model of mlx-lm
    token_bytes : growth of its cache per token, in bytes; None if unknown
    """

    def __init__(self, model: Any, token_bytes: int | None) -> None:
        self._model = model
        self._usual = CONTEXT * (token_bytes or 0)
        self._kept = _collection()

    @property
    def nbytes(self) -> int:
        """Return the size of the kept caches in bytes."""
        return int(self._kept.nbytes)

    def take(self, tokens: list[int]) -> tuple[list[Any], int]:
        """Return a cache for a prompt and the number of its tokens in it, at most all but the last one. Kept caches do not change."""
        from mlx_lm.models.cache import KVCache, make_prompt_cache, trim_prompt_cache

        cache, rest = self._kept.fetch_nearest_cache(ONLY, tokens)
        if cache is not None and not rest:  # the last token must be computed
            rest = tokens[-1:] if trim_prompt_cache(cache, 1) else tokens
        if cache is None or len(tokens) - len(rest) < FEWEST:
            return make_prompt_cache(self._model), 0
        for layer in cache:
            if type(layer) is KVCache and layer.keys is not None and layer.values is not None:
                # Trimming changes only the offset, so that the next token would copy the whole arrays.
                layer.keys, layer.values = layer.keys[..., : layer.offset, :], layer.values[..., : layer.offset, :]
        return cache, len(tokens) - len(rest)

    def keep(self, tokens: list[int], cache: list[Any], free: int) -> None:
        """Keep the cache of `tokens`, and delete the oldest ones.

        All together stay within the size of a cache for `CONTEXT` tokens, or of the new one if that is larger, and within half of the
        `free` bytes and those in use.
        """
        try:
            before = self.nbytes
            self._kept.insert_cache(ONLY, tokens, cache)
            new = sum(layer.nbytes for layer in cache)
            self._kept.trim_to(n_bytes=min(max(self._usual, new), (free + before + new) // 2))
        except BaseException:  # an interrupt could leave the collection inconsistent
            self.release()
            raise

    def release(self) -> None:
        """Delete all kept caches."""
        self._kept = _collection()


def _collection() -> Any:
    from mlx_lm.models.cache import LRUPromptCache

    return LRUPromptCache(max_size=MOST)
