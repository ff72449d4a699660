"""Text that is passed on as it comes, up to the first of some strings."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Holds back what may yet turn out to be the beginning of a stop string, and passes on nothing from the first one on."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found = False
        """Whether a stop string has come."""

    def feed(self, text: str) -> str:
        """One more piece; what can be passed on for certain."""
        if self.found:
            return ""
        self._held += text
        found = [(place + len(stop), place) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:  # the first to be complete counts, so that it makes no difference how the text is cut
            self.found = True
            return self._release(min(found)[1])
        return self._release(len(self._held) - self._beginning())

    def flush(self) -> str:
        """No more will come: what was held back."""
        return "" if self.found else self._release(len(self._held))

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text

    def _beginning(self) -> int:
        """The length of the longest end of what is held that begins a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
