"""`--json` and reasoning of `%%openruntime ai`, and tools of `client.ask`, in a real kernel."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from tests.ai.provider_server import Connection, ProviderServer, Request, chunk
from tests.notebook.conftest import Kernel, answer, error_of

MODEL = """
from pydantic import BaseModel
class City(BaseModel):
    name: str
    inhabitants: int
"""
ULM = '{"name": "Ulm", "inhabitants": 5}'


def test_result_is_an_object_and_is_displayed_once_as_json(server_kernel: Kernel, provider: ProviderServer) -> None:
    server_kernel.run(MODEL)
    cell = server_kernel.run(f"%%openruntime ai --raw --json City --out ulm\nrepeat {ULM}")
    assert cell.status == "ok", cell.error
    (text,) = cell.shown("text/markdown")
    assert text.endswith('```json\n{\n  "name": "Ulm",\n  "inhabitants": 5\n}\n```')
    assert len(cell.outputs) == 1, "the object is not displayed again"
    assert server_kernel.value("ulm, _ is ulm, ulm.inhabitants + 1") == "(City(name='Ulm', inhabitants=5), True, 6)"
    assert "City(name='Ulm'" in server_kernel.run("ulm").value, "it is displayed by later cells"
    assert provider.requests[-1].json["response_format"]["json_schema"]["name"] == "City"
    assert server_kernel.run(f"found = %openruntime ai --raw --json City repeat {ULM}").status == "ok"
    assert server_kernel.value("found == ulm") == "True"


def test_schema_can_be_a_dict_or_a_file(server_kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "city.json"
    path.write_text(json.dumps({"type": "object", "required": ["name"]}))
    server_kernel.run("form = {'type': 'object', 'required': ['name']}")
    for name in ("form", str(path)):
        cell = server_kernel.run(f"%%openruntime ai --raw --json {name} --out found\nrepeat {ULM}")
        assert cell.status == "ok", cell.error
        assert server_kernel.value("found") == "{'name': 'Ulm', 'inhabitants': 5}"


def test_wrong_schemas_and_answers_are_explained(server_kernel: Kernel) -> None:
    server_kernel.run(MODEL + "number, text = 5, {'type': 'text'}")
    for name, why in (
        ("nothing", "--json: 'nothing' is neither a variable nor a file"),
        ("number", "--json: number: schema: no JSON schema can be made of 5"),
        ("/etc/hostname", "can't be read as JSON"),
        ("text", "--json: the JSON schema is invalid: type: 'text'"),
        ("City --insert", "--insert cannot be combined with --json"),
    ):
        assert why in error_of(server_kernel.run(f"%%openruntime ai --json {name}\nrepeat {ULM}"))
    ignored = server_kernel.run("%%openruntime ai --json City\nrepeat something else")
    assert ignored.status == "error"
    assert "ignored response_format" in str(ignored.outputs)
    assert server_kernel.complete("%%openruntime ai --json Cit|\n") == ["%%openruntime ai --json City"]


def test_map_stores_objects_by_row(server_kernel: Kernel, provider: ProviderServer) -> None:
    server_kernel.run(MODEL + f"rows = ['{ULM}', 'nothing', '{ULM}']")
    cell = server_kernel.run("%%openruntime ai --map rows --out cities --json City\nrepeat {item}")
    assert cell.status == "ok", cell.error
    assert server_kernel.value("[city and city.name for city in cities], list(cities.failures)") == "(['Ulm', None, 'Ulm'], [1])"
    before = len(provider.requests)
    server_kernel.run("%%openruntime ai --map rows --out cities --json City\nrepeat {item}")
    assert len(provider.requests) == before + 1, "only the failed row is sent again"


def test_reasoning_is_folded_and_not_part_of_the_answer(server_kernel: Kernel, provider: ProviderServer) -> None:
    written = "<think>Maybe <b>so</b>:\n\n```python\nwrong = 1\n$x$\n</think>\n\n```python\nright = 2\n```"
    cell = server_kernel.run(f"%%openruntime ai --raw --conversation thoughts --out found --insert\nrepeat {written}")
    assert cell.status == "ok", cell.error
    head, details, *rest = cell.shown("text/markdown")[0].split("\n\n")
    assert "completed in" in head
    assert details == (
        "<details><summary>Reasoning</summary>Maybe &lt;b&gt;so&lt;/b&gt;:<br><br>```python<br>wrong = 1<br>&#36;x&#36;</details>"
    )
    assert rest == ["```python\nright = 2\n```"]
    assert "wrong" not in cell.shown()[0]
    assert server_kernel.value("found.code, 'wrong' in str(found), 'wrong' in found.reasoning") == "('right = 2', False, True)"
    server_kernel.run("%%openruntime ai --conversation thoughts\nhello")
    assert "wrong" not in json.dumps(provider.requests[-1].json["messages"][1:])


def test_reasoning_is_shown_while_it_is_written(server_kernel: Kernel, provider: ProviderServer) -> None:
    seen = threading.Event()

    def ponder(connection: Connection, request: Request) -> None:
        connection.begin()
        connection.event(chunk(None, reasoning_content="Let me see."))
        assert seen.wait(30), "the reasoning was not shown before the answer"
        connection.text("It is 3.")

    provider.script(ponder)
    try:
        cell = server_kernel.run(
            "%%openruntime ai --raw\n1 + 2?", lambda cell: "</summary>Let me see.<" in "".join(cell.shown("text/markdown")), seen.set
        )
    finally:
        seen.set()
        provider.script(answer)
    assert cell.status == "ok", cell.error
    assert cell.shown("text/markdown")[0].split("\n\n")[1:] == ["<details><summary>Reasoning</summary>Let me see.</details>", "It is 3."]


def test_functions_of_the_kernel_are_tools(server_kernel: Kernel) -> None:
    server_kernel.run("import threading\nmain = threading.main_thread()\nfrom openruntime_jupyter import connect\nvisited = []")
    cell = server_kernel.run(
        "def visit(city: str) -> int:\n    'Visit a city.'\n    visited.append((city, threading.current_thread() is main))\n"
        '    return len(visited)\nreply = connect().ask(\'call {"city": "Ulm"}\', tools=[visit]).result()\nprint(reply)'
    )
    assert cell.stream() == "You said: 1\n"
    assert server_kernel.value("visited, reply.calls[0].name, reply.calls[0].result") == "([('Ulm', True)], 'visit', '1')"


def test_text_of_completed_task_is_not_repeated_by_its_output(server_kernel: Kernel) -> None:
    cell = server_kernel.run(
        "from openruntime_jupyter import connect\nfrom openruntime_jupyter.notebook.ai.live_answer import AnswerLine\n"
        "handle = connect().ask('hello')\nhandle.wait(30)\nline = AnswerLine(handle, {})\n"
        "line.show(handle.task)\nline.add('You said: hello')\nprint(line.text)"
    )
    assert cell.stream() == "You said: hello\n"
