"""Filter that ends streamed text at the first stop string."""

from __future__ import annotations

from collections.abc import Sequence


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
