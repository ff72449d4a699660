"""What can be offered to someone who types: names that this kernel and its runtime know.

Nothing here raises, starts a runtime or waits for long: somebody has pressed Tab.
"""

from __future__ import annotations

import ast
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.schemas.ai import ConversationInfo
from openruntime_jupyter.schemas.system import Device, OperationInfo
from openruntime_jupyter.schemas.tasks import Task, TaskState

if TYPE_CHECKING:
    from openruntime_jupyter.notebook.session import Session

PATIENCE = 1.0
"""Seconds that a runtime may take to answer; what comes later is there at the next Tab."""
KEPT = 30.0
"""Seconds for which operations, devices and models are taken to be as they were."""
NEWEST = 30
"""Tasks that are offered."""
LIVE = (TaskState.PENDING, TaskState.RUNNING)

Answer = TypeVar("Answer")


class CompletionSources:
    """The names that there are now."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kept: dict[str, tuple[float, Any]] = {}

    def variables(self) -> list[str]:
        """The user's own variables, modules left out."""
        hidden = self._session.shell.user_ns_hidden
        return sorted(
            name
            for name, value in self._session.namespace.items()
            if not name.startswith("_") and name not in hidden and not isinstance(value, ModuleType)
        )

    def handles(self) -> list[str]:
        """Variables that hold a task."""
        return [name for name, value in self._session.namespace.items() if isinstance(value, TaskHandle)]

    def tasks(self, *states: TaskState) -> list[str]:
        """Ids of the newest tasks in one of `states` (none: in any), after the variables that hold one."""
        wanted = [str(state) for state in states] or None
        found: list[Task] = self._ask(f"tasks {wanted}", lambda client: client.tasks(NEWEST, states=wanted).tasks, [], kept=0.0)
        return [*self.handles(), *(task.task_id for task in found)]

    def operations(self) -> dict[str, OperationInfo]:
        """The kinds of work by name, with the schemas of their parameters."""
        found: list[OperationInfo] = self._ask("operations", lambda client: client.operations(), [])
        return {entry.name: entry for entry in found or self._own_operations()}

    def parameters(self, operation: str) -> dict[str, Any]:
        """The schemas of an operation's parameters by name."""
        known = self.operations().get(operation)
        return {} if known is None else known.parameters_schema.get("properties", {})

    def devices(self) -> list[str]:
        """Ids of devices."""
        found: list[Device] = self._ask("devices", lambda client: client.devices(), [])
        return [device.id for device in found]

    def resident(self) -> list[str]:
        """Models that are in memory."""
        return [model.name for model in self._models() if model.resident]

    def models(self) -> list[str]:
        """Models of the machine."""
        return [model.name for model in self._models()]

    def profiles(self) -> list[str]:
        """Profiles of remote providers."""
        found = self._ask("models", lambda client: client.models(), None)
        return [] if found is None else [profile.name for profile in found.profiles]

    def agents(self) -> list[str]:
        """Roles that a model can be given."""
        found = self._ask("agents", lambda client: client.agents(), None)
        return [] if found is None else [agent.role for agent in found.agents]

    def sessions(self) -> list[str]:
        """Names of sessions."""
        found = self._ask("sessions", lambda client: client.sessions(), None, kept=2.0)
        return [] if found is None else [each.name for each in found]

    def conversations(self) -> list[str]:
        """Names of conversations."""
        found: list[ConversationInfo] = self._ask("conversations", lambda client: client.conversations(), [], kept=2.0)
        return [each.name for each in found]

    def _models(self) -> list[Any]:
        found = self._ask("models", lambda client: client.models(), None, kept=2.0)
        return [] if found is None else found.models

    def _own_operations(self) -> list[OperationInfo]:
        """What the runtime of this process would offer: it need not run for that."""
        from openruntime_jupyter.operations.registry import operations
        from openruntime_jupyter.runtime.tasks.views import operations as described

        return self._remembered("own operations", lambda: described(operations()), [])

    def _ask(self, what: str, question: Callable[[Client], Answer], otherwise: Answer, kept: float = KEPT) -> Answer:
        def ask() -> Answer:
            client = self._session.client
            return otherwise if getattr(client.backend, "started", True) is False else question(client)

        return self._remembered(what, ask, otherwise, kept)

    def _remembered(self, what: str, find: Callable[[], Answer], otherwise: Answer, kept: float = KEPT) -> Answer:
        found = self._kept.get(what)
        if found is None or not found[1] or time.monotonic() - found[0] > kept:

            def look() -> None:
                with suppress(Exception):  # a runtime that is gone, or a package that does not load: there is nothing to offer
                    self._kept[what] = time.monotonic(), find()

            looking = threading.Thread(target=look, name="openruntime-offers", daemon=True)
            looking.start()
            looking.join(PATIENCE)
        found = self._kept.get(what)
        return otherwise if found is None else found[1]


def assigned(code: str) -> list[str]:
    """Names that a cell sets at its top level; what can't be parsed yet is searched line by line."""
    try:
        return list(dict.fromkeys(_stored(ast.parse(code))))
    except SyntaxError:
        return list(dict.fromkeys(re.findall(r"^([^\W\d]\w*)\s*=(?!=)", code, re.MULTILINE)))


def _stored(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child.name
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        elif not isinstance(child, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            yield from _stored(child)
