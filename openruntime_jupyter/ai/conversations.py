"""Conversations by name: their turns, and the order of pending prompts."""

from __future__ import annotations

import asyncio
from functools import partial
from weakref import WeakValueDictionary

from openruntime_jupyter.errors import ConversationNotFound, TaskConflict
from openruntime_jupyter.runtime.storage import conversations as stored
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.ai import Conversation, ConversationInfo, Turn

PATIENCE = 20.0
"""Seconds that an asynchronous prompt waits for the previous prompt of its conversation before it is rejected."""
MOST_LISTED = 1_000


class Conversations:
    """Conversations in the history. Names are separate for each owner."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def all(self, owner: str | None = None, everybody: bool = False) -> list[ConversationInfo]:
        """Return the conversations of `owner` (None: without a login) or of all users, most recently used first."""
        whose = None if everybody else owner or ""
        return await self._history.look(partial(stored.page, owner=whose, limit=MOST_LISTED))

    async def get(self, owner: str | None, name: str) -> Conversation:
        """Return a conversation with its turns. Raises `ConversationNotFound`."""
        found = await self._history.look(partial(stored.one, owner=owner or "", name=name))
        if found is None:
            whose = f"of {owner}" if owner is not None else "without a login"
            raise ConversationNotFound(f"Unknown conversation {name!r} {whose}: GET /ai/conversations lists the conversations")
        info, turns = found
        return Conversation(**info.model_dump(), messages=turns)

    async def turns(self, owner: str | None, name: str) -> list[Turn]:
        """Return the turns so far; empty for a new conversation."""
        found = await self._history.look(partial(stored.one, owner=owner or "", name=name))
        return [] if found is None else found[1]

    async def delete(self, owner: str | None, name: str) -> Conversation:
        """Delete a conversation and return it. Its tasks stay. Raises `ConversationNotFound`."""
        conversation = await self.get(owner, name)
        await self._history.change(partial(stored.delete, owner=owner or "", name=name))
        return conversation

    async def turn(self, owner: str | None, name: str, patience: float | None) -> asyncio.Lock:
        """Wait until earlier prompts of the conversation have ended, in order. The caller must release the returned lock.

        Raises `TaskConflict` after `patience` seconds.
        """
        lock = self._locks.setdefault((owner or "", name), asyncio.Lock())
        try:
            await asyncio.wait_for(lock.acquire(), patience)
        except asyncio.TimeoutError:
            raise TaskConflict(
                f"The previous prompt of the conversation {name!r} is still pending: wait for it, or cancel it, and try again"
            ) from None
        return lock
