"""Views related to prompts: sent messages, agents, conversations, configuration, and setup advice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from openruntime_jupyter.notebook.ai.sanitize import sanitize
from openruntime_jupyter.notebook.display.format import clock
from openruntime_jupyter.notebook.display.html import Column, Html, RecordTable, Styled, View, code, line, pairs, prose, sign, tag, warnings
from openruntime_jupyter.schemas.ai import AgentInfo, AgentList, Conversation, ConversationInfo, ModelList
from openruntime_jupyter.schemas.system import Health
from openruntime_jupyter.schemas.tasks import Task

PLAIN = "white-space:pre-wrap;max-height:24em;overflow:auto;margin:2px 0 8px"


class Note(View):
    """Short message with optional code."""

    def __init__(self, text: str, command: str = "") -> None:
        self._text, self._command = text, command

    def content(self) -> Iterable[Styled]:
        """Return the message."""
        return [line(self._text, " ", code(self._command), class_="m") if self._command else line(self._text, class_="m")]


class Sent(View):
    """Exact messages and settings that are sent to the model for a prompt."""

    label, kind = "Request", "ort-c"

    def __init__(self, messages: Sequence[Mapping[str, str]], settings: Mapping[str, Any], title: str = "Request") -> None:
        self.messages = list(messages)
        self._head = " ".join([f"{title}:", *(f"{name}={value!r}" for name, value in settings.items())]).rstrip(":")

    @classmethod
    def of(cls, task: Task) -> Sent:
        """Return the messages of an AI task, including the agent's instructions and earlier turns."""
        given = dict(task.parameters or {})
        messages = given.pop("messages", [])
        given.pop("about", None)
        return cls(messages, {**given, **given.pop("parameters", {})})

    def content(self) -> Iterable[Styled]:
        """Return the settings and the messages."""
        messages = [Html(tag("div", tag("strong", each["role"])) + tag("pre", each["content"], style=PLAIN)) for each in self.messages]
        text = "\n\n".join([self._head, *(f"[{each['role']}]\n{each['content']}" for each in self.messages)])
        return [Styled(text, tag("details", tag("summary", self._head, class_="m"), *messages, open="open"))]


class NoProvider(View):
    """Advice for a runtime without any model or provider."""

    label, kind = "No model available", "ort-c"
    WAYS = (
        ("%openruntime pull", "downloads a small local model (93 MB); no account is needed"),
        ("OPENAI_API_KEY, OPENAI_BASE_URL", "in Jupyter Server's environment set up a remote provider; restart the server afterwards"),
        ("c.OpenRuntimeApp.profiles", "in the server's configuration sets up several providers by name"),
    )

    def content(self) -> Iterable[Styled]:
        """Return the problem and the ways to solve it."""
        text = " No model is available for prompts"
        return [
            Styled(f"✕{text}", tag("div", tag("strong", sign("✕", "no"), text))),
            pairs([(code(way), about) for way, about in self.WAYS]),
        ]


class AgentTable(RecordTable[AgentInfo]):
    """Agents (roles for a model). `problems` lists the files that were skipped."""

    label, caption = "OpenRuntime agents", "Agents"
    columns = (
        Column("role", lambda each: code(each.role), labelled=False),
        Column("name", lambda each: each.name, labelled=False),
        Column("description", lambda each: each.description, "wrap", labelled=False),
        Column("capabilities", lambda each: ", ".join(each.capabilities), "wrap"),
        Column("source", lambda each: each.source),
    )

    def __init__(self, found: AgentList) -> None:
        super().__init__(found.agents)
        self.problems = found.problems

    def notes(self) -> Iterable[Styled]:
        """Return the problems."""
        return warnings(self.problems)


class ConversationTable(RecordTable[ConversationInfo]):
    """Conversations, most recently used first."""

    label, caption = "OpenRuntime conversations", "Conversations"
    empty = "No conversations yet: --conversation NAME starts one"
    columns = (
        Column("conversation", lambda each: code(each.name), labelled=False),
        Column("turns", lambda each: each.turns, "number"),
        Column("started", lambda each: clock(each.started_at)),
        Column("last answer", lambda each: clock(each.timestamp)),
        Column("owner", lambda each: each.owner or "—"),
    )


class ConversationCard(View):
    """All turns of a conversation, as Markdown, the format that models answer in. `conversation` is the record."""

    def __init__(self, conversation: Conversation, erased: bool = False) -> None:
        self.conversation = conversation
        self._head = f"{conversation.name}: {conversation.turns} turns{', erased' if erased else ''}"

    def bundle(self) -> dict[str, Any]:
        """Return the conversation as Markdown and as plain text."""
        turns = [f"**{turn.prompt.strip()}**\n\n{turn.answer.strip()}" for turn in self.conversation.messages]
        return {"text/markdown": sanitize("\n\n---\n\n".join([f"### {self._head}", *turns])), "text/plain": self.text()}

    def text(self) -> str:
        """Return the conversation as plain text."""
        return "\n\n".join([self._head, *(f"> {turn.prompt.strip()}\n{turn.answer.strip()}" for turn in self.conversation.messages)])


class Config(View):
    """Configuration of prompts as reported by the runtime. API keys are never included."""

    label, kind = "OpenRuntime configuration", "ort-c"

    def __init__(self, where: str, health: Health, models: ModelList, agents: AgentList) -> None:
        self.where, self.health, self.models, self.agents = where, health, models, agents

    @property
    def default(self) -> str:
        """Model or profile that answers when a prompt specifies neither."""
        for profile in self.models.profiles:
            if profile.default:
                return f"{profile.model or 'the model given by the prompt'} of the profile {profile.name}"
        local = next((model.name for model in self.models.models if model.default), None)
        return f"{local} (local model)" if local else "no model: `%openruntime pull` downloads one, OPENAI_API_KEY sets up a provider"

    def content(self) -> Iterable[Styled]:
        """Return the configuration and its problems."""
        configured = [agent.role for agent in self.agents.agents if agent.source == "configured"]
        profiles = ", ".join(f"{each.name} ({each.model or 'no model set'})" for each in self.models.profiles)
        rows = [
            ("runtime", f"OpenRuntime {self.health.version}, {'inside this kernel' if self.where == 'embedded' else self.where}"),
            ("default", self.default),
            ("profiles", profiles or "none: set OpenRuntimeApp.profiles or OPENAI_API_KEY"),
            ("local models", ", ".join(model.name for model in self.models.models) or "none: `%openruntime pull` downloads one"),
            ("custom agents", ", ".join(configured) or "none: set OpenRuntimeApp.agents_dir to their folder"),
        ]
        return [
            pairs([(name, prose(value)) for name, value in rows], "Configuration"),
            *warnings([*self.health.problems, *self.agents.problems]),
        ]
