"""`%%openruntime ai` and `%openruntime ai` in a real kernel, with its own runtime and with a server's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.ai.provider_server import ProviderServer
from tests.notebook.conftest import CODE, Cell, Kernel, error_of
from tests.support import wait_until


def said(cell: Cell) -> str:
    """Return the answer's display as Markdown."""
    return next(text for text in cell.shown("text/markdown") if text)


def asked(provider: ProviderServer) -> list[dict[str, str]]:
    """Return the messages of the newest request."""
    messages: list[dict[str, str]] = provider.requests[-1].json["messages"]
    return messages


def test_answer_is_one_markdown_display_with_statistics(kernel: Kernel) -> None:
    cell = kernel.run("%%openruntime ai\nhello")
    assert cell.status == "ok", cell.error
    assert len(cell.outputs) == 1, "only the display, without a repeated value"
    line, _, text = said(cell).partition("\n\n")
    assert text == "You said: hello"
    assert "completed in " in line
    assert "5 tokens" in line
    assert "tiny of env" in line
    assert "ai_task_" in line
    plain = cell.shown()[0]
    assert plain.startswith("✓ completed in ")
    assert plain.endswith("You said: hello")


def test_analysis_lists_numbers_missing_from_its_data(server_kernel: Kernel) -> None:
    cell = server_kernel.run("%%openruntime ai system_analysis\nmake up a figure")
    assert said(cell).endswith("98765.4")
    assert len(cell.outputs) == 2
    assert cell.shown()[1] == "Numbers that are not in the data given to the model: 98765.4. It computed or invented them."
    known = server_kernel.run("%openruntime ai system_analysis Are 37 percent much?")
    assert len(known.outputs) == 1, "the number is in the prompt"
    assert len(server_kernel.run("%%openruntime ai\nmake up a figure").outputs) == 1, "only analyses are checked"


def test_answer_streams_in_place(kernel: Kernel) -> None:
    seen: list[str] = []
    cell = kernel.run(
        "%%openruntime ai\na slow one", lambda cell: bool(cell.outputs and seen.append(said(cell))) or "You said: " in said_or(cell)
    )
    assert [text for text in seen if text.rstrip().endswith("You said:")], "the answer was displayed in parts"
    assert said(cell).endswith("You said: a slow one")
    assert len(cell.outputs) == 1


def said_or(cell: Cell) -> str:
    return said(cell) if cell.outputs else ""


def test_answer_is_stored_and_returned(server_kernel: Kernel) -> None:
    server_kernel.run("%%openruntime ai code_generation --out found --as job --max-tokens 50 --language python\ngive code")
    assert server_kernel.value("found.text") == repr(CODE)
    assert server_kernel.value("found.code, found.code_blocks[0].language, found.model, found.usage.tokens_used, found.provider") == (
        "('x = 6 * 7', 'python', 'tiny', 15, 'env')"
    )
    assert server_kernel.value("found.task_id == job.id == _openruntime.id, str(job.status)") == "(True, 'completed')"
    server_kernel.run("%%openruntime ai\nhello")
    assert server_kernel.value("_.text") == "'You said: hello'"
    shown = server_kernel.run("found")
    assert shown.outputs[-1]["data"]["text/markdown"] == CODE


def test_line_magic_answer_can_be_assigned(server_kernel: Kernel) -> None:
    cell = server_kernel.run('answer = %openruntime ai "what\'s this?" --temperature 0')
    assert cell.status == "ok", cell.error
    assert server_kernel.value("answer.text") == repr("You said: what's this?")
    assert said(server_kernel.run("%openruntime ai without quotes")).endswith("You said: without quotes")
    assert "--conversation" in server_kernel.run("%openruntime ai").value
    assert "--conversation" in server_kernel.run("%%openruntime ai --help\nx").value


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("sum {a} and {text}", "sum 3 and {a} is not looked at again"),
        ("{'a': {nothing}} {{a}} {a.b} {} {0} {a!r} ${a}", "{'a': {nothing}} {{a}} {a.b} {} {0} {a!r} $3"),
        ("{In} {get_ipython} {print} %percent $dollar \\n", "{In} {get_ipython} {print} %percent $dollar \\n"),
    ],
)
def test_existing_names_are_replaced_once(server_kernel: Kernel, provider: ProviderServer, prompt: str, sent: str) -> None:
    server_kernel.run("a, text = 3, '{a} is not looked at again'")
    assert server_kernel.run(f"%%openruntime ai\n{prompt}").status == "ok"
    assert asked(provider)[-1]["content"] == sent
    server_kernel.run(f"%%openruntime ai --raw\n{prompt}")
    assert asked(provider)[-1]["content"] == prompt


