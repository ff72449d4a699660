"""What a client needs of a runtime's AI, wherever that runtime is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from openruntime_jupyter.schemas.ai import AgentList, AiTask, Conversation, ConversationInfo, ModelList, WorkflowInfo


class Prompts(Protocol):
    """Prompts to models, seen from any thread of a synchronous program; see `Backend`, whose `prompts` it is.

    Waiting, cancelling, looking and erasing are the backend's own: an AI task is a task.
    """

    def ask(self, request: dict[str, Any], key: str, wait: float = 0.0) -> AiTask:
        """Queue an AI task (`request` is an `AiRequest` as JSON, without `wait` and `stream`) that outlives this call.

        Returns at its end, or after `wait` seconds as it is then. The same `key` gives the same task again.
        """

    def tokens(self, task_id: str, since: int = 0) -> Iterator[tuple[int, str]]:
        """The text of an AI task after `since` characters, as it is written, until it ends: (characters before it, piece).

        A piece whose index is 0 again begins anew. Closing the iterator cancels nothing.
        """

    def agents(self) -> AgentList:
        """The agents, and what is wrong with files of the configured folder."""

    def workflows(self) -> list[WorkflowInfo]:
        """What an AI task can be for."""

    def conversations(self, owner: str | None = None) -> list[ConversationInfo]:
        """Everybody's conversations, or those of one user, the last used first."""

    def conversation(self, name: str, owner: str | None = None) -> Conversation:
        """A conversation of the caller's own, or of `owner`; raises `ConversationNotFound`."""

    def delete_conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Erase it, and return what it was; raises `ConversationNotFound`."""

    def models(self) -> ModelList:
        """The models of the runtime's machine, and its remote providers."""

    def unload(self, name: str) -> list[str]:
        """Unload a model that is in memory; raises `ModelNotFound`, and `TaskConflict` while it answers."""
