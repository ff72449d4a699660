"""AI tasks: conversion of requests to tasks of the runtime, and of task records to responses. Used by both hosts."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic_core import to_json

from openruntime_jupyter.ai import chat_completions, conversations, system_data
from openruntime_jupyter.ai.agents import Agent, Agents
from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.ai.conversations import Conversations
from openruntime_jupyter.ai.insights.rewriting import Choose, ModelKind, Rewriter
from openruntime_jupyter.ai.model_information import model_information, resident_information
from openruntime_jupyter.ai.model_selection import Choice, Chooser
from openruntime_jupyter.ai.number_check import unverified_numbers_of
from openruntime_jupyter.ai.profiles import profiles_from
from openruntime_jupyter.ai.providers.remote import RemoteProvider
from openruntime_jupyter.ai.workflows import Shared, system_message, user_message, with_turns, workflow
from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError, StorageUnavailable
from openruntime_jupyter.runtime.large import LARGE
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.model_speeds import Speed, speeds
from openruntime_jupyter.schemas.ai import About, AiRequest, AiTask, Answer, Message, ModelInfo, ModelList
from openruntime_jupyter.schemas.chat_completions import ChatCompletionRequest, CompletionHeaders
from openruntime_jupyter.schemas.tasks import Task, TaskRequest

SAMPLING = ("temperature", "top_p", "max_tokens", "stop", "seed")
"""Parameters that are passed to all providers unchanged."""
LOCAL_ONLY = ("adapter", "keep_alive")
"""Parameters that remote providers do not have."""
SAME = ("task_id", "status", "execution_time", "error", "failure", "position", "waiting_for", "timestamp")
"""Fields that a response has in common with the task record."""


def host(settings: Settings, config: AiConfig | None = None, environ: Mapping[str, str] = os.environ) -> AiService:
    """Return the AI service with a runtime that is not started yet. `/health` reports invalid profiles, which prompts can't use."""
    config = config or AiConfig()
    profiles = profiles_from(config.profiles, environ, config.default_profile)
    provider = RemoteProvider(profiles, environ)
    settings = replace(settings, secret_variables=(*settings.secret_variables, *sorted(profiles.secret_variables)))
    runtime = Runtime(settings, inline={"chat": provider.run})
    runtime.problems += profiles.problems
    runtime.notices += profiles.skipped
    return AiService(runtime, config, provider)


