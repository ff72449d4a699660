"""What prompts show beside their answers: what was sent, who can be asked, what was said, and what to do where nobody answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openruntime_jupyter.notebook.ai.options import OPTIONS
from openruntime_jupyter.notebook.ai.sanitize import inert
from openruntime_jupyter.notebook.display.format import clock
from openruntime_jupyter.notebook.display.html import Html, View, block, pairs, table, tag, text_pairs, text_table
from openruntime_jupyter.schemas.ai import AgentList, Conversation, ConversationInfo, ModelList
from openruntime_jupyter.schemas.system import Health
from openruntime_jupyter.schemas.tasks import Task

WRITE = (
    (
        "%%openruntime ai [workflow] [options]",
        "the cell is the prompt: the answer streams in; Ctrl-C cancels it, a second one leaves it",
    ),
    ('%openruntime ai [workflow] "prompt" [options]', "the same in one line; `answer = %openruntime ai …` keeps it"),
    ("%openruntime fix [options]", "have the last error explained and mended; the code is offered in the next cell, and never run"),
)
ABOUT = (
    "{name} is replaced where such a variable is there, and nothing else: code with braces passes as it is. Workflows: code_generation, "
    "system_analysis, optimization, model_inference (the default; code_generation with --insert)."
)
PLAIN = "white-space:pre-wrap;max-height:24em;overflow:auto;margin:2px 0 8px"


class Note(View):
    """A remark, and something to write."""

    def __init__(self, text: str, code: str = "") -> None:
        self._text, self._code = text, code

    def html(self) -> str:
        """See `View.html`."""
        return block("OpenRuntime", tag("div", self._text, " ", tag("code", self._code) if self._code else "", class_="m"))

    def text(self) -> str:
        """See `View.text`."""
        return f"{self._text} {self._code}".rstrip()


class AiHelp(View):
    """What `%openruntime ai` alone says."""

    def html(self) -> str:
        """See `View.html`."""
        ways = table("Prompts", ("write", "to"), [[tag("code", code), meaning] for code, meaning in WRITE], wide=(1,))
        options = table("Options", ("option", "to"), [[tag("code", code), meaning] for code, meaning in _options()], wide=(1,))
        return block("OpenRuntime AI help", ways, options, tag("div", ABOUT, class_="m"), kind="ort-c")

    def text(self) -> str:
        """See `View.text`."""
        return "\n\n".join([text_table(("write", "to"), WRITE), text_table(("option", "to"), _options()), ABOUT])


def _options() -> list[tuple[str, str]]:
    return [
        (f"{name} {'|'.join(option.choices) or option.kind.upper()}" if option.kind else name, option.does)
        for name, option in OPTIONS.items()
    ]


class Sent(View):
    """What a model is given for a prompt, word for word, and how it is to answer."""

    def __init__(self, messages: Sequence[Mapping[str, str]], settings: Mapping[str, Any], title: str = "What is sent") -> None:
        self.messages = list(messages)
        self._head = " ".join([f"{title}:", *(f"{name}={value!r}" for name, value in settings.items())]).rstrip(":")

    @classmethod
    def of(cls, task: Task) -> Sent:
        """All of an AI task, the agent's instructions and earlier turns included."""
        given = dict(task.parameters or {})
        messages = given.pop("messages", [])
        given.pop("about", None)
        return cls(messages, {**given, **given.pop("parameters", {})})

    def html(self) -> str:
        """See `View.html`."""
        said = [Html(tag("div", tag("strong", each["role"])) + tag("pre", each["content"], style=PLAIN)) for each in self.messages]
        return block("What is sent", tag("details", tag("summary", self._head, class_="m"), *said, open="open"), kind="ort-c")

    def text(self) -> str:
        """See `View.text`."""
        return "\n\n".join([self._head, *(f"[{each['role']}]\n{each['content']}" for each in self.messages)])


class NoProvider(View):
    """Nobody answers prompts: both ways out."""

    WAYS = (
        ("%openruntime pull", "fetches a small model for this machine (93 MB): no account is needed"),
        ("OPENAI_API_KEY, OPENAI_BASE_URL", "in the environment of Jupyter Server set up a provider; restart it then"),
        ("c.OpenRuntimeApp.profiles", "in its configuration sets up several, by name"),
    )

    def html(self) -> str:
        """See `View.html`."""
        head = tag("div", tag("strong", tag("span", "✕", class_="no", aria_hidden="true"), " No model answers prompts here yet"))
        return block("Nobody answers prompts", head, pairs("", [(tag("code", code), does) for code, does in self.WAYS]), kind="ort-c")

    def text(self) -> str:
        """See `View.text`."""
        return f"✕ No model answers prompts here yet\n{text_pairs(self.WAYS)}"


