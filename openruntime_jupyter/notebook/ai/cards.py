"""Views related to prompts: help, sent messages, agents, conversations, configuration, and setup advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openruntime_jupyter.notebook.ai.options import OPTIONS
from openruntime_jupyter.notebook.ai.sanitize import sanitize
from openruntime_jupyter.notebook.display.format import clock
from openruntime_jupyter.notebook.display.html import Html, View, block, pairs, table, tag, text_pairs, text_table
from openruntime_jupyter.schemas.ai import AgentList, Conversation, ConversationInfo, ModelList
from openruntime_jupyter.schemas.system import Health
from openruntime_jupyter.schemas.tasks import Task

WRITE = (
    (
        "%%openruntime ai [workflow] [options]",
        "send the cell as a prompt and stream the answer; Ctrl-C cancels it, a second Ctrl-C stops waiting",
    ),
    ('%openruntime ai [workflow] "prompt" [options]', "the same on one line; `answer = %openruntime ai …` stores the answer"),
    ("%openruntime fix [options]", "explain and fix the last error; the code is put in the next cell and never run"),
)
ABOUT = (
    "{name} is replaced if a variable with this name exists; other braces are left as they are. Workflows: code_generation, "
    "system_analysis, optimization, model_inference (the default; code_generation with --insert)."
)
PLAIN = "white-space:pre-wrap;max-height:24em;overflow:auto;margin:2px 0 8px"


class Note(View):
    """Short message with optional code."""

    def __init__(self, text: str, code: str = "") -> None:
        self._text, self._code = text, code

    def html(self) -> str:
        """Return the view as HTML."""
        return block("OpenRuntime", tag("div", self._text, " ", tag("code", self._code) if self._code else "", class_="m"))

    def text(self) -> str:
        """Return the view as plain text."""
        return f"{self._text} {self._code}".rstrip()


class AiHelp(View):
    """Help of `%openruntime ai`."""

    def html(self) -> str:
        """Return the view as HTML."""
        ways = table("Prompts", ("command", "description"), [[tag("code", code), meaning] for code, meaning in WRITE], wide=(1,))
        options = table("Options", ("option", "description"), [[tag("code", code), meaning] for code, meaning in _options()], wide=(1,))
        return block("OpenRuntime AI help", ways, options, tag("div", ABOUT, class_="m"), kind="ort-c")

    def text(self) -> str:
        """Return the view as plain text."""
        return "\n\n".join([text_table(("command", "description"), WRITE), text_table(("option", "description"), _options()), ABOUT])


def _options() -> list[tuple[str, str]]:
    return [
        (f"{name} {'|'.join(option.choices) or option.kind.upper()}" if option.kind else name, option.description)
        for name, option in OPTIONS.items()
    ]


class Sent(View):
    """Exact messages and settings that are sent to the model for a prompt."""

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

    def html(self) -> str:
        """Return the view as HTML."""
        messages = [Html(tag("div", tag("strong", each["role"])) + tag("pre", each["content"], style=PLAIN)) for each in self.messages]
        return block("Request", tag("details", tag("summary", self._head, class_="m"), *messages, open="open"), kind="ort-c")

    def text(self) -> str:
        """Return the view as plain text."""
        return "\n\n".join([self._head, *(f"[{each['role']}]\n{each['content']}" for each in self.messages)])


class NoProvider(View):
    """Advice for a runtime without any model or provider."""

    WAYS = (
        ("%openruntime pull", "downloads a small local model (93 MB); no account is needed"),
        ("OPENAI_API_KEY, OPENAI_BASE_URL", "in Jupyter Server's environment set up a remote provider; restart the server afterwards"),
        ("c.OpenRuntimeApp.profiles", "in the server's configuration sets up several providers by name"),
    )

    def html(self) -> str:
        """Return the view as HTML."""
        head = tag("div", tag("strong", tag("span", "✕", class_="no", aria_hidden="true"), " No model is available for prompts"))
        return block("No model available", head, pairs("", [(tag("code", code), about) for code, about in self.WAYS]), kind="ort-c")

    def text(self) -> str:
        """Return the view as plain text."""
        return f"✕ No model is available for prompts\n{text_pairs(self.WAYS)}"


class AgentTable(View, list[Any]):
    """Agents (roles for a model): a list of records that is displayed as a table. `problems` lists the files that were skipped."""

    COLUMNS = ("role", "name", "description", "capabilities", "source")

    def __init__(self, found: AgentList) -> None:
        super().__init__(found.agents)
        self.problems = found.problems

    def _rows(self) -> list[list[Any]]:
        return [[each.role, each.name, each.description, ", ".join(each.capabilities), each.source] for each in self]

    def html(self) -> str:
        """Return the view as HTML."""
        rows = [[tag("code", role), *rest] for role, *rest in self._rows()]
        wrong = [tag("div", f"! {problem}", class_="wa") for problem in self.problems]
        return block("OpenRuntime agents", table("Agents", self.COLUMNS, rows, wide=(2, 3), plain=(0, 1, 2)), *wrong)

    def text(self) -> str:
        """Return the view as plain text."""
        return "\n".join([text_table(self.COLUMNS, self._rows()), *(f"! {problem}" for problem in self.problems)])


class ConversationTable(View, list[ConversationInfo]):
    """Conversations, most recently used first: a list of records that is displayed as a table."""

    COLUMNS = ("conversation", "turns", "started", "last answer", "owner")
    NONE = "No conversations yet: --conversation NAME starts one"

    def _rows(self) -> list[list[Any]]:
        return [[each.name, each.turns, clock(each.started_at), clock(each.timestamp), each.owner or "—"] for each in self]

    def html(self) -> str:
        """Return the view as HTML."""
        if not self:
            return block("OpenRuntime conversations", tag("div", self.NONE, class_="m"))
        rows = [[tag("code", name), *rest] for name, *rest in self._rows()]
        return block("OpenRuntime conversations", table("Conversations", self.COLUMNS, rows, numeric=(1,), plain=(0,)))

    def text(self) -> str:
        """Return the view as plain text."""
        return text_table(self.COLUMNS, self._rows()) if self else self.NONE


class ConversationCard(View):
    """All turns of a conversation. `conversation` is the record."""

    def __init__(self, conversation: Conversation, erased: bool = False) -> None:
        self.conversation = conversation
        self._head = f"{conversation.name}: {conversation.turns} turns{', erased' if erased else ''}"

    def bundle(self) -> dict[str, Any]:
        """Return the conversation as Markdown, the format that models answer in, and as plain text."""
        turns = [f"**{turn.prompt.strip()}**\n\n{turn.answer.strip()}" for turn in self.conversation.messages]
        return {"text/markdown": sanitize("\n\n---\n\n".join([f"### {self._head}", *turns])), "text/plain": self.text()}

    def html(self) -> str:
        """Return the view as HTML."""
        return block("OpenRuntime conversation", tag("pre", self.text(), style=PLAIN))

    def text(self) -> str:
        """Return the view as plain text."""
        return "\n\n".join([self._head, *(f"> {turn.prompt.strip()}\n{turn.answer.strip()}" for turn in self.conversation.messages)])


class Config(View):
    """Configuration of prompts as reported by the runtime. API keys are never included."""

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

    def _rows(self) -> list[tuple[str, str]]:
        configured = [agent.role for agent in self.agents.agents if agent.source == "configured"]
        profiles = ", ".join(f"{each.name} ({each.model or 'no model set'})" for each in self.models.profiles)
        return [
            ("runtime", f"OpenRuntime {self.health.version}, {'inside this kernel' if self.where == 'embedded' else self.where}"),
            ("default", self.default),
            ("profiles", profiles or "none: set OpenRuntimeApp.profiles or OPENAI_API_KEY"),
            ("local models", ", ".join(model.name for model in self.models.models) or "none: `%openruntime pull` downloads one"),
            ("custom agents", ", ".join(configured) or "none: set OpenRuntimeApp.agents_dir to their folder"),
        ]

    @property
    def _problems(self) -> list[str]:
        return [*self.health.problems, *self.agents.problems]

    def html(self) -> str:
        """Return the view as HTML."""
        wrong = [tag("div", f"! {problem}", class_="wa") for problem in self._problems]
        return block("OpenRuntime configuration", pairs("Configuration", self._rows()), *wrong, kind="ort-c")

    def text(self) -> str:
        """Return the view as plain text."""
        return "\n".join([text_pairs(self._rows()), *(f"! {problem}" for problem in self._problems)])