class AiService:
    """AI interface of a runtime. All methods are called on the runtime's loop."""

    def __init__(self, runtime: Runtime, config: AiConfig, provider: RemoteProvider) -> None:
        self.runtime = runtime
        self.agents = Agents(config.agents_dir)
        self.conversations = Conversations(runtime.history)
        self._config = config
        self._provider = provider
        self._chooser = Chooser(provider.profiles, runtime.catalog, config.default_model)
        self._unfit: set[str] = set()
        """Models whose last rewritten insights were unusable."""
        self._background: set[asyncio.Task[None]] = set()

    async def submit(self, request: AiRequest, caller: Caller, idempotency_key: str | None = None) -> str:
        """Submit a task and return its id. An asynchronous task (`request.wait` false) is then stored on disk.

        A prompt is queued once the previous prompt of its conversation has ended. Raises the errors of `TaskSubmission.submit`,
        `Unavailable` with advice if no model is available, and `TaskConflict` if an asynchronous prompt waits for too long.
        """
        kind = workflow(request.workflow_type)
        parameters = kind.read(request.parameters)
        role = parameters.agent or kind.agent
        agent = None if role is None else self.agents.find(role)
        await self.runtime.catalog.refresh(parameters.model, caller)
        choice = self._chooser.choose(parameters.profile, parameters.model, caller)
        same = _fingerprint(request)
        if idempotency_key is not None:
            earlier = await self.runtime.submission.earlier(caller, idempotency_key, same)
            if earlier is not None:
                return earlier
        system = await self._system(parameters, agent)

        async def enqueue(messages: list[Message], left_out: int = 0) -> str:
            about = About(
                workflow=kind.name,
                agent=agent.info.role if agent is not None else None,
                conversation=parameters.conversation,
                left_out=left_out,
            )
            task = _task(request, parameters, choice, messages, about)
            large = len(request.prompt) > LARGE
            return await self.runtime.submission.submit(task, caller, idempotency_key, same, large=large)

        asked = [user_message(request.prompt, parameters), *(parameters.tool_messages or ())]
        if parameters.conversation is None:
            return await enqueue([*system, *asked])
        turn = await self.conversations.turn(caller.owner, parameters.conversation, None if request.wait else conversations.PATIENCE)
        try:
            turns = await self.conversations.turns(caller.owner, parameters.conversation)
            task_id = await enqueue(*with_turns(system, turns, asked, choice.context_length, parameters.max_tokens))
        except BaseException:
            turn.release()
            raise
        self._keep(self._release(turn, task_id))
        return task_id

    async def complete(
        self, request: ChatCompletionRequest, options: CompletionHeaders, caller: Caller, *, large: bool = False
    ) -> tuple[str, str]:
        """Submit a chat completion and return the id of its task and that of its model; see `submit` for the errors.

        A `large` request is validated on a thread.
        """
        await self.runtime.catalog.refresh(request.model, caller)
        choice = self._chooser.named(request.model, caller)
        task = chat_completions.task_of(request, options, choice)
        name = self._chooser.name_of(choice, caller)
        return await self.runtime.submission.submit(task, caller, large=large), name

    async def model_names(self, caller: Caller) -> dict[str, str]:
        """Return the models for chat completions: the providers by the id of the model."""
        await self.runtime.catalog.refresh()
        return self._chooser.names(caller)

    async def get(self, task_id: str, wait: float | None = 0.0) -> AiTask:
        """Return an AI task at its end (`wait` None), or after `wait` seconds. Raises `TaskNotFound`."""
        return answer_of(await (self.runtime.tasks.get(task_id) if wait == 0 else self.runtime.tasks.wait(task_id, wait)))

    async def ask(self, prompt: str, choice: Choice, caller: Caller) -> str | None:
        """Return a model's response to an internal prompt, or None. Cancelling the call cancels the task."""
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

    async def rewriters(self, caller: Caller) -> Choose:
        """Return the selection of a model to rewrite insights.

        By default it uses only models that `insights_wording` allows; remote ones always need it. A model whose last text was unusable
        is skipped by default, because each response would wait for it in vain.
        """
        await self.runtime.catalog.refresh()

        def choose(kind: ModelKind) -> Rewriter | None:
            choice = self._rewriting_choice(kind, caller)
            if choice is None:
                return None
            model = choice.model or choice.profile or "the default model"
            if kind == "resident" and model in self._unfit:
                return None
            return Rewriter(model, partial(self.ask, choice=choice, caller=caller), partial(self._learn, model))

        return choose

    def _rewriting_choice(self, kind: ModelKind, caller: Caller) -> Choice | None:
        allowed = self._config.insights_wording
        if kind == "remote":
            default = self._chooser.default
            return Choice(default, None, None) if allowed == "remote" and default is not None and caller.may_spend else None
        known = self.runtime.catalog.known()
        if kind == "resident":
            loaded = {report.name for report in self.runtime.engine.models.reports()} if allowed != "none" else set()
            return next((Choice(None, each.name, each.context_length) for each in known if each.name in loaded), None)
        try:
            choice = self._chooser.local(None, caller)
        except OpenRuntimeError:  # unavailable, or not permitted for this caller
            return None
        return choice if choice.model is not None or not known else Choice(None, known[0].name, choice.context_length)

    def _learn(self, model: str, fit: bool) -> None:
        (self._unfit.discard if fit else self._unfit.add)(model)

    async def models(self, caller: Caller) -> ModelList:
        """Return the local models (marking those in memory) and the remote providers."""
        catalog = self.runtime.catalog
        await catalog.refresh()
        speed = await self._speeds()
        on_cpu = all(device.type == "cpu" for device in self.runtime.devices())
        found = {
            source.name: model_information(source, speed.get(source.name), show_path=caller.may_execute, on_cpu=on_cpu)
            for source in catalog.known()
        }
        for host, models in self.runtime.engine.stored_models().items():
            for source in catalog.known():
                if any(map(source.is_copy, models)):
                    found[source.name].hosts.append(host)
        for report in self.runtime.engine.models.reports():
            found.setdefault(report.name, ModelInfo(name=report.name)).resident.append(resident_information(report))
        local = list(found.values())
        named = catalog.named(self._config.default_model)
        default = found[named.name] if named is not None else local[0] if local else None
        if default is not None and default.kind is not None:
            default.default = True
        return ModelList(models=local, profiles=self._provider.profiles.info())

    async def _speeds(self) -> dict[str, Speed]:
        try:
            return await self.runtime.history.look(speeds)
        except StorageUnavailable:  # `/health` reports it
            return {}

    async def close(self) -> None:
        """Cancel background work and close connections to providers. Called after the runtime has stopped."""
        left = tuple(self._background)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._provider.close()

    async def _system(self, parameters: Shared, agent: Agent | None) -> list[Message]:
        parts = parameters.requirements()
        period = parameters.metrics_period()
        if period is not None:
            parts.append(await system_data.metrics_text(self.runtime, period))
        if parameters.sends_settings():
            parts.append(system_data.settings_text(self.runtime.settings))
        return system_message(agent.instructions if agent is not None else None, parameters, *parts)

    async def _release(self, turn: asyncio.Lock, task_id: str) -> None:
        try:
            await self.runtime.tasks.wait(task_id, parameters=False)
        except OpenRuntimeError:
            pass  # the task was deleted, so the next prompt need not wait
        finally:
            turn.release()

    def _keep(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _task(request: AiRequest, parameters: Shared, choice: Choice, messages: list[Message], about: About) -> TaskRequest:
    """Return the task request: `chat` for a remote profile, else `generate`."""
    given = {name: value for name in (*SAMPLING, *LOCAL_ONLY) if (value := getattr(parameters, name)) is not None}
    given |= parameters.response_options()
    sent: dict[str, Any] = {"messages": [message.model_dump() for message in messages], "about": about.model_dump()}
    if choice.model is not None:
        sent["model"] = choice.model
    if choice.profile is None:
        sent |= given
    elif refused := next((name for name in LOCAL_ONLY if name in given), None):
        raise InvalidRequest.of(f"parameters.{refused}", f"applies only to local models, but {choice.profile!r} is a remote provider")
    else:
        sent |= {"profile": choice.profile, "parameters": given}
    return TaskRequest(
        operation="generate" if choice.profile is None else "chat",
        parameters=sent,
        device_preference=request.device_preference,
        priority=request.priority,
        timeout=request.timeout,
        retries=request.retries,
        name=request.name or about.workflow,
        origin=request.origin,
        notebook=request.notebook,
        wait=request.wait,
    )


def answer_of(task: Task) -> AiTask:
    """Return a task record in the format of `POST /ai/tasks`."""
    given = (task.parameters or {}).get("about") or {}
    output = task.result.output if task.result is not None else {}
    fields: dict[str, Any] = {name: output.get(name) for name in Answer.model_fields}
    return AiTask.model_construct(
        result=output.get("text"),
        model_used=output.get("model_used"),
        tokens_used=output.get("tokens_used"),
        workflow_type=given.get("workflow"),
        agent=given.get("agent"),
        conversation=given.get("conversation"),
        left_out=given.get("left_out", 0),
        unverified_numbers=unverified_numbers_of(task),
        answer=Answer.model_validate(fields) if task.result is not None else None,
        **{name: getattr(task, name) for name in SAME},
    )


def _fingerprint(request: AiRequest) -> str:
    """Return a hash of the request, independent of current metrics and conversation turns."""
    return hashlib.sha256(to_json(request.model_dump(exclude={"wait", "stream"}), inf_nan_mode="constants")).hexdigest()