class AgentTable(View, list[Any]):
    """The roles that a model can be given: a list of records that shows itself as a table; `problems` are files that were left out."""

    COLUMNS = ("role", "name", "what it does", "capabilities", "from")

    def __init__(self, found: AgentList) -> None:
        super().__init__(found.agents)
        self.problems = found.problems

    def _rows(self) -> list[list[Any]]:
        return [[each.role, each.name, each.description, ", ".join(each.capabilities), each.source] for each in self]

    def html(self) -> str:
        """See `View.html`."""
        rows = [[tag("code", role), *rest] for role, *rest in self._rows()]
        wrong = [tag("div", f"! {problem}", class_="wa") for problem in self.problems]
        return block("OpenRuntime agents", table("Agents", self.COLUMNS, rows, wide=(2, 3), plain=(0, 1, 2)), *wrong)

    def text(self) -> str:
        """See `View.text`."""
        return "\n".join([text_table(self.COLUMNS, self._rows()), *(f"! {problem}" for problem in self.problems)])


class ConversationTable(View, list[ConversationInfo]):
    """Conversations, the last used first: a list of records that shows itself as a table."""

    COLUMNS = ("conversation", "turns", "begun", "last answer", "owner")
    NONE = "No conversations yet: --conversation NAME begins one"

    def _rows(self) -> list[list[Any]]:
        return [[each.name, each.turns, clock(each.started_at), clock(each.timestamp), each.owner or "—"] for each in self]

    def html(self) -> str:
        """See `View.html`."""
        if not self:
            return block("OpenRuntime conversations", tag("div", self.NONE, class_="m"))
        rows = [[tag("code", name), *rest] for name, *rest in self._rows()]
        return block("OpenRuntime conversations", table("Conversations", self.COLUMNS, rows, numeric=(1,), plain=(0,)))

    def text(self) -> str:
        """See `View.text`."""
        return text_table(self.COLUMNS, self._rows()) if self else self.NONE


class ConversationCard(View):
    """What was said; `conversation` is the record."""

    def __init__(self, conversation: Conversation, erased: bool = False) -> None:
        self.conversation = conversation
        self._head = f"{conversation.name}: {conversation.turns} turns{', erased' if erased else ''}"

    def bundle(self) -> dict[str, Any]:
        """As Markdown, since that is what models answer."""
        said = [f"**{turn.prompt.strip()}**\n\n{turn.answer.strip()}" for turn in self.conversation.messages]
        return {"text/markdown": inert("\n\n---\n\n".join([f"### {self._head}", *said])), "text/plain": self.text()}

    def html(self) -> str:
        """See `View.html`."""
        return block("OpenRuntime conversation", tag("pre", self.text(), style=PLAIN))

    def text(self) -> str:
        """See `View.text`."""
        return "\n\n".join([self._head, *(f"> {turn.prompt.strip()}\n{turn.answer.strip()}" for turn in self.conversation.messages)])


class Config(View):
    """Who answers prompts, as the runtime tells it; keys are told by nobody."""

    def __init__(self, where: str, health: Health, models: ModelList, agents: AgentList) -> None:
        self.where, self.health, self.models, self.agents = where, health, models, agents

    @property
    def default(self) -> str:
        """Who answers where a prompt names nobody."""
        for profile in self.models.profiles:
            if profile.default:
                return f"{profile.model or 'a model that the prompt names'} of the profile {profile.name}"
        local = next((model.name for model in self.models.models if model.default), None)
        return f"{local}, on this machine" if local else "nobody: `%openruntime pull` fetches a model, OPENAI_API_KEY sets up a provider"

    def _rows(self) -> list[tuple[str, str]]:
        configured = [agent.role for agent in self.agents.agents if agent.source == "configured"]
        profiles = ", ".join(f"{each.name} ({each.model or 'no model set'})" for each in self.models.profiles)
        return [
            ("runtime", f"OpenRuntime {self.health.version}, {'inside this kernel' if self.where == 'embedded' else self.where}"),
            ("answers by default", self.default),
            ("profiles", profiles or "none: OpenRuntimeApp.profiles or OPENAI_API_KEY sets them up"),
            ("models here", ", ".join(model.name for model in self.models.models) or "none: `%openruntime pull` fetches one"),
            ("agents of your own", ", ".join(configured) or "none: OpenRuntimeApp.agents_dir names their folder"),
        ]

    @property
    def _wrong(self) -> list[str]:
        return [*self.health.problems, *self.agents.problems]

    def html(self) -> str:
        """See `View.html`."""
        wrong = [tag("div", f"! {problem}", class_="wa") for problem in self._wrong]
        return block("OpenRuntime configuration", pairs("Configuration", self._rows()), *wrong, kind="ort-c")

    def text(self) -> str:
        """See `View.text`."""
        return "\n".join([text_pairs(self._rows()), *(f"! {problem}" for problem in self._wrong)])
