"""Subcommands of `%openruntime` for prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openruntime_jupyter.notebook.ai.cards import AgentTable, Config, ConversationCard, ConversationTable
from openruntime_jupyter.notebook.ai.fix import fix
from openruntime_jupyter.notebook.ai.magic import ai_cell, ai_line
from openruntime_jupyter.notebook.ai.pull import pull_model
from openruntime_jupyter.notebook.run.cell import CELLS
from openruntime_jupyter.notebook.session import Session


def agents(session: Session) -> AgentTable:
    """Run `%openruntime agents`."""
    return AgentTable(session.client.agents())


def config(session: Session) -> Config:
    """Run `%openruntime config`."""
    client = session.client
    return Config(client.where, client.health(), client.models(), client.agents())


def conversations(session: Session) -> ConversationTable:
    """Run `%openruntime conversations`."""
    return ConversationTable(session.client.conversations())


def conversation(session: Session, name: str) -> ConversationCard:
    """Run `%openruntime conversation NAME`."""
    return ConversationCard(session.client.conversation(name))


def forget(session: Session, name: str) -> ConversationCard:
    """Run `%openruntime forget NAME`."""
    return ConversationCard(session.client.delete_conversation(name), erased=True)


def pull(session: Session, name: str | None = None) -> Any:
    """Run `%openruntime pull`."""
    return pull_model(session, name)


PROMPTS: dict[str, Callable[[Session, str], Any]] = {"ai": ai_line, "fix": fix}
"""Subcommands followed by free text. Each gets the rest of the line."""

CELLS["ai"] = ai_cell
