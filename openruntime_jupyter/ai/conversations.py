"""Conversations by name: what was said, and whose turn it is."""

from __future__ import annotations

import asyncio
from functools import partial
from weakref import WeakValueDictionary

from openruntime_jupyter.errors import ConversationNotFound, TaskConflict
from openruntime_jupyter.runtime.storage import conversations as stored
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.ai import Conversation, ConversationInfo, Turn

PATIENCE = 20.0
"""Seconds that a prompt for which nobody waits may be kept from being queued by the one before it in its conversation."""
MOST_LISTED = 1_000


class Conversations:
    """Those of the history. A conversation belongs to its owner: another user's of the same name is another one."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._device_lock: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def all(self, owner: str | None = None, everybody: bool = False) -> list[ConversationInfo]:
        """The conversations of this owner (None: of nobody in particular), or of everybody, the last used first."""
        whose = None if everybody else owner or ""
        return await self._history.look(partial(stored.page, owner=whose, limit=MOST_LISTED))

    async def get(self, owner: str | None, name: str) -> Conversation:
        """A conversation with its turns; raises `ConversationNotFound`."""
        found = await self._history.look(partial(stored.one, owner=owner or "", name=name))
        if found is None:
            raise ConversationNotFound(_nowhere(owner, name))
        info, turns = found
        return Conversation(**info.model_dump(), messages=turns)

    async def turns(self, owner: str | None, name: str) -> list[Turn]:
        """What was said so far; nothing in one that begins."""
        found = await self._history.look(partial(stored.one, owner=owner or "", name=name))
        return [] if found is None else found[1]

    async def delete(self, owner: str | None, name: str) -> Conversation:
        """Erase a conversation, and return it as it was; its tasks stay. Raises `ConversationNotFound`."""
        conversation = await self.get(owner, name)
        await self._history.change(partial(stored.delete, owner=owner or "", name=name))
        return conversation

    async def turn(self, owner: str | None, name: str, patience: float | None) -> asyncio.Lock:
        """Wait until the prompts before it in the conversation have ended, in the order in which they came; release what is returned.

        Raises `TaskConflict` after `patience` seconds.
        """
        lock = self._device_lock.setdefault((owner or "", name), asyncio.Lock())
        try:
            await asyncio.wait_for(lock.acquire(), patience)
        except asyncio.TimeoutError:
            raise TaskConflict(
                f"The conversation {name!r} still waits for an answer, without which it can't go on: wait for that, or cancel it, and ask "
                "again."
            ) from None
        return lock


def _nowhere(owner: str | None, name: str) -> str:
    whose = f"of {owner}" if owner is not None else "without a login"
    return f"There is no conversation {name!r} {whose}: GET /ai/conversations lists those that there are."
