"""Adaptive size of the steps in which a prompt is processed, so that interrupts are handled between steps."""

from __future__ import annotations

STEP_SECONDS = 0.2
"""Target duration of a step. Interrupts are handled between steps, and a cancel escalates to its second stage after 0.5 s."""
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

    def took(self, tokens: int, layers: int, seconds: float) -> None:
        """Record the duration of a step. One measurement changes the work of a step by at most a factor of four."""
        wanted = max(tokens, SMALLEST) * layers * STEP_SECONDS / max(seconds, 1e-6)
        self._work = max(1.0, min(max(wanted, self._work / 4), self._work * 4))