def test_with_describes_variables_and_show_prompt_shows_request(server_kernel: Kernel, provider: ProviderServer) -> None:
    server_kernel.run("import numpy\nnumbers, grid = [1, 2, 3], numpy.ones((4, 5))")
    cell = server_kernel.run("%%openruntime ai --with numbers, grid --show-prompt --system 'be short' --temperature 0.5\nhow many?")
    assert cell.status == "ok", cell.error
    system, user = asked(provider)
    assert system == {"role": "system", "content": "be short"}
    assert user["content"].startswith("Variable `numbers`: list of 3\n[1, 2, 3]")
    assert "Variable `grid`: numpy.ndarray of shape (4, 5) and dtype float64" in user["content"]
    assert user["content"].endswith("\n\nhow many?")
    shown = cell.shown()[0]
    assert "temperature=0.5" in shown
    assert f"[user]\n{user['content']}" in shown
    assert "[system]\nbe short" in shown


def test_conversations_continue_and_are_listed_shown_and_deleted(server_kernel: Kernel, provider: ProviderServer) -> None:
    server_kernel.run("%%openruntime ai --conversation talk\none")
    server_kernel.run("%%openruntime ai --conversation talk\ntwo")
    assert [each["content"] for each in asked(provider)] == ["one", "You said: one", "two"]
    assert "talk" in server_kernel.run("%openruntime conversations").value
    shown = server_kernel.run("%openruntime conversation talk")
    assert "**two**\n\nYou said: two" in shown.outputs[-1]["data"]["text/markdown"]
    assert "erased" in server_kernel.run("%openruntime forget talk").value
    assert server_kernel.run("%openruntime conversation talk").error["ename"] == "ConversationNotFound"


def test_insert_puts_code_in_next_cell_without_running(server_kernel: Kernel) -> None:
    server_kernel.run("x = None")
    cell = server_kernel.run("%%openruntime ai --insert\ngive code")
    assert cell.error["payload"] == [{"source": "set_next_input", "text": "x = 6 * 7", "replace": False}]
    assert server_kernel.value("repr(x)") == "'None'"
    assert "not run" in cell.shown()[1]
    without = server_kernel.run("%%openruntime ai --insert\nhello")
    assert without.error["payload"] == []
    assert "nothing was inserted" in without.shown()[1]


def test_interrupt_closes_stream_and_keeps_text(kernel: Kernel) -> None:
    pressed: list[float] = []

    def press() -> None:
        pressed.append(time.monotonic())
        kernel.interrupt()

    cell = kernel.run("%%openruntime ai --as held\nhold it", lambda cell: "You said: " in said_or(cell), press)
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert "was cancelled" in error_of(cell)
    assert "cancelled after" in said(cell)
    assert "You said:" in said(cell)
    assert kernel.value("str(held.status)") == "'cancelled'"
    assert time.monotonic() - pressed[0] < 20, "the provider waits up to 30 s for the end of the stream"


def test_interrupt_of_wait_keeps_background_prompt_running(kernel: Kernel) -> None:
    started = kernel.run("%%openruntime ai --bg --as job\nhold it")
    assert "%openruntime wait ai_task_" in started.line
    watched = kernel.run("%openruntime wait job", lambda cell: "You said: " in said_or(cell), kernel.interrupt)
    assert "continues to run" in error_of(watched)
    assert kernel.value("str(job.status)") == "'running'"
    kernel.run("%openruntime cancel job")
    kernel.run("%%openruntime ai --bg --as quick\nhello")
    assert kernel.value("quick.result().text, ''.join(quick)") == "('You said: hello', 'You said: hello')"
    assert said(kernel.run("%openruntime output quick")) == "You said: hello"
    assert kernel.run("%openruntime result quick").outputs[-1]["data"]["text/markdown"] == "You said: hello"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("--bg --as asked", "completed in "),
        ("--map rows --out both --bg", "2 of 2 rows"),
    ],
)
def test_notify_for_prompts(server_kernel: Kernel, line: str, what: str) -> None:
    server_kernel.run("rows = ['one', 'two']")
    cell = server_kernel.run(f"%%openruntime ai {line} --notify\nhello {{item}}")
    assert cell.status == "ok", cell.error
    assert "ort-notify-" in cell.shown("text/html")[0]
    server_kernel.shows_later(cell, what, "text/html")


def test_provider_error_is_one_line(server_kernel: Kernel) -> None:
    cell = server_kernel.run("%%openruntime ai --out nothing\nfail")
    assert cell.error["ename"] == "TaskFailed"
    assert "no such thing" in cell.shown()[-1]
    assert len(error_of(cell).splitlines()) == 1
    assert "failed" in said(cell)
    assert server_kernel.value("'nothing' in globals()") == "False"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("--temperature 9", "--temperature: "),
        ("--profile nobody", "--profile: unknown profile 'nobody'"),
        ("--with nothing_like_it", "nothing_like_it"),
        ("--target code", "target"),
    ],
)
def test_invalid_option_is_rejected_before_sending(server_kernel: Kernel, provider: ProviderServer, line: str, what: str) -> None:
    before = len(provider.requests)
    cell = server_kernel.run(f"%%openruntime ai {line}\nhello")
    assert cell.status == "error"
    assert what in error_of(cell)
    assert len(error_of(cell).splitlines()) == 1
    assert len(provider.requests) == before


