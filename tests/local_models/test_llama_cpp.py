"""GGUF models by llama.cpp: types and architectures, damaged files, and options. They run in other processes, which a file may crash."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gguf_files import ARCHITECTURES, TYPES, write_gguf
from tests.gguf_twin import write_twin
from tests.runtimes import completed, ended, runtime_in, submit
from tests.tiny_model import TEMPLATE

WRITE = """
import json, sys
from pathlib import Path
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.local_models.language_model import load
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.submission import Caller
from openruntime_jupyter.schemas.values import GenerationOptions

def source_of(path):
    return ModelCatalog(Settings(data_dir=Path("/nowhere"))).resolve(path, Caller("me"))

def outcome(path, prompt, options):
    try:
        source = source_of(path)
        context = TaskContext(model=source)
        return load(source, context).answer(prompt, [{"role": "user", "content": "the queue"}], GenerationOptions(**options), context)
    except OpenRuntimeError as problem:
        return str(problem)
"""
"""Function that returns the answer of the model in a file, or the error."""


def write(paths: list[Path], prompt: str | None = "the queue is", **options: Any) -> list[Any]:
    """Return the answer of each model, or the error."""
    program = f"{WRITE}\nprint(json.dumps([outcome(path, *json.loads(sys.argv[1])) for path in sys.argv[2:]]))"
    asked = json.dumps([prompt, {"max_tokens": 8, **options}])
    done = subprocess.run([sys.executable, "-c", program, asked, *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "llama.cpp's log would be in the output of the task"
    found: list[Any] = json.loads(done.stdout)
    return found


def test_all_types_and_architectures_write_eight_tokens(folder: Path, tmp_path: Path) -> None:
    made = [write_gguf(tmp_path / f"{kind}.gguf", folder, kind=kind) for kind in TYPES]
    made += [write_gguf(tmp_path / f"{name}.gguf", folder, name) for name in ARCHITECTURES]
    assert len(made) == 16 + 7
    found = dict(zip(made, write(made), strict=True))
    assert not {path.stem: each for path, each in found.items() if isinstance(each, str) or each["completion_tokens"] != 8}


def test_sampling_options_of_file_do_not_apply(folder: Path, tmp_path: Path) -> None:
    plain = write_twin(folder, tmp_path / "plain.gguf")
    strange = write_twin(folder, tmp_path / "strange.gguf", values={"general.sampling.temp": 5.0, "general.sampling.top_k": 1})
    texts = [[found["text"] for found in write([plain, strange], max_tokens=40, **options)] for options in ({}, SAMPLED)]
    assert [len(set(pair)) for pair in texts] == [1, 1]
    assert texts[0] != texts[1], "a temperature has no effect"


SAMPLED: dict[str, Any] = {"sampling": {"temp": 5.0}, "seed": 1}


NO_QUEUE = "{% for m in messages %}{% if 'queue' in m.content %}{{ raise_exception('no such word') }}{% endif %}{% endfor %}"


def test_messages_require_a_chat_template_in_the_file(folder: Path, tmp_path: Path) -> None:
    path = write_twin(folder, tmp_path / "plain.gguf", values={"tokenizer.chat_template": None})
    strict = write_twin(folder, tmp_path / "strict.gguf", values={"tokenizer.chat_template": NO_QUEUE + TEMPLATE})
    without, rejected = write([path, strict], prompt=None)
    assert "plain has no chat template" in without
    assert "parameters.messages" in rejected
    assert "no such word" in rejected


def test_missing_xllamacpp_names_install_command(folder: Path, tmp_path: Path) -> None:
    path = write_twin(folder, tmp_path / "tiny.gguf")
    program = f"import sys\nsys.modules['xllamacpp'] = None\n{WRITE}\nprint(outcome(sys.argv[1], 'a', {{'max_tokens': 1}}))"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert "python -m pip install 'openruntime-jupyter[local]'" in done.stdout


def test_generation_uses_the_threads_of_its_context(folder: Path, tmp_path: Path) -> None:
    path = write_twin(folder, tmp_path / "tiny.gguf")
    program = (
        "import os, sys, time, psutil\n"
        "from pathlib import Path\n"
        "from openruntime_jupyter.local_models.llama_cpp import open_server\n"
        "server = open_server(Path(sys.argv[1]), 64, int(sys.argv[2]))\n"
        "server.handle_completions({'prompt': 'the queue', 'max_tokens': 2}, lambda chunk: False)\n"
        "deadline = time.monotonic() + 1\n"  # other threads than those of the context end
        "counts = [psutil.Process().num_threads()]\n"
        "while time.monotonic() < deadline: counts.append(psutil.Process().num_threads())\n"
        "print(min(counts))\n"
    )
    counts = [
        int(subprocess.run([sys.executable, "-c", program, str(path), count], capture_output=True, text=True, check=True).stdout)
        for count in ("1", "4")
    ]
    assert counts[1] - counts[0] == 3


FORKED = """
import os, signal

