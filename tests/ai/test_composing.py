from __future__ import annotations

from openruntime_jupyter.ai.workflows import Shared, system_message, tokens_of, user_message, with_turns
from openruntime_jupyter.schemas.ai import Message, Turn

NOW = "2026-01-01T12:00:00.000000Z"


def turns(number: int) -> list[Turn]:
    return [Turn(task_id=f"ai_task_{each}", prompt=f"question {each}", answer=f"answer {each}", timestamp=NOW) for each in range(number)]


def test_a_prompt_alone_is_sent_as_it_is() -> None:
    assert system_message(None, Shared()) == []
    assert user_message("  {x}\n", Shared()).content == "  {x}\n"


def test_instructions_wishes_and_figures_are_one_system_message() -> None:
    assert system_message("Be.", Shared(), "Style: short.", "")[0].model_dump() == {"role": "system", "content": "Be.\n\nStyle: short."}


def test_instructions_of_ones_own_take_the_agents_place_and_empty_ones_leave_it_away() -> None:
    assert system_message("Be.", Shared(system="Mine."))[0].content == "Mine."
    assert system_message("Be.", Shared(system="")) == []


def test_text_that_belongs_to_the_prompt_comes_before_it() -> None:
    assert user_message("Why?", Shared(context="a,b\n1,2")).content == "a,b\n1,2\n\nWhy?"


def test_a_conversation_goes_on_with_all_of_its_turns_where_there_is_room() -> None:
    user = Message(role="user", content="next")
    messages, left_out = with_turns([Message(role="system", content="Be.")], turns(2), user, 4096, None)
    assert [message.content for message in messages] == ["Be.", "question 0", "answer 0", "question 1", "answer 1", "next"]
    assert [message.role for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert left_out == 0


def test_the_oldest_turns_are_left_out_and_counted_where_the_model_has_no_room() -> None:
    user = Message(role="user", content="next")
    one = tokens_of("question 0", "answer 0")
    room = tokens_of("next") + 100 + 3 * one
    messages, left_out = with_turns([], turns(10), user, room, 100)
    assert [message.content for message in messages[:2]] == ["question 7", "answer 7"]
    assert (len(messages), left_out) == (7, 7)
    assert with_turns([], turns(10), user, room - 1, 100)[1] == 8


def test_a_prompt_that_fills_the_model_leaves_all_turns_out_and_stays_whole() -> None:
    user = Message(role="user", content="x" * 10_000)
    assert with_turns([], turns(3), user, 1000, None) == ([user], 3)


def test_text_of_other_scripts_is_not_taken_for_shorter_than_it_is() -> None:
    assert tokens_of("語" * 300) > 300
