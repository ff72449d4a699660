"""Python functions as tools of a model: their definitions, their calls, and the rounds of a prompt until its response."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import from_json, to_json

from openruntime_jupyter.client.ai_response import Reply, ToolRun
from openruntime_jupyter.client.object_schema import reason_of
from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError
from openruntime_jupyter.schemas.ai import ToolCall
from openruntime_jupyter.schemas.tasks import Task

Tools = Iterable[Callable[..., Any] | dict[str, Any]]
"""Functions, or definitions in OpenAI's form whose calls the caller runs."""

LONGEST_RESULT = 100_000
"""Maximum characters of a result. Longer results are truncated, because they would fill the context of the model."""


class FunctionTool:
    """Function that a model may call. Its name, docstring and signature become the definition. pydantic validates the arguments.

    Raises `InvalidRequest` for a function without a usable name or signature.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name: str = getattr(function, "__name__", "")
        self.is_coroutine = inspect.iscoroutinefunction(function)
        if not self.name.isidentifier():
            raise InvalidRequest.of("tools", f"{function!r} has no name that a model can call: define a function with def")
        try:
            self._call: TypeAdapter[Any] = TypeAdapter(function)  # type: ignore[arg-type] # pydantic accepts functions
            self._parameters = self._call.json_schema()
        except (PydanticUserError, TypeError) as problem:
            raise InvalidRequest.of("tools", f"{self.name} can't be a tool ({str(problem).splitlines()[0]})") from None
        if self._parameters.get("type") != "object":
            raise InvalidRequest.of("tools", f"{self.name} can't be a tool: it has positional-only arguments")
        self._description = inspect.getdoc(function)

    @property
    def definition(self) -> dict[str, Any]:
        """Return the definition in OpenAI's form."""
        described = {"description": self._description} if self._description else {}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": self._parameters}}

    def call(self, arguments: str) -> Any:
        """Call the function with arguments as JSON and return its value, or a coroutine. Raises pydantic's and the function's errors."""
        return self._call.validate_json(arguments)


@dataclass
class Rounds:
    """Rounds of tool calls of a prompt, at most `most`. `send` submits the prompt again with the messages of the calls so far."""

    tools: dict[str, FunctionTool]
    send: Callable[[list[dict[str, Any]]], Task]
    most: int
    others: frozenset[str] = frozenset()
    """Names of tools whose calls the caller runs."""
    runs: list[ToolRun] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    recorded: str | None = None
    """Id of the task whose calls were recorded last. They are not run again if a submission fails and is repeated."""

    def continues(self, reply: Reply) -> bool:
        """Return whether the functions run the calls of a reply. Calls of the caller's own tools end the rounds.

        Raises `OpenRuntimeError` for calls that were truncated: without their arguments, functions would run with default values.
        """
        if not reply.tool_calls or any(call.function.name in self.others for call in reply.tool_calls):
            return False
        if reply.finish_reason == "length":
            raise OpenRuntimeError("The response was truncated at max_tokens before its tool calls were complete: raise max_tokens")
        return True

    def require_functions(self) -> None:
        """Raise `InvalidRequest` for coroutine functions, which need an event loop."""
        for tool in self.tools.values():
            if tool.is_coroutine:
                raise InvalidRequest.of("tools", f"{tool.name} is a coroutine function: use it with client.aio.ask")

    def run(self, call: ToolCall) -> ToolRun:
        """Run a call. An error of the call becomes its result, so that the model can react."""
        try:
            return _run_of(call, self._tool(call).call(call.function.arguments))
        except Exception as problem:
            return _failed(call, problem)

    async def run_async(self, call: ToolCall, in_thread: Callable[..., Any]) -> ToolRun:
        """Run a call: a coroutine function on the event loop, any other one by `in_thread(function, argument)`."""
        try:
            tool = self._tool(call)
            if tool.is_coroutine:
                return _run_of(call, await tool.call(call.function.arguments))
        except Exception as problem:
            return _failed(call, problem)
        run: ToolRun = await in_thread(self.run, call)
        return run

    def record(self, reply: Reply, runs: Sequence[ToolRun]) -> None:
        """Store the results of a reply's calls for the next round."""
        self.recorded = reply.task_id
        self.runs.extend(runs)
        calls = [call.model_dump() for call in reply.tool_calls]
        said = {"role": "assistant", "content": reply.text or None, "tool_calls": calls}
        self.messages.append({**said, "reasoning": reply.reasoning} if reply.reasoning else said)
        for call, run in zip(reply.tool_calls, runs, strict=True):
            self.messages.append({"role": "tool", "tool_call_id": call.id, "content": run.result})

    def submit(self) -> Task:
        """Submit the prompt with the results so far and return the new task. Raises `OpenRuntimeError` after `most` rounds."""
        rounds = sum(message["role"] == "assistant" for message in self.messages)
        if rounds > self.most:
            raise OpenRuntimeError(f"The model called tools in {rounds} rounds without a response: raise max_rounds, or change the tools")
        return self.send(self.messages)

    def _tool(self, call: ToolCall) -> FunctionTool:
        tool = self.tools.get(call.function.name)
        if tool is None:
            raise LookupError(f"unknown tool {call.function.name!r}; available: {', '.join(self.tools)}")
        return tool


def definitions_of(tools: Tools) -> tuple[list[dict[str, Any]], dict[str, FunctionTool]]:
    """Return the definitions of all tools, and the functions by name."""
    definitions: list[dict[str, Any]] = []
    functions: dict[str, FunctionTool] = {}
    for tool in tools:
        if isinstance(tool, dict):
            definitions.append(tool)
        else:
            function = FunctionTool(tool)
            functions[function.name] = function
            definitions.append(function.definition)
    return definitions, functions


def _run_of(call: ToolCall, value: Any) -> ToolRun:
    result = value if isinstance(value, str) else to_json(value, serialize_unknown=True, inf_nan_mode="strings").decode()
    return ToolRun(call.function.name, _arguments(call), result[:LONGEST_RESULT])


def _failed(call: ToolCall, problem: Exception) -> ToolRun:
    reason = f"invalid arguments: {reason_of(problem)}" if isinstance(problem, ValidationError) else f"{type(problem).__name__}: {problem}"
    result = f"Error: {reason}"
    return ToolRun(call.function.name, _arguments(call), result[:LONGEST_RESULT], failed=True)


def _arguments(call: ToolCall) -> Any:
    try:
        return from_json(call.function.arguments)
    except ValueError:
        return call.function.arguments