def forked(path):
    try:
        source_of(path)
    except OpenRuntimeError as problem:
        return str(problem)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(20)
        os.write(writer, json.dumps(outcome(path, "the queue", {"max_tokens": 3})).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answers:
        text = answers.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(text) if text else f"signal {os.WTERMSIG(status)}"
"""
"""Function that returns the outcome of a file in a child process, or the signal that ended it."""


def damaged(content: bytes, seed: int) -> bytes:
    """Return a copy with one to four changed bytes in the header, or truncated."""
    chance = random.Random(seed)
    changed = bytearray(content)
    if seed % 5 == 0:
        return bytes(changed[: chance.randrange(len(changed))])
    for _ in range(chance.choice((1, 1, 2, 4))):
        changed[chance.randrange(9000)] = chance.randrange(256)
    return bytes(changed)


@pytest.fixture(scope="module")
def outcomes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Any]:
    """Return the outcomes of 200 damaged files."""
    place = tmp_path_factory.mktemp("damaged")
    content = write_twin(folder, place / "whole", "Q8_0").read_bytes()
    paths = [place / f"{seed}.gguf" for seed in range(200)]
    for seed, path in enumerate(paths):
        path.write_bytes(damaged(content, seed))
    program = f"{WRITE}{FORKED}\nimport xllamacpp\nprint(json.dumps([forked(path) for path in sys.argv[1:]]))"
    done = subprocess.run([sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True, check=True)
    return dict(zip(paths, json.loads(done.stdout), strict=True))


def test_damaged_files_fail_with_a_reason(outcomes: dict[Path, Any]) -> None:
    failures = {path.name: found for path, found in outcomes.items() if isinstance(found, str) and not found.startswith("signal")}
    assert len(failures) > 100
    assert not {name: found for name, found in failures.items() if name not in found or "Failed to init" in found or found.endswith(name)}
    assert {"signal 9", "signal 14"}.isdisjoint(map(str, outcomes.values())), "loading or generating did not end"


async def test_runtime_survives_damaged_files_and_reports_them(outcomes: dict[Path, Any], tmp_path: Path) -> None:
    crashing = [path for path, found in outcomes.items() if str(found).startswith("signal")]
    failing = next(path for path, found in outcomes.items() if "can't be loaded" in str(found))
    async with runtime_in(tmp_path, cpu_slots=1) as runtime:
        task = await ended(runtime, await submit(runtime, "generate", {"model": str(failing), "prompt": "a"}), 60)
        assert "can't be loaded: " in str(task.error)
        for path in crashing[:2]:
            task = await ended(runtime, await submit(runtime, "generate", {"model": str(path), "prompt": "a"}), 60)
            assert task.failure is not None
            assert task.failure.kind == "worker_died"
            assert f"It was loading the model {path.stem}, whose file may be damaged" in task.failure.message
        assert (await completed(runtime, await submit(runtime, "matrix_multiply", {"size": 8}), 60)).status == "completed"
