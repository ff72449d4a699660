from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from openruntime_jupyter.runtime.ids import make_id
from openruntime_jupyter.runtime.storage import conversations
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.ai import ConversationInfo, Turn
from openruntime_jupyter.schemas.tasks import Task, TaskResult, TaskState
from tests.runtime.history_support import make_task, moved, opened


def prompt(text: str, conversation: str | None = "x", owner: str | None = "me", **fields: Any) -> Task:
    parameters = {"messages": [{"role": "system", "content": "Be."}, {"role": "user", "content": text}]}
    if conversation is not None:
        parameters["about"] = {"conversation": conversation}  # type: ignore[assignment]
    return make_task(task_id=make_id("ai_task"), operation="chat", owner=owner, parameters=parameters, **fields)


def answered(task: Task, text: str, state: TaskState = TaskState.COMPLETED) -> Task:
    result = TaskResult(execution_time=0.1, device_used="remote", output={"text": text, "model_used": "m"})
    return moved(task, state, result=result if state is TaskState.COMPLETED else None)


async def turns(history: History, name: str = "x", owner: str = "me") -> list[Turn]:
    found = await history.look(partial(conversations.one, owner=owner, name=name))
    return found[1] if found else []


async def listed(history: History, owner: str | None = None) -> list[ConversationInfo]:
    return await history.look(partial(conversations.page, owner=owner, limit=100))


async def test_completed_prompt_adds_a_turn(history: History) -> None:
    task = prompt("Why?")
    await history.commit(task)
    await history.commit(moved(task, TaskState.RUNNING))
    assert await turns(history) == []
    await history.commit(answered(task, "Because."))
    (turn,) = await turns(history)
    assert (turn.task_id, turn.prompt, turn.answer, turn.model_used) == (task.task_id, "Why?", "Because.", "m")


async def test_prompt_recorded_only_when_completed_adds_a_turn(history: History) -> None:
    task = answered(prompt("Why?", wait=False).model_copy(update={"wait": True}), "Because.")
    history.write_behind(task.task_id, lambda: task)
    assert [turn.answer for turn in await turns(history)] == ["Because."]


async def test_only_completed_prompts_of_a_conversation_are_turns(history: History) -> None:
    for state in TaskState:
        if state.terminal and state is not TaskState.COMPLETED:
            await history.commit(answered(prompt("Why?"), "x", state))
    await history.commit(answered(prompt("Why?", conversation=None), "x"))
    await history.commit(moved(make_task(), TaskState.COMPLETED))
    assert await listed(history) == []


async def test_turns_are_ordered_by_submission(history: History) -> None:
    first, second = prompt("1", seconds=100.0), prompt("2", seconds=101.0)
    await history.commit(answered(second, "b"))
    await history.commit(answered(first, "a"))
    assert [turn.answer for turn in await turns(history)] == ["a", "b"]


async def test_conversations_are_separate_by_owner(history: History) -> None:
    for number, owner in enumerate(("me", "you", None, "me")):
        await history.commit(answered(prompt("?", owner=owner, seconds=100.0 + number), "x"))
    assert [(each.owner, each.turns) for each in await listed(history)] == [("me", 2), (None, 1), ("you", 1)]
    assert [each.turns for each in await listed(history, "")] == [1]
    assert await history.change(partial(conversations.delete, owner="me", name="x")) == 2
    assert [each.owner for each in await listed(history)] == [None, "you"]


async def test_turn_is_deleted_with_purged_task_but_kept_by_retention(tmp_path: Path) -> None:
    async with opened(tmp_path, retention_tasks=1) as history:
        old, new = (answered(prompt(text), text) for text in "ab")
        await history.commit(old)
        await history.commit(new)
        await history.sweep()
        assert await history.get(old.task_id) is None
        assert [turn.prompt for turn in await turns(history)] == ["a", "b"]
        await history.delete(new.task_id)
        assert [turn.prompt for turn in await turns(history)] == ["a"]


async def test_conversation_expires_with_its_last_turn(tmp_path: Path) -> None:
    async with opened(tmp_path, retention_days=1.0) as history:
        await history.commit(answered(prompt("?", "old", seconds=1000.0), "x"))
        await history.commit(answered(prompt("?", "both", seconds=1000.0), "x"))
        await history.commit(answered(prompt("?", "both"), "x"))
        await history.sweep()
        assert [(each.name, each.turns) for each in await listed(history)] == [("both", 2)]


async def test_invalid_utf8_is_replaced(history: History) -> None:
    await history.commit(answered(prompt("lone \udc00 half"), "fine"))
    await history.commit(answered(prompt("and", "y").model_copy(update={"parameters": {"messages": float("nan")}}), "x"))
    (turn,) = await turns(history)
    assert turn.answer == "fine"
    assert turn.prompt.startswith("lone ")
