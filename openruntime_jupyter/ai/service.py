"""AI tasks: from what is asked to a task of the runtime, and from its record to the answer. Both hosts of a runtime have one of these."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from pydantic_core import to_json

from openruntime_jupyter.ai import conversations, system_data
from openruntime_jupyter.ai.agents import Agent, Agents
from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.ai.conversations import Conversations
from openruntime_jupyter.ai.insights.rewriting import Choose
from openruntime_jupyter.ai.messages import system_message, user_message, with_turns
from openruntime_jupyter.ai.model_selection import Choice, Chooser, RemoteProfiles
from openruntime_jupyter.ai.number_check import untold_of
from openruntime_jupyter.ai.rewriters import worders
from openruntime_jupyter.ai.workflows import Shared, SystemAnalysis, Told, Workflow, workflow
from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.schemas.ai import About, AiRequest, AiTask, Answer, Message, ModelInfo, ModelList, ResidentInfo
from openruntime_jupyter.schemas.tasks import Task, TaskRequest

SAMPLING = ("temperature", "top_p", "max_tokens", "stop", "seed")
"""Parameters that every provider takes, as they are."""


class AiService:
    """What `runtime` can do with prompts. Every method is called on the runtime's loop."""

    def __init__(
        self, runtime: Runtime, config: AiConfig, remote: RemoteProfiles, hang_up: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.runtime = runtime
        self.agents = Agents(config.agents_dir)
        self.conversations = Conversations(runtime.history)
        self.chooser = Chooser(remote, runtime.catalog, config.default_model)
        self.config = config
        self.unfit: set[str] = set()
        """Models whose words for insights could not be used when they were last asked for."""
        self._remote = remote
        self._hang_up = hang_up
        self._background: set[asyncio.Task[None]] = set()

    async def submit(self, request: AiRequest, caller: Caller, idempotency_key: str | None = None) -> str:
        """Queue a task and return its id; an asynchronous one (`request.wait` false) is on disk by then.

        A prompt of a conversation is queued once the one before it has ended. Raises what `Runtime.submit` raises; `Unavailable` with
        what to do where nobody answers prompts; `TaskConflict` where an asynchronous one would have to wait for its conversation.
        """
        kind = workflow(request.workflow_type)
        parameters = kind.read(request.parameters)
        agent = self._agent(kind, parameters)
        choice = self.chooser.choose(parameters.profile, parameters.model, caller)
        same = _fingerprint(request)
        if idempotency_key is not None:
            earlier = await self.runtime.submission.earlier(caller, idempotency_key, same)
            if earlier is not None:
                return earlier
        system = await self._system(kind, parameters, agent)

        async def enqueue(messages: list[Message], left_out: int = 0) -> str:
            about = About(
                workflow=kind.name,
                agent=agent.info.role if agent is not None else None,
                conversation=parameters.conversation,
                left_out=left_out,
            )
            task = _task(request, parameters, choice, messages, about)
            return await self.runtime.submission.submit(task, caller, idempotency_key, same)

        user = user_message(request.prompt, parameters)
        if parameters.conversation is None:
            return await enqueue([*system, user])
        turn = await self.conversations.turn(caller.owner, parameters.conversation, None if request.wait else conversations.PATIENCE)
        try:
            said = await self.conversations.turns(caller.owner, parameters.conversation)
            task_id = await enqueue(*with_turns(system, said, user, choice.context_length, parameters.max_tokens))
        except BaseException:
            turn.release()
            raise
        self._keep(self._release(turn, task_id))
        return task_id

    async def get(self, task_id: str, wait: float | None = 0.0) -> AiTask:
        """An AI task at its end (`wait` None), or as it is after `wait` seconds; raises `TaskNotFound`."""
        return answer_of(await (self.runtime.tasks.get(task_id) if wait == 0 else self.runtime.tasks.wait(task_id, wait)))

    async def ask(self, prompt: str, choice: Choice, caller: Caller) -> str | None:
        """A model's answer to a prompt of the runtime's own; None where it gave none. The task ends with who waits for it."""
        request = AiRequest(workflow_type="model_inference", prompt=prompt, parameters={})
        about = About(workflow="model_inference")
        task = _task(request, Shared(), choice, [Message(role="user", content=prompt)], about)
        task_id = await self.runtime.submission.submit(task, caller)
        try:
            ended = await self.runtime.tasks.wait(task_id)
        except asyncio.CancelledError:
            self._keep(self.runtime.cancel(task_id))
            raise
        return answer_of(ended).result

    def worders(self, caller: Caller) -> Choose:
        """The models that may word insights for this caller."""
        return worders(self, caller)

    def models(self, caller: Caller) -> ModelList:
        """The models of this machine, those in memory marked, and the remote providers."""
        found = {
            source.name: ModelInfo(
                name=source.name,
                kind=source.kind,
                path=source.path if caller.may_execute else None,
                bytes=source.bytes,
                context_length=source.context_length,
            )
            for source in self.runtime.catalog.known()
        }
        for report in self.runtime.engine.models():
            info = found.setdefault(report.name, ModelInfo(name=report.name))
            info.resident.append(
                ResidentInfo(
                    lane=report.lane,
                    state=report.state,
                    resident_bytes=report.resident,
                    idle_seconds=report.idle_seconds,
                    keep_alive_seconds=report.keep_alive,
                    task_id=report.task_id,
                )
            )
        local = list(found.values())
        named = self.runtime.catalog.named(self.config.default_model)
        default = found[named.name] if named is not None else local[0] if local else None
        if default is not None and default.kind is not None:
            default.default = True
        return ModelList(models=local, profiles=self._remote.info())

    async def close(self) -> None:
        """End what still waits, and hang up on remote providers; after the runtime's stop."""
        left = tuple(self._background)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if self._hang_up is not None:
            await self._hang_up()

    def _agent(self, kind: Workflow, parameters: Shared) -> Agent | None:
        role = parameters.agent or kind.agent
        return None if role is None else self.agents.find(role)

    async def _system(self, kind: Workflow, parameters: Shared, agent: Agent | None) -> list[Message]:
        parts = kind.wishes(parameters)
        told = kind.told(parameters)
        if told is not Told.NOTHING:
            timeframe = getattr(parameters, "timeframe", SystemAnalysis().timeframe)
            parts.append(await system_data.figures(self.runtime, timeframe))
        if told is Told.SETTINGS:
            parts.append(system_data.settings_told(self.runtime.settings))
        return system_message(agent.instructions if agent is not None else None, parameters, *parts)

    async def _release(self, turn: asyncio.Lock, task_id: str) -> None:
        try:
            await self.runtime.tasks.wait(task_id, parameters=False)
        except OpenRuntimeError:
            pass  # it is gone, and whoever comes next need not wait for it
        finally:
            turn.release()

    def _keep(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _task(request: AiRequest, parameters: Shared, choice: Choice, messages: list[Message], about: About) -> TaskRequest:
    """The task of the runtime that answers it: `chat` where a profile does, else `generate`."""
    given = {name: value for name in SAMPLING if (value := getattr(parameters, name)) is not None}
    sent: dict[str, Any] = {"messages": [message.model_dump() for message in messages], "about": about.model_dump()}
    if choice.model is not None:
        sent["model"] = choice.model
    if choice.profile is not None:
        if parameters.keep_alive is not None:
            raise InvalidRequest.of("parameters.keep_alive", f"is for models of this machine, and {choice.profile!r} is a remote provider")
        sent |= {"profile": choice.profile, "parameters": given}
    else:
        sent |= given
        if parameters.keep_alive is not None:
            sent["keep_alive"] = parameters.keep_alive
    return TaskRequest(
        operation="generate" if choice.profile is None else "chat",
        parameters=sent,
        device_preference=request.device_preference,
        priority=request.priority,
        timeout=request.timeout,
        retries=request.retries,
        name=request.name or about.workflow,
        origin=request.origin,
        wait=request.wait,
    )


def answer_of(task: Task) -> AiTask:
    """A task's record as `POST /ai/tasks` tells it."""
    given = (task.parameters or {}).get("about") or {}
    output = task.result.output if task.result is not None else None
    told: dict[str, Any] = {name: output.get(name) for name in Answer.model_fields} if output is not None else {}
    answer = Answer.model_construct(**told) if told else None
    return AiTask.model_construct(
        task_id=task.task_id,
        status=task.status,
        result=answer.text if answer is not None else None,
        model_used=answer.model_used if answer is not None else None,
        tokens_used=answer.tokens_used if answer is not None else None,
        execution_time=task.execution_time,
        workflow_type=given.get("workflow"),
        agent=given.get("agent"),
        conversation=given.get("conversation"),
        left_out=given.get("left_out", 0),
        untold=untold_of(task),
        answer=answer,
        error=task.error,
        failure=task.failure,
        position=task.position,
        waiting_for=task.waiting_for,
        timestamp=task.timestamp,
    )


def _fingerprint(request: AiRequest) -> str:
    """What makes two requests the same: what was asked, not what the figures or the conversation were by then."""
    return hashlib.sha256(to_json(request.model_dump(exclude={"wait", "stream"}), inf_nan_mode="constants")).hexdigest()
