"""Tool calls, reasoning, JSON schemas, log-probabilities and cut characters in both engines, in one process as in a worker."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from openruntime_jupyter.errors import NotAllowed
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.local_models.tool_calls import ToolCallFilter
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.submission import Caller
from openruntime_jupyter.schemas.ai import Answer
from openruntime_jupyter.schemas.values import ToolCallPiece
from tests.adapters import write_adapters
from tests.gguf_twin import write_twin
from tests.scripted_model import TOOL_TEMPLATE, make_scripted_model
from tests.tiny_model import STRICT_TEMPLATE, make_tiny_model

ANSWER = """
import json, sys
from pathlib import Path
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.registry import operation
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.submission import Caller

generate, contexts = operation("generate"), {}
for line in sys.stdin:
    (path, parameters), streamed, reasoned, called = json.loads(line), [], [], []
    key = path, parameters.get("adapter")
    try:
        if key not in contexts:
            source = ModelCatalog(Settings(data_dir=Path("/nowhere"))).resolve(path, Caller("me"), key[1])
            contexts[key] = TaskContext(model=source, threads=1)
        context = contexts[key]
        context.token, context.reasoning, context.tool_call = streamed.append, reasoned.append, called.append
        answer = generate.run(generate.validate({"messages": [{"role": "user", "content": "go"}], **parameters}), context)
        assert "".join(streamed) == answer["text"], "the streamed text differs"
        assert "".join(reasoned) == (answer["reasoning"] or ""), "the streamed reasoning differs"
        begun = [piece for piece in called if piece.name is not None]
        whole = [(each.id, each.name, "".join(piece.arguments for piece in called if piece.index == each.index)) for each in begun]
        calls = [(call["id"], *(call["function"][name] for name in ("name", "arguments"))) for call in answer["tool_calls"] or ()]
        assert whole == calls, f"the streamed calls differ: {called}"
        answer["provider"] = json.dumps([len(reasoned), [piece.index for piece in called]])
    except OpenRuntimeError as problem:
        answer = str(problem)
    print(json.dumps(answer), flush=True)
