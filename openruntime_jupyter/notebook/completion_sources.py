"""Completion candidates: names known to the kernel and its runtime.

Nothing here raises, starts a runtime or blocks for long, since completion must respond quickly.
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
"""Maximum wait for the runtime, in seconds. Later results are available at the next Tab."""
KEPT = 30.0
"""Lifetime of cached operations, devices and models, in seconds."""
NEWEST = 30
"""Maximum number of offered tasks."""
LIVE = (TaskState.PENDING, TaskState.RUNNING)

Answer = TypeVar("Answer")


class CompletionSources:
    """Cached names from the kernel and its runtime."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kept: dict[str, tuple[float, Any]] = {}

    def variables(self) -> list[str]:
        """Return the user's variables, without modules."""
        hidden = self._session.shell.user_ns_hidden
        return sorted(
            name
            for name, value in self._session.namespace.items()
            if not name.startswith("_") and name not in hidden and not isinstance(value, ModuleType)
        )

    def handles(self) -> list[str]:
        """Return the variables that hold a task handle."""
        return [name for name, value in self._session.namespace.items() if isinstance(value, TaskHandle)]

    def tasks(self, *states: TaskState) -> list[str]:
        """Return the variables that hold a handle, then the ids of the newest tasks in `states` (default: all states)."""
        wanted = [str(state) for state in states] or None
        found: list[Task] = self._ask(f"tasks {wanted}", lambda client: client.tasks(NEWEST, states=wanted).tasks, [], kept=0.0)
        return [*self.handles(), *(task.task_id for task in found)]

    def operations(self) -> dict[str, OperationInfo]:
        """Return the operations by name."""
        found: list[OperationInfo] = self._ask("operations", lambda client: client.operations(), [])
        return {entry.name: entry for entry in found or self._own_operations()}

    def parameters(self, operation: str) -> dict[str, Any]:
        """Return the schemas of an operation's parameters by name."""
        known = self.operations().get(operation)
        return {} if known is None else known.parameters_schema.get("properties", {})

    def devices(self) -> list[str]:
        """Return the ids of the devices."""
        found: list[Device] = self._ask("devices", lambda client: client.devices(), [])
        return [device.id for device in found]

    def resident(self) -> list[str]:
        """Return the names of the loaded models."""
        return [model.name for model in self._models() if model.resident]

    def models(self) -> list[str]:
        """Return the names of the local models."""
        return [model.name for model in self._models()]

    def profiles(self) -> list[str]:
        """Return the profiles of remote providers."""
        found = self._ask("models", lambda client: client.models(), None)
        return [] if found is None else [profile.name for profile in found.profiles]

    def agents(self) -> list[str]:
        """Return the roles of the agents."""
        found = self._ask("agents", lambda client: client.agents(), None)
        return [] if found is None else [agent.role for agent in found.agents]

    def sessions(self) -> list[str]:
        """Return the names of the sessions."""
        found = self._ask("sessions", lambda client: client.sessions(), None, kept=2.0)
        return [] if found is None else [each.name for each in found]

    def conversations(self) -> list[str]:
        """Return the names of the conversations."""
        found: list[ConversationInfo] = self._ask("conversations", lambda client: client.conversations(), [], kept=2.0)
        return [each.name for each in found]

    def _models(self) -> list[Any]:
        found = self._ask("models", lambda client: client.models(), None, kept=2.0)
        return [] if found is None else found.models

    def _own_operations(self) -> list[OperationInfo]:
        """Return the operations of an embedded runtime, without starting it."""
        from openruntime_jupyter.operations.registry import describe_operations

        return self._cached("own operations", describe_operations, [])

    def _ask(self, what: str, query: Callable[[Client], Answer], default: Answer, kept: float = KEPT) -> Answer:
        def ask() -> Answer:
            client = self._session.client
            return default if getattr(client.backend, "started", True) is False else query(client)

        return self._cached(what, ask, default, kept)

    def _cached(self, what: str, find: Callable[[], Answer], default: Answer, kept: float = KEPT) -> Answer:
        found = self._kept.get(what)
        if found is None or not found[1] or time.monotonic() - found[0] > kept:

            def refresh() -> None:
                with suppress(Exception):  # an unreachable runtime or a package that cannot be imported has no candidates
                    self._kept[what] = time.monotonic(), find()

            thread = threading.Thread(target=refresh, name="openruntime-offers", daemon=True)
            thread.start()
            thread.join(PATIENCE)
        found = self._kept.get(what)
        return default if found is None else found[1]


def assigned(code: str) -> list[str]:
    """Return the names that a cell assigns at top level. Code with syntax errors is searched line by line."""
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
