from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as some

from openruntime_jupyter.local_models.mlx_model import LARGEST, SMALLEST, STEP_SECONDS, AdaptiveChunking, StopFilter

LAYERS = 30


def settle(seconds_of: Callable[[int, int], float]) -> AdaptiveChunking:
    """Return the chunking on a device that needs `seconds_of(tokens, layers)` for a step."""
    chunking = AdaptiveChunking()
    for _ in range(20):
        tokens = chunking.tokens
        layers = min(chunking.layers(tokens), LAYERS)
        chunking.record(tokens, layers, seconds_of(tokens, layers))
    return chunking


def test_step_covers_layers_within_its_time() -> None:
    chunking = settle(lambda tokens, layers: layers * (0.002 + tokens * 0.0001))
    assert chunking.tokens == LARGEST
    assert STEP_SECONDS / 2 < chunking.layers(LARGEST) * (0.002 + LARGEST * 0.0001) <= STEP_SECONDS


def test_slow_layers_reduce_tokens_per_piece() -> None:
    chunking = settle(lambda tokens, layers: layers * (0.04 + tokens * 0.002))
    assert abs(0.04 + chunking.tokens * 0.002 - STEP_SECONDS) < 0.01
    assert chunking.layers(chunking.tokens) == 1


def test_pieces_do_not_shrink_below_minimum() -> None:
    chunking = settle(lambda tokens, layers: layers * (0.3 + tokens * 0.01))
    assert (chunking.tokens, chunking.layers(SMALLEST)) == (SMALLEST, 1)


def test_fast_device_reaches_largest_pieces() -> None:
    chunking = AdaptiveChunking()
    before = chunking.tokens
    chunking.record(before, 1, 1e-9)
    assert chunking.tokens == 4 * before
    chunking = settle(lambda tokens, layers: 1e-6)
    assert chunking.tokens == LARGEST
    assert chunking.layers(LARGEST) >= LAYERS


def test_short_piece_counts_as_smallest_piece() -> None:
    few, small = AdaptiveChunking(), AdaptiveChunking()
    few.record(2, LAYERS, 0.1)
    small.record(SMALLEST, LAYERS, 0.1)
    assert (few.tokens, few.layers(2)) == (small.tokens, small.layers(SMALLEST))


LETTERS = some.text("ab\n", max_size=30)


@given(LETTERS, some.lists(some.text("ab\n", min_size=1, max_size=4), max_size=3), some.lists(some.integers(0, 5), min_size=1, max_size=40))
def test_text_ends_at_first_stop_for_any_cuts(text: str, stops: list[str], cuts: list[int]) -> None:
    stream, passed, place, cut = StopFilter(stops), "", 0, 0
    while place < len(text) or cut < len(cuts):
        size = cuts[cut] if cut < len(cuts) else 1
        passed += stream.feed(text[place : place + size])
        place, cut = place + size, cut + 1
    passed += stream.flush()
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert passed == text[: min(found)[1] if found else len(text)]
    assert stream.found == bool(found)


@given(LETTERS)
def test_without_stop_strings_nothing_is_held_back(text: str) -> None:
    stream = StopFilter()
    assert [stream.feed(letter) for letter in text] == list(text)


def test_only_possible_stop_prefixes_are_held_back() -> None:
    stream = StopFilter(["\nuser:"])
    assert stream.feed("yes\nuse") == "yes"
    assert stream.feed("ful") == "\nuseful"
    assert not stream.found