"""
"""Program that answers prompts, one a line: a model and parameters. It prints the fields of an `Answer`, or the error."""

Ask = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def answers() -> Iterator[Ask]:
    """Return a function for the answer to each prompt, a model and parameters. All are generated in one process, as in a worker."""
    with subprocess.Popen([sys.executable, "-c", ANSWER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, told = process.stdin, process.stdout

        def answer(path: Path, parameters: dict[str, Any]) -> Any:
            asked.write(f"{json.dumps([str(path), parameters])}\n")
            asked.flush()
            found = json.loads(told.readline())
            return found if isinstance(found, str) else Answer.model_validate(found)

        yield lambda *prompts: [answer(*each) for each in prompts]
        asked.close()


def in_both(folder: Path, script: str, template: str = TOOL_TEMPLATE) -> list[Path]:
    """Return a model for each engine that writes `script`."""
    made = make_scripted_model(folder / "scripted", script, template)
    return [made, write_twin(made, folder / "scripted.gguf")]


def streamed(answer: Answer) -> tuple[int, list[int]]:
    """Return the number of pieces of the reasoning, and the index of the call of each piece of a call, which the program has added."""
    reasoned, called = json.loads(answer.provider)
    return reasoned, called


def function(name: str, **properties: str) -> dict[str, Any]:
    described = {each: {"type": kind} for each, kind in properties.items()}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": described}}}


TOOLS = [function("weather", city="string"), function("add", a="integer", b="integer")]
TWO_CALLS = """I look.
<tool_call>
{"name": "weather", "arguments": {"city": "Zürich"}}
</tool_call>
<tool_call>
{"name": "add", "arguments": {"a": 1, "b": 2}}
</tool_call>"""


def test_tool_calls_are_apart_from_the_text(answers: Ask, tmp_path: Path) -> None:
    models = in_both(tmp_path, TWO_CALLS)
    found = answers(*((model, given) for model in models for given in ({"tools": TOOLS}, {}, {"tools": TOOLS, "max_tokens": 9})))
    for answer, plain, cut in (found[:3], found[3:]):
        assert answer.text == "I look.\n"
        assert answer.finish_reason == "tool_calls"
        called = [(call.function.name, json.loads(call.function.arguments)) for call in answer.tool_calls]
        assert called == [("weather", {"city": "Zürich"}), ("add", {"a": 1, "b": 2})]
        assert len({call.id for call in answer.tool_calls}) == 2
        indexes = streamed(answer)[1]
        assert indexes == sorted(indexes), "one call after the other"
        assert min(indexes.count(0), indexes.count(1)) > 3, "the name and the arguments of each call come in pieces"
        assert plain.text == TWO_CALLS, "without tools there are no calls"
        assert (cut.text, cut.tool_calls, cut.finish_reason) == ("I look.\n", None, "length")


def test_results_of_tools_reach_the_model(answers: Ask, tmp_path: Path) -> None:
    called = '{"a": 1, "b": 2}'
    strict = f"""
{{%- for m in messages %}}
{{%- if m.content == '4' %}}{{{{ raise_exception('wrong result') }}}}{{% endif %}}
{{%- if m.tool_calls and m.tool_calls[0].function.arguments == '{called}' %}}{{{{ raise_exception('text') }}}}{{% endif %}}
{{%- endfor %}}{TOOL_TEMPLATE}"""
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": called}}

    def talk(result: str) -> dict[str, Any]:
        asked = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {
            "tools": TOOLS,
            "messages": [{"role": "user", "content": "1 + 2?"}, asked, {"role": "tool", "tool_call_id": "call_1", "content": result}],
        }

    models = in_both(tmp_path, "It is 3.", strict)
    for model in models:
        right, wrong = answers((model, talk("3")), (model, talk("4")))
        assert right.text == "It is 3."
        assert wrong.startswith("parameters.messages: rejected by")
        assert "wrong result" in wrong


def test_required_calls_and_unsupported_options_are_rejected_by_name(answers: Ask, tmp_path: Path) -> None:
    _, gguf = in_both(tmp_path, TWO_CALLS)
    other = make_scripted_model(tmp_path / "other", "no call", TOOL_TEMPLATE.replace("<tool_call>", "[TOOL_CALLS]"))
    plain = make_tiny_model(tmp_path / "plain")
    plain_gguf = write_twin(plain, tmp_path / "plain.gguf")
    required = {"tools": TOOLS, "tool_choice": "required"}
    found = answers(
        (gguf, required),
        (other, required),
        (gguf, {"tools": TOOLS, "logprobs": True}),
        *((model, given) for model in (plain, plain_gguf) for given in ({"tools": TOOLS}, {"reasoning_effort": "low"})),
    )
    assert [call.function.name for call in found[0].tool_calls] == ["weather", "add"]
    assert found[1] == "parameters.tool_choice: mlx-lm can't require calls in the form of other: use 'auto', or a GGUF model"
    assert found[2].startswith("parameters.logprobs: llama.cpp can't combine them with tools")
    assert all("parameters.tools: plain can't call tools" in each for each in (found[3], found[5]))
    assert all("parameters.reasoning_effort: plain has no setting" in each for each in (found[4], found[6]))


LISTED = """{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}
{{- message.role + '\\n' + (message.content or '') + '\\n' }}{% endfor %}{{ 'assistant\\n' }}"""
"""Template that lists tools, but has no form of calls."""


def test_required_call_fails_if_llama_cpp_does_not_know_its_form(answers: Ask, tmp_path: Path) -> None:
    _, gguf = in_both(tmp_path, "no call", LISTED)
    free, required = answers((gguf, {"tools": TOOLS}), (gguf, {"tools": TOOLS, "tool_choice": "required"}))
    assert free.text == "no call"
    assert "scripted called no tool, because llama.cpp can't read calls in its form" in required


def test_json_is_written_where_no_tool_is_called(answers: Ask, tmp_path: Path) -> None:
    calling, answering = in_both(tmp_path / "calls", TWO_CALLS), in_both(tmp_path / "answers", '{"n": 3}')
    given = {"tools": TOOLS, "response_format": {"type": "json_object"}}
    for called, written in zip(*(answers(*((model, given) for model in models)) for models in (calling, answering)), strict=True):
        assert (called.text, len(called.tool_calls)) == ("I look.\n", 2)
        assert (written.text, written.tool_calls) == ('{"n": 3}', None)


def test_required_call_is_enforced_by_mlx(answers: Ask, tmp_path: Path) -> None:
    silent = make_scripted_model(tmp_path / "silent", "no call", TOOL_TEMPLATE)
    city = {"$defs": {"city": {"enum": ["Bern", "Zürich"]}}, "type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {**city, "required": ["city"], "additionalProperties": False}}}
        for name in ("weather", "population")
    ]
    chosen = {"type": "function", "function": {"name": "population"}}
    for choice, names in (("required", {"weather", "population"}), (chosen, {"population"})):
        (answer,) = answers((silent, {"tools": tools, "tool_choice": choice, "temperature": 1.0, "seed": 1, "logprobs": True}))
        assert answer.finish_reason == "tool_calls"
        for call in answer.tool_calls:
            assert call.function.name in names
            assert json.loads(call.function.arguments)["city"] in ("Bern", "Zürich")


EARLIER = """{%- set content = message.content or '' %}
{%- if '</think>' in content %}{% set content = content.split('</think>') | last %}{% endif %}{{ content }}"""
OPENED = TOOL_TEMPLATE.replace("{{ message.content or '' }}", EARLIER).replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
"""Template that begins the reasoning, and leaves it out of earlier turns."""


def test_reasoning_is_apart_from_the_text(answers: Ask, tmp_path: Path) -> None:
    whole = in_both(tmp_path / "whole", "<think>\nLet me see.\n</think>\n\nIt is 3.")
    opened = in_both(tmp_path / "opened", "Let me see.\n</think>\n\nIt is 3.", OPENED)
    for answer in answers(*((model, {}) for model in (*whole, *opened))):
        assert (answer.text, answer.reasoning) == ("It is 3.", "Let me see.")
        assert streamed(answer)[0] > 1, "the reasoning comes in pieces"
    cut, *others = answers(*((model, {"max_tokens": 5}) for model in whole))
    assert all((each.text, each.finish_reason) == ("", "length") and "Let me" in each.reasoning for each in (cut, *others))


def test_json_follows_reasoning(answers: Ask, tmp_path: Path) -> None:
    given = {"response_format": {"type": "json_object"}}
    opened = in_both(tmp_path / "opened", 'Let me see.\n</think>\n\n{"n": 3}', OPENED)
    for answer in answers(*((model, given) for model in opened)):
        assert (answer.text, answer.reasoning) == ('{"n": 3}', "Let me see.")


CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 10, "pattern": "^[A-Z]"},
        "people": {"type": "integer", "minimum": 1, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["big", "old"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["city", "people", "tags"],
    "additionalProperties": False,
}


def response_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}}


def test_ten_of_ten_responses_fit_a_json_schema(answers: Ask, tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path / "tiny")
    models = (tiny, write_twin(tiny, tmp_path / "tiny.gguf"))
    drawn = [{**response_format(CITY), "temperature": 1.5, "seed": seed, "max_tokens": 200} for seed in range(10)]
    unsupported = [response_format({"type": "array", "uniqueItems": True}), response_format({"type": "string", "pattern": "^(?=a)b$"})]
    plain = {"messages": None, "prompt": "the queue", **drawn[0]}
    for model in models:
        *found, unique, pattern, continued = answers(*((model, given) for given in (*drawn, *unsupported, plain)))
        assert [each.finish_reason for each in (*found, continued)] == ["stop"] * 11
        for answer in (*found, continued):
            validate(json.loads(answer.text), CITY)
        assert len({answer.text for answer in found}) == 10
        assert unique == 'parameters.response_format: the JSON schema can\'t be used: Unimplemented keys: ["uniqueItems"]'
        assert "look-around, including look-ahead and look-behind, is not supported" in pattern


def test_log_probabilities_are_those_of_the_model(answers: Ask, tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path / "tiny")
    models = (tiny, write_twin(tiny, tmp_path / "tiny.gguf"))
    options = {"logprobs": True, "top_logprobs": 20, "max_tokens": 6, "messages": [{"role": "user", "content": "queue 0"}]}
    sampled = {**options, "temperature": 2.0, "seed": 1, "presence_penalty": 2.0, "top_logprobs": None}
    greedy, same, *hot = answers((models[0], options), (models[1], options), (models[0], sampled), (models[1], sampled))
    for answer in (greedy, same):
        assert answer.logprobs
        for entry in answer.logprobs:
            likely = [each.logprob for each in entry.top_logprobs]
            assert len(likely) == 20
            assert likely == sorted(likely, reverse=True)
            assert entry.logprob == pytest.approx(likely[0], abs=1e-4), "greedy choices are the most likely tokens"
            assert 0.1 < sum(map(math.exp, likely)) < 1
    assert greedy.logprobs[0].logprob == pytest.approx(same.logprobs[0].logprob, abs=0.01)
    assert all(entry.top_logprobs == [] for answer in hot for entry in answer.logprobs)
    assert hot[0].logprobs[0].logprob < greedy.logprobs[0].logprob
    assert len(greedy.logprobs) == greedy.completion_tokens


def test_penalties_change_the_text(answers: Ask, tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path / "tiny")
    models = (tiny, write_twin(tiny, tmp_path / "tiny.gguf"))
    given: list[dict[str, Any]] = [{}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 0.0}]
    found = [answer.text for answer in answers(*((model, {"max_tokens": 60, **each}) for model in models for each in given))]
    for plain, presence, frequency, none in (found[:4], found[4:]):
        assert plain not in (presence, frequency)
        assert none == plain


def test_adapter_changes_the_text_equally_in_both_engines(answers: Ask, tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path / "tiny")
    models = (tiny, write_twin(tiny, tmp_path / "tiny.gguf"))
    mlx, gguf = write_adapters(tmp_path)
    short = {"max_tokens": 40}
    given = ((tiny, short), (tiny, {**short, "adapter": str(mlx)}), (models[1], {**short, "adapter": str(gguf)}))
    plain, adapted, other = answers(*given)
    assert plain.text != adapted.text == other.text
    swapped = answers((tiny, {"adapter": str(gguf)}), (models[1], {"adapter": str(mlx)}), (tiny, {"adapter": "adapter"}))
    assert [each.partition(": ")[0] for each in swapped] == ["parameters.adapter"] * 3
    assert "mlx-lm needs a folder with adapter_config.json" in swapped[0]
    assert "llama.cpp needs a GGUF file" in swapped[1]
    (mlx / "adapters.safetensors").write_bytes(b"damaged")
    (damaged,) = answers((make_tiny_model(tmp_path / "again"), {"adapter": str(mlx)}))
    assert "can't be used with again" in damaged


def test_path_of_adapter_requires_the_permission_to_execute_code(tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path / "models" / "tiny")
    catalog = ModelCatalog(Settings(data_dir=tmp_path))
    guest = replace(Caller("me"), may_execute=False)
    assert catalog.resolve("tiny", guest).path == str(tiny)
    with pytest.raises(NotAllowed, match="path of an adapter"):
        catalog.resolve("tiny", guest, str(tmp_path))


def test_characters_at_a_cut_end_are_whole(answers: Ask, tmp_path: Path) -> None:
    script = "ab 👩‍🚀 漢字 🙂 end"
    models = in_both(tmp_path, script)
    sizes = range(1, 12)
    for model in models:
        *cut, stopped = answers(*((model, {"max_tokens": size}) for size in sizes), (model, {"stop": "🚀"}))
        assert cut[-1].text == script
        for answer in (*cut, stopped):
            assert script.startswith(answer.text)
            assert not answer.text.endswith(("\u200d", "\ufffd"))
        assert stopped.text == "ab 👩"


def test_template_without_system_role_gets_instructions_in_the_first_turn(answers: Ask, tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path / "tiny")
    strict = shutil.copytree(tiny, tmp_path / "strict")
    settings = json.loads((strict / "tokenizer_config.json").read_text())
    (strict / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": STRICT_TEMPLATE}))
    models = (strict, write_twin(strict, tmp_path / "strict.gguf"))
    merged = [{"role": "user", "content": "be brief\n\nhello\n\nagain"}]
    given = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hello"}, {"role": "user", "content": "again"}]
    wrong = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    prompts = [{"messages": messages, "max_tokens": 20} for messages in (merged, given, wrong)]
    for model in models:
        first, second, rejected = answers(*((model, each) for each in prompts))
        assert first.text == second.text
        assert rejected.startswith("parameters.messages: rejected by")
        assert "must alternate" in rejected


@pytest.mark.parametrize("size", [1, 3, 100])
def test_malformed_call_stays_in_the_text(size: int) -> None:
    text: list[str] = []
    calls = ToolCallFilter(text.append, "<call>", "</call>", json.loads)
    whole = 'a <cal b <call>{"name": "f"}</call>\n<call>{wrong</call> c'
    for start in range(0, len(whole), size):
        calls.add(whole[start : start + size])
    calls.end(cut=False)
    assert "".join(text).replace("\n", "") == "a <cal b <call>{wrong</call> c"
    assert [call["function"] for call in calls.finished()] == [{"name": "f", "arguments": "{}"}]


@pytest.mark.parametrize(
    ("written", "arguments", "cut"),
    [
        ('{"name": "f", "arguments": {"a": "}\\"", "b": [{}]}}', '{"a": "}\\"", "b": [{}]}', False),
        ('{"name": "f", "arguments": {"a": "<call', '{"a": "<call', True),
        ('{"arguments": {"a": 1}, "name": "f"}', '{"a": 1}', False),
        ('{"name": "f"', None, True),
    ],
    ids=["nested", "cut", "other order", "cut before the arguments"],
)
def test_pieces_of_a_json_call_are_its_arguments(written: str, arguments: str | None, cut: bool) -> None:
    text: list[str] = []
    pieces: list[ToolCallPiece] = []
    calls = ToolCallFilter(text.append, "<call>", "</call>", json.loads, pieces.append, as_json=True)
    for letter in f"So: <call>{written}{'' if cut else '</call>'}":
        calls.add(letter)
    calls.end(cut)
    assert "".join(text) == "So: "
    assert "".join(piece.arguments for piece in pieces) == (arguments or "")
    assert [call["function"] for call in calls.finished()] == ([] if arguments is None else [{"name": "f", "arguments": arguments}])
