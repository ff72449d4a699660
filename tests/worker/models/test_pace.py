from __future__ import annotations

from collections.abc import Callable

from openruntime_jupyter.worker.models.pace import LARGEST, PIECE_SECONDS, SMALLEST, Pace


def settle(seconds_of: Callable[[int], float]) -> int:
    """The piece that a device comes to which needs `seconds_of(tokens)` for one."""
    pace = Pace()
    for _ in range(20):
        pace.took(pace.tokens, seconds_of(pace.tokens))
    return pace.tokens


def test_a_piece_comes_to_take_as_long_as_it_should() -> None:
    found = settle(lambda tokens: 0.04 + tokens * 0.002)
    assert abs(0.04 + found * 0.002 - PIECE_SECONDS) < 0.01


def test_where_each_piece_costs_much_it_does_not_shrink_to_single_tokens() -> None:
    assert settle(lambda tokens: 0.3 + tokens * 0.01) == SMALLEST


def test_a_fast_device_gets_the_largest_piece_by_and_by() -> None:
    pace = Pace()
    pace.took(SMALLEST, 1e-9)
    assert pace.tokens == 4 * SMALLEST
    assert settle(lambda tokens: 1e-6) == LARGEST
