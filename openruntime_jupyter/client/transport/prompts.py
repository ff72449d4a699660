"""Interface of a client to a runtime's AI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from openruntime_jupyter.schemas.ai import AgentList, AiTask, Conversation, ConversationInfo, ModelList, WorkflowInfo


class Prompts(Protocol):
    """Thread-safe synchronous interface for prompts, available as `Backend.prompts`.

    `Backend` waits for, cancels, queries and deletes AI tasks like other tasks.
    """

    def ask(self, request: dict[str, Any], key: str, wait: float = 0.0) -> AiTask:
        """Submit an AI task and return its record at its end, or after `wait` seconds.

        `request` is an `AiRequest` as JSON, without `wait` and `stream`. A repeated `key` returns the same task.
        """

    def tokens(self, task_id: str, since: int = 0) -> Iterator[tuple[int, str]]:
        """Stream the text of an AI task after `since` characters as (offset, piece) until the task ends.

        An offset of 0 after the first piece restarts the text. Closing the iterator does not cancel the task.
        """

    def agents(self) -> AgentList:
        """Return the available agents and the problems of files in the configured folder."""

    def workflows(self) -> list[WorkflowInfo]:
        """Return the available workflows."""

    def conversations(self, owner: str | None = None) -> list[ConversationInfo]:
        """Return the conversations of all users or of `owner`, most recently used first."""

    def conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Return a conversation of the caller, or of `owner`. Raises `ConversationNotFound`."""

    def delete_conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Delete a conversation and return it. Raises `ConversationNotFound`."""

    def models(self) -> ModelList:
        """Return the available models and remote providers."""

    def unload(self, name: str) -> list[str]:
        """Unload a model from memory. Raises `ModelNotFound`, and `TaskConflict` while the model is in use."""
