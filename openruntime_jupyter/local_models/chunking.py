"""How much of a prompt to compute before an interrupt can be heard."""

from __future__ import annotations

STEP_SECONDS = 0.2
"""An interrupt is heard between two steps, and a cancel asks for the second stage after half a second."""
SMALLEST = 32
"""Tokens: the weights are read once for each piece, so that still smaller ones take hardly less time."""
LARGEST = 512
"""Tokens: what a larger piece gains is small, and the memory for attention grows with it."""


class AdaptiveChunking:
    """Finds how many tokens, through how many layers, take about `STEP_SECONDS`, whatever the model and the device.

    A piece of the prompt that goes through all layers at once must be short to be quick, and each piece reads all weights anew: so a
    piece is as large as one layer can do in a step, and a step is as many layers as there is time for.
    """

    def __init__(self) -> None:
        self._work = 4.0 * SMALLEST
        """What is done in a step, in tokens times layers."""

    @property
    def tokens(self) -> int:
        """How many to read at once."""
        return int(min(max(self._work, SMALLEST), LARGEST))

    def layers(self, tokens: int) -> int:
        """Through how many layers so many tokens may go in a step."""
        return max(1, int(self._work / max(tokens, SMALLEST)))

    def took(self, tokens: int, layers: int, seconds: float) -> None:
        """So many went through so many layers in so long; a measurement does not change the pace by more than a factor of four."""
        wanted = max(tokens, SMALLEST) * layers * STEP_SECONDS / max(seconds, 1e-6)
        self._work = max(1.0, min(max(wanted, self._work / 4), self._work * 4))
