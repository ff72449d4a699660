"""How much of a prompt to read at once."""

from __future__ import annotations

PIECE_SECONDS = 0.2
"""An interrupt is heard between two pieces, and a cancel asks for the second stage after half a second."""
SMALLEST = 32
"""Tokens: the weights are read once for each piece, so that still smaller ones take hardly less time."""
LARGEST = 512
"""Tokens: what a larger piece gains is small, and the memory for attention grows with it."""


class Pace:
    """Finds the number of tokens that takes about `PIECE_SECONDS`, whatever the model and the device."""

    def __init__(self, tokens: int = SMALLEST) -> None:
        self.tokens = tokens

    def took(self, tokens: int, seconds: float) -> None:
        """So many were read in so long; a measurement does not change the pace by more than a factor of four."""
        wanted = tokens * PIECE_SECONDS / max(seconds, 1e-6)
        self.tokens = int(min(max(wanted, tokens / 4, SMALLEST), max(tokens, self.tokens) * 4, LARGEST))
