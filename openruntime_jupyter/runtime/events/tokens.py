"""The text that a model writes, for those who read along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """A piece of text, and how many characters came before it. One whose index is 0 again begins a new attempt."""

    index: int
    text: str


class TokenLog:
    """Grows by `add` until it is closed; any number may read it from any place."""

    __slots__ = ("_attempt", "_closed", "_news", "text")

    def __init__(self) -> None:
        self.text = ""
        self._attempt = 0
        self._closed = False
        self._news: asyncio.Event | None = None

    def add(self, text: str) -> TokenPiece:
        """One more piece."""
        piece = TokenPiece(len(self.text), text)
        self.text += text
        self._tell()
        return piece

    def restart(self) -> None:
        """The worker died and the task runs again: what it wrote so far does not count."""
        self.text = ""
        self._attempt += 1
        self._tell()

    def close(self) -> None:
        """No more will come."""
        self._closed = True
        self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None

    async def read(self, since: int = 0) -> AsyncIterator[TokenPiece]:
        """What comes after `since` characters, as it comes."""
        attempt = self._attempt
        while True:
            if attempt != self._attempt:
                attempt, since = self._attempt, 0
            if since < len(self.text):
                piece = TokenPiece(since, self.text[since:])
                since = len(self.text)
                yield piece
            elif self._closed:
                return
            else:
                self._news = self._news or asyncio.Event()
                await self._news.wait()
