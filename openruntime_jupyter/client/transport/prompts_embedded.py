"""Prompts to the embedded runtime."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import ValidationError

from openruntime_jupyter.client.transport.protocol import LONGEST_WAIT
from openruntime_jupyter.operations.base import invalid
from openruntime_jupyter.schemas.ai import AgentList, AiRequest, AiTask, Conversation, ConversationInfo, ModelList, WorkflowInfo

if TYPE_CHECKING:
    from openruntime_jupyter.ai.service import AiService
    from openruntime_jupyter.runtime.runtime import Caller
    from openruntime_jupyter.runtime.tasks.entry import TokenPiece

Result = TypeVar("Result")
Call = Callable[["AiService"], Coroutine[Any, Any, Any]]


class EmbeddedPrompts:
    """`Prompts` of the embedded runtime. `ask` runs a coroutine on the runtime's loop; `caller` returns the calling user."""

    def __init__(self, ask: Callable[[Call], Any], caller: Callable[[], Caller]) -> None:
        self._ask = ask
        self._caller = caller

    def ask(self, request: dict[str, Any], key: str, wait: float = 0.0) -> AiTask:
        """Submit an AI task and return its record."""
        try:
            wanted = AiRequest.model_validate({**request, "wait": False, "stream": False})
        except ValidationError as problem:
            raise invalid(problem, known=AiRequest.model_fields) from None

        async def ask(service: AiService) -> AiTask:
            task_id = await service.submit(wanted, self._caller(), key)
            return await service.get(task_id, max(0.0, min(wait, LONGEST_WAIT)))

        return cast("AiTask", self._ask(ask))

    def tokens(self, task_id: str, since: int = 0) -> Iterator[tuple[int, str]]:
        """Stream the text of an AI task."""

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
        """Return the available agents."""
        return cast("AgentList", self._ask(_read(lambda service: service.agents.all())))

    def workflows(self) -> list[WorkflowInfo]:
        """Return the available workflows."""
        from openruntime_jupyter.ai.workflows import workflows

        return workflows().workflows

    def conversations(self, owner: str | None = None) -> list[ConversationInfo]:
        """Return the conversations."""
        found = self._ask(lambda service: service.conversations.all(owner, everybody=owner is None))
        return cast("list[ConversationInfo]", found)

    def conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Return a conversation with its turns."""
        return cast("Conversation", self._ask(lambda service: service.conversations.get(owner or self._caller().owner, name)))

    def delete_conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Delete a conversation and return it."""
        return cast("Conversation", self._ask(lambda service: service.conversations.delete(owner or self._caller().owner, name)))

    def models(self) -> ModelList:
        """Return the available models and remote providers."""
        return cast("ModelList", self._ask(_read(lambda service: service.models(self._caller()))))

    def unload(self, name: str) -> list[str]:
        """Unload an idle model."""
        return cast("list[str]", self._ask(lambda service: service.runtime.unload(name)))


def _read(read: Callable[[AiService], Result]) -> Call:
    async def ask(service: AiService) -> Result:
        return read(service)

    return ask
