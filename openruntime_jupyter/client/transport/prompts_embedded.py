"""Prompts to the runtime of this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import ValidationError

from openruntime_jupyter.client.transport.protocol import LONGEST_WAIT
from openruntime_jupyter.operations.base import invalid
from openruntime_jupyter.schemas.ai import AgentList, AiRequest, AiTask, Conversation, ConversationInfo, ModelList, WorkflowInfo

if TYPE_CHECKING:
    from openruntime_jupyter.ai.service import AiService
    from openruntime_jupyter.runtime.events.tokens import TokenPiece
    from openruntime_jupyter.runtime.runtime import Caller

Answer = TypeVar("Answer")
Question = Callable[["AiService"], Coroutine[Any, Any, Any]]


class EmbeddedPrompts:
    """See `Prompts`. `ask` runs a question on the runtime's loop, `caller` says whose it is."""

    def __init__(self, ask: Callable[[Question], Any], caller: Callable[[], Caller]) -> None:
        self._ask = ask
        self._caller = caller

    def ask(self, request: dict[str, Any], key: str, wait: float = 0.0) -> AiTask:
        """See `Prompts.ask`."""
        try:
            wanted = AiRequest.model_validate({**request, "wait": False, "stream": False})
        except ValidationError as problem:
            raise invalid(problem, known=AiRequest.model_fields) from None

        async def ask(service: AiService) -> AiTask:
            task_id = await service.submit(wanted, self._caller(), key)
            return await service.get(task_id, max(0.0, min(wait, LONGEST_WAIT)))

        return cast("AiTask", self._ask(ask))

    def tokens(self, task_id: str, since: int = 0) -> Iterator[tuple[int, str]]:
        """See `Prompts.tokens`."""

        async def begin(service: AiService) -> AsyncGenerator[TokenPiece, None]:
            await service.runtime.tasks.get(task_id, parameters=False)
            return cast("AsyncGenerator[TokenPiece, None]", service.runtime.tasks.tokens(task_id, since))

        pieces: AsyncGenerator[TokenPiece, None] = self._ask(begin)

        async def following(_: AiService) -> TokenPiece | None:
            return await anext(pieces, None)

        async def end(_: AiService) -> None:
            await pieces.aclose()

        try:
            while (piece := self._ask(following)) is not None:
                yield piece.index, piece.text
        finally:
            self._ask(end)

    def agents(self) -> AgentList:
        """See `Prompts.agents`."""
        return cast("AgentList", self._ask(_said(lambda service: service.agents.all())))

    def workflows(self) -> list[WorkflowInfo]:
        """See `Prompts.workflows`."""
        from openruntime_jupyter.ai.workflows import workflows

        return workflows().workflows

    def conversations(self, owner: str | None = None) -> list[ConversationInfo]:
        """See `Prompts.conversations`."""
        found = self._ask(lambda service: service.conversations.all(owner, everybody=owner is None))
        return cast("list[ConversationInfo]", found)

    def conversation(self, name: str, owner: str | None = None) -> Conversation:
        """See `Prompts.conversation`."""
        return cast("Conversation", self._ask(lambda service: service.conversations.get(owner or self._caller().owner, name)))

    def delete_conversation(self, name: str, owner: str | None = None) -> Conversation:
        """See `Prompts.delete_conversation`."""
        return cast("Conversation", self._ask(lambda service: service.conversations.delete(owner or self._caller().owner, name)))

    def models(self) -> ModelList:
        """See `Prompts.models`."""
        return cast("ModelList", self._ask(_said(lambda service: service.models(self._caller()))))

    def unload(self, name: str) -> list[str]:
        """See `Prompts.unload`."""
        return cast("list[str]", self._ask(lambda service: service.runtime.unload(name)))


def _said(read: Callable[[AiService], Answer]) -> Question:
    async def ask(service: AiService) -> Answer:
        return read(service)

    return ask
