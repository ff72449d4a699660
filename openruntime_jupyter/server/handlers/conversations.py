"""Conversations: what prompts that go on with one another have said so far."""

from __future__ import annotations

from jupyter_server.auth.decorator import authorized
from tornado import web

from openruntime_jupyter.ai_models import Conversation, ConversationList
from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.http.requests import ConversationsQuery
from openruntime_jupyter.server.openapi.decorator import described


class ConversationsHandler(Handler):
    """`GET /ai/conversations`."""

    @described("AI", ConversationList, query=ConversationsQuery)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Conversations, the last used first: everybody's, or those of one user."""
        query = self.query(ConversationsQuery)
        service = await self.ai()
        found = await service.conversations.all(query.owner, everybody=query.owner is None)
        self.reply(ConversationList(conversations=found))


class ConversationHandler(Handler):
    """`/ai/conversations/{name}`."""

    @described("AI", Conversation, query=ConversationsQuery)
    @web.authenticated
    @authorized
    async def get(self, name: str) -> None:
        """A conversation of the caller's own, or of `owner`: its answered prompts, in their order."""
        query = self.query(ConversationsQuery)
        service = await self.ai()
        self.reply(await service.conversations.get(query.owner or (await self.caller()).owner, name))

    @described("AI", Conversation, query=ConversationsQuery)
    @web.authenticated
    @authorized
    async def delete(self, name: str) -> None:
        """Erase a conversation of the caller's own, or of `owner`; the answer is what it was. Its tasks stay in the history."""
        query = self.query(ConversationsQuery)
        service = await self.ai()
        self.reply(await service.conversations.delete(query.owner or (await self.caller()).owner, name))
