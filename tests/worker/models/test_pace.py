from __future__ import annotations

from collections.abc import Callable

from openruntime_jupyter.local_models.language_model import LARGEST, SMALLEST, STEP_SECONDS, AdaptiveChunking

LAYERS = 30


def settle(seconds_of: Callable[[int, int], float]) -> AdaptiveChunking:
    """Return the chunking on a device that needs `seconds_of(tokens, layers)` for a step."""
    pace = AdaptiveChunking()
    for _ in range(20):
        tokens = pace.tokens
        layers = min(pace.layers(tokens), LAYERS)
        pace.took(tokens, layers, seconds_of(tokens, layers))
    return pace


def test_step_covers_layers_within_its_time() -> None:
    pace = settle(lambda tokens, layers: layers * (0.002 + tokens * 0.0001))
    assert pace.tokens == LARGEST
    assert STEP_SECONDS / 2 < pace.layers(LARGEST) * (0.002 + LARGEST * 0.0001) <= STEP_SECONDS


def test_slow_layers_reduce_tokens_per_piece() -> None:
    pace = settle(lambda tokens, layers: layers * (0.04 + tokens * 0.002))
    assert abs(0.04 + pace.tokens * 0.002 - STEP_SECONDS) < 0.01
    assert pace.layers(pace.tokens) == 1


def test_pieces_do_not_shrink_below_minimum() -> None:
    pace = settle(lambda tokens, layers: layers * (0.3 + tokens * 0.01))
    assert (pace.tokens, pace.layers(SMALLEST)) == (SMALLEST, 1)


def test_fast_device_reaches_largest_pieces() -> None:
    pace = AdaptiveChunking()
    before = pace.tokens
    pace.took(before, 1, 1e-9)
    assert pace.tokens == 4 * before
    pace = settle(lambda tokens, layers: 1e-6)
    assert pace.tokens == LARGEST
    assert pace.layers(LARGEST) >= LAYERS


def test_short_piece_counts_as_smallest_piece() -> None:
    few, small = AdaptiveChunking(), AdaptiveChunking()
    few.took(2, LAYERS, 0.1)
    small.took(SMALLEST, LAYERS, 0.1)
    assert (few.tokens, few.layers(2)) == (small.tokens, small.layers(SMALLEST))
