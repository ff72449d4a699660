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
    """See `Prompts`. `ask` gives the answer to a request as a model, `lines` the lines of one that is streamed."""

    def __init__(self, ask: Callable[..., Any], lines: Callable[[str, dict[str, str]], Iterator[str]]) -> None:
        self._ask = ask
        self._lines = lines

    def ask(self, request: dict[str, Any], key: str, wait: float = 0.0) -> AiTask:
        """See `Prompts.ask`."""
        wait = max(0.0, min(wait, LONGEST_WAIT))
        headers = {"Idempotency-Key": key, "Prefer": f"wait={wait:g}" if wait else "respond-async"}
        # An asynchronous prompt may be kept waiting by the one before it in its conversation.
        answer: AiTask = self._ask(
            AiTask, "POST", "/ai/tasks", content=json.dumps(request).encode(), headers=headers, wait=LONGEST_WAIT + wait
        )
        return answer

    def tokens(self, task_id: str, since: int = 0) -> Iterator[tuple[int, str]]:
        """See `Prompts.tokens`."""
        path = f"/tasks/{quote(task_id, safe='')}/tokens"
        for event, data in events(self._lines(path, {"since": str(since)})):
            if event == "token":
                told = json.loads(data)
                yield told["index"], told["text"]

    def agents(self) -> AgentList:
        """See `Prompts.agents`."""
        answer: AgentList = self._ask(AgentList, "GET", "/ai/agents")
        return answer

    def workflows(self) -> list[WorkflowInfo]:
        """See `Prompts.workflows`."""
        answer: WorkflowList = self._ask(WorkflowList, "GET", "/ai/workflows")
        return answer.workflows

    def conversations(self, owner: str | None = None) -> list[ConversationInfo]:
        """See `Prompts.conversations`."""
        answer: ConversationList = self._ask(ConversationList, "GET", "/ai/conversations", params=_of(owner))
        return answer.conversations

    def conversation(self, name: str, owner: str | None = None) -> Conversation:
        """See `Prompts.conversation`."""
        answer: Conversation = self._ask(Conversation, "GET", _conversation(name), params=_of(owner))
        return answer

    def delete_conversation(self, name: str, owner: str | None = None) -> Conversation:
        """See `Prompts.delete_conversation`."""
        answer: Conversation = self._ask(Conversation, "DELETE", _conversation(name), params=_of(owner))
        return answer

    def models(self) -> ModelList:
        """See `Prompts.models`."""
        answer: ModelList = self._ask(ModelList, "GET", "/models")
        return answer

    def unload(self, name: str) -> list[str]:
        """See `Prompts.unload`."""
        answer: Unloaded = self._ask(Unloaded, "DELETE", f"/models/{quote(name, safe='')}")
        return answer.unloaded


def events(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Server-sent events as (name, data); comments, ids and events without data are left out."""
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
