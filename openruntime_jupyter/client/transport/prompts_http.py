"""Prompts over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import quote

from openruntime_jupyter.client.transport.protocol import LONGEST_WAIT
from openruntime_jupyter.schemas.ai import (
    AgentList,
    AiTask,
    Conversation,
    ConversationInfo,
    ConversationList,
    ModelList,
    Unloaded,
    WorkflowInfo,
    WorkflowList,
)


class HttpPrompts:
    """`Prompts` over HTTP. `ask` returns a response as a model; `lines` yields the lines of a streamed response."""

    def __init__(self, ask: Callable[..., Any], lines: Callable[[str, dict[str, str]], Iterator[str]]) -> None:
        self._ask = ask
        self._lines = lines

    def ask(self, request: dict[str, Any], key: str, wait: float = 0.0) -> AiTask:
        """Submit an AI task and return its record."""
        wait = max(0.0, min(wait, LONGEST_WAIT))
        headers = {"Idempotency-Key": key, "Prefer": f"wait={wait:g}" if wait else "respond-async"}
        # An asynchronous prompt may wait for the previous prompt of its conversation.
        answer: AiTask = self._ask(
            AiTask, "POST", "/ai/tasks", content=json.dumps(request).encode(), headers=headers, wait=LONGEST_WAIT + wait
        )
        return answer

    def tokens(self, task_id: str, since: int = 0) -> Iterator[tuple[int, str]]:
        """Stream the text of an AI task."""
        path = f"/tasks/{quote(task_id, safe='')}/tokens"
        for event, data in events(self._lines(path, {"since": str(since)})):
            if event == "token":
                piece = json.loads(data)
                yield piece["index"], piece["text"]

    def agents(self) -> AgentList:
        """Return the available agents."""
        answer: AgentList = self._ask(AgentList, "GET", "/ai/agents")
        return answer

    def workflows(self) -> list[WorkflowInfo]:
        """Return the available workflows."""
        answer: WorkflowList = self._ask(WorkflowList, "GET", "/ai/workflows")
        return answer.workflows

    def conversations(self, owner: str | None = None) -> list[ConversationInfo]:
        """Return the conversations."""
        answer: ConversationList = self._ask(ConversationList, "GET", "/ai/conversations", params=_of(owner))
        return answer.conversations

    def conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Return a conversation with its turns."""
        answer: Conversation = self._ask(Conversation, "GET", _conversation(name), params=_of(owner))
        return answer

    def delete_conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Delete a conversation and return it."""
        answer: Conversation = self._ask(Conversation, "DELETE", _conversation(name), params=_of(owner))
        return answer

    def models(self) -> ModelList:
        """Return the available models and remote providers."""
        answer: ModelList = self._ask(ModelList, "GET", "/models")
        return answer

    def unload(self, name: str) -> list[str]:
        """Unload an idle model."""
        answer: Unloaded = self._ask(Unloaded, "DELETE", f"/models/{quote(name, safe='')}")
        return answer.unloaded


def events(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield server-sent events as (name, data). Skips comments, ids and events without data."""
    name, data = "message", []
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif not line:
            if data:
                yield name, "\n".join(data)
            name, data = "message", []


def _of(owner: str | None) -> dict[str, str]:
    return {} if owner is None else {"owner": owner}


def _conversation(name: str) -> str:
    return f"/ai/conversations/{quote(name, safe='')}"