def test_local_model_reports_tokens(server_kernel: Kernel) -> None:
    cell = server_kernel.run("%%openruntime ai --profile local --model tiny --max-tokens 12 --seed 1 --out made\nhello")
    assert cell.status == "ok", cell.error
    assert "12 tokens" in said(cell)
    assert "tokens/s" in said(cell)
    assert "truncated at max_tokens" in said(cell)
    assert server_kernel.value("made.provider, made.finish_reason, made.usage.completion_tokens") == "('local', 'length', 12)"


def test_config_and_agents_show_no_keys(server_kernel: Kernel) -> None:
    config = server_kernel.run("%openruntime config")
    assert "any of the profile env" in config.value
    assert "tiny" in config.value
    assert "DEVELOPER" in server_kernel.run("%openruntime agents").value
    server_kernel.run("roles = %openruntime agents")
    assert server_kernel.value("'DEVELOPER' in [agent.role for agent in roles]") == "True"


def test_fix_suggests_code_without_running_it(server_kernel: Kernel, provider: ProviderServer) -> None:
    server_kernel.run("x = None\nsecret = 'not {sent}'")
    server_kernel.run("def ratio(a):\n    return a / 0\n\nratio(1)  # {secret}")
    server_kernel.run("print('in between')")
    cell = server_kernel.run("%openruntime fix 'and say why'")
    assert cell.status == "ok", cell.error
    assert "the failed cell (4 lines)" in cell.shown()[0]
    content = asked(provider)[-1]["content"]
    assert "ratio(1)  # {secret}" in content, "source code is not expanded"
    assert "ZeroDivisionError: division by zero" in content
    assert "interactiveshell" not in content
    assert content.endswith("and say why")
    assert cell.error["payload"][0]["text"] == "x = 6 * 7"
    assert server_kernel.value("repr(x)") == "'None'"
    server_kernel.run("for broken")
    server_kernel.run("%openruntime fix")
    assert "SyntaxError" in asked(provider)[-1]["content"]
    server_kernel.run("%%openruntime\nraise ValueError('in a worker')")
    server_kernel.run("%openruntime fix")
    content = asked(provider)[-1]["content"]
    assert "ValueError: in a worker" in content
    assert "%%openruntime\nraise" in content


def test_waiting_prompt_shows_queue_position(server_kernel: Kernel, tmp_path: Path) -> None:
    enough = tmp_path / "enough"
    nap = f"import os, time\nprint(1, flush=True)\nwhile not os.path.exists({str(enough)!r}):\n    time.sleep(0.05)"
    server_kernel.run("client = __import__('openruntime_jupyter').connect()")
    wait_until(lambda: server_kernel.value("len(client.devices())") != "0", 60, "a runtime's first worker reports its device")
    server_kernel.run(f"naps = [client.submit_code({nap!r}) for _ in range(client.devices()[0].slots)]")
    wait_until(lambda: server_kernel.value("all(each.output.stdout for each in naps)") == "True", 60, "every slot is taken")
    waiting = "%%openruntime ai --profile local --model tiny --max-tokens 2\nhello"
    cell = server_kernel.run(waiting, lambda cell: "next in line" in said_or(cell), enough.touch)
    assert cell.status == "ok", cell.error
    assert "2 tokens" in said(cell)


def test_tab_offers_workflows_options_and_their_values(server_kernel: Kernel) -> None:
    assert server_kernel.complete("%%openruntime ai code|\nhello") == ["%%openruntime ai code_generation"]
    assert server_kernel.complete("%%openruntime ai --temp|\nhello") == ["%%openruntime ai --temperature"]
    assert server_kernel.complete("%openruntime ai --agent DEV|") == ["%openruntime ai --agent DEVELOPER"]
    assert server_kernel.complete("%openruntime fix --profile e|") == ["%openruntime fix --profile env"]
    assert server_kernel.complete("%%openruntime ai --model t|\nhello") == ["%%openruntime ai --model tiny"]
    assert server_kernel.complete("%%openruntime ai --target c|\nhello") == ["%%openruntime ai --target code"]
    server_kernel.run("some_rows, some_numbers = [], []")
    assert server_kernel.complete("%%openruntime ai --with some_rows,some_n|\nhello") == ["%%openruntime ai --with some_rows,some_numbers"]
    server_kernel.run("%%openruntime ai --conversation chatting\nhello")
    assert server_kernel.complete("%openruntime forget chat|") == ["%openruntime forget chatting"]
    assert "%openruntime fix" in server_kernel.complete("%openruntime f|")
