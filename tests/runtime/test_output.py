"""Output and generated text of tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.tasks.entry import OutputBuffer, Stream, TokenLog, read_stored
from openruntime_jupyter.schemas.tasks import OutputItem
from openruntime_jupyter.schemas.values import ResponsePiece, TokenPiece
from tests.runtimes import busy, cell, completed, ended, pickled, printed, runtime_in, submit, value

BLOCKED_MS = 100
SHOW = "from openruntime_jupyter.current_task import current\n(lambda text: current().display({'text/plain': text}))"


@asynccontextmanager
async def longest_block() -> AsyncIterator[list[float]]:
    """Measure the longest time in ms that the loop's thread was busy; load of other processes does not count."""
    found = [0.0]
    loop = asyncio.get_running_loop()
    run = asyncio.events.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        before = time.thread_time()
        run(handle)
        found[0] = max(found[0], 1000 * (time.thread_time() - before))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.events.Handle, "_run", timed)
        yield found
    assert loop.is_running()


@pytest.mark.every_engine(dask=True)
async def test_output_keeps_its_order(runtime: Runtime) -> None:
    code = "from IPython.display import display, HTML\nprint('one')\ndisplay(HTML('<b>two</b>'))\nprint('three')\n4"
    task_id = await cell(runtime, code)
    await ended(runtime, task_id)
    output = await runtime.tasks.output(task_id)
    shown = [
        (item.output_type, item.text or (item.data or {}).get("text/html") or (item.data or {}).get("text/plain")) for item in output.items
    ]
    assert shown == [("stream", "one\n"), ("display_data", "<b>two</b>"), ("stream", "three\n"), ("execute_result", "4")]
    assert output.finished
    assert not output.truncated


@pytest.mark.every_engine
async def test_output_of_subprocesses_and_c_code_is_captured(runtime: Runtime) -> None:
    code = "!echo from a shell\nimport ctypes, os\nctypes.CDLL(None).puts(b'from C')\nos.write(2, b'from the descriptor\\n')"
    task_id = await cell(runtime, code)
    await ended(runtime, task_id)
    text = await printed(runtime, task_id)
    assert "from a shell" in text
    assert "from C" in text
    assert await printed(runtime, task_id, "stderr") == "from the descriptor\n"


async def test_output_of_tasks_in_one_process_is_separate(runtime: Runtime) -> None:
    ids = [await submit(runtime, "call", {**pickled(print, f"task {number}"), "burst": "one"}) for number in range(6)]
    for number, task_id in enumerate(ids):
        await completed(runtime, task_id)
        assert await printed(runtime, task_id) == f"task {number}\n"


def test_long_output_is_truncated_with_note_and_end() -> None:
    buffer = OutputBuffer(10_000)
    for number in range(100_000):
        buffer.print("stdout", f"line {number}\n")
    buffer.finish()
    text = "".join(item.text or "" for item in buffer.items)
    assert buffer.truncated
    assert len(text) < 10_000 + 20_000 + 500
    assert "more than 10,000 characters" in text
    assert "characters left out" in text
    assert text.startswith("line 0\n")
    assert text.endswith("line 99999\n")


def test_too_large_image_is_replaced_by_note() -> None:
    buffer = OutputBuffer(1000)
    for _ in range(3):
        buffer.display({"output_type": "display_data", "data": {"image/png": "x" * 4000}, "metadata": {}})
    assert [item.output_type for item in buffer.items] == ["display_data", "display_data", "stream"]
    assert "left out" in (buffer.items[-1].text or "")


def picture(text: str, display_id: str | None = None, update: bool = False) -> dict[str, Any]:
    kind = "update_display_data" if update else "display_data"
    return {"output_type": kind, "data": {"image/png": text}, "metadata": {}, "display_id": display_id}


def shows(items: list[OutputItem]) -> list[str]:
    """Return the content of displays and streams; `!` marks updates, and `clear` deleted output."""
    return [
        ("!" if item.output_type == "update_display_data" else "")
        + ("clear" if item.output_type == "clear_output" else item.text or (item.data or {})["image/png"])
        for item in items
    ]


def test_live_plot_leaves_one_picture_within_the_limit() -> None:
    buffer, fast = OutputBuffer(1000), 0
    for epoch in range(200):
        buffer.clear(wait=True)
        assert shows(buffer.read(fast)[0]) == [], "the old picture stays until the new one comes"
        buffer.print("stdout", f"{epoch:0600}")
        buffer.display(picture(f"{epoch:04000}"))
        items, fast = buffer.read(fast)
        assert shows(items) == [*(["clear"] if epoch else []), f"{epoch:0600}", f"{epoch:04000}"]
    assert shows(buffer.read(1)[0])[0] == "clear", "a slow reader gets the last state"
    whole = buffer.whole("task_1")
    assert not whole.truncated
    assert len(whole.items) == 2
    assert read_stored(whole, 0) == whole.items
    assert shows(read_stored(whole, 1)) == ["clear", *shows(whole.items)]
    assert read_stored(whole, whole.next) == []
    buffer.clear(wait=False)
    assert shows(buffer.read(fast)[0]) == ["clear"]
    assert buffer.size == 0


def test_update_replaces_displays_for_slow_and_fast_readers() -> None:
    buffer = OutputBuffer(1000)
    buffer.display(picture("a0", "a"))
    buffer.display(picture("b0", "b"))
    _, early = buffer.read(0)
    buffer.display(picture("a again", "a"))
    for step in range(200):
        buffer.display(picture(f"a{step:04000}", "a", update=True))
    last = f"a{199:04000}"
    items, fast = buffer.read(early)
    assert shows(items) == [f"!{last}", last], "an update of the old display, and the new one in its present form"
    assert shows(buffer.read(0)[0]) == [last, "b0", last]
    assert buffer.read(fast)[0] == []
    buffer.display(picture("b1", "b", update=True))
    buffer.display(picture("of another task", "x", update=True))
    buffer.display(picture("of another task 2", "x", update=True))
    assert shows(buffer.read(fast)[0]) == ["!b1", "!of another task 2"]
    assert not buffer.truncated


def test_output_widget_clears_only_its_output() -> None:
    buffer = OutputBuffer(1000)
    buffer.print("stdout", "before\n")
    for step in range(3):
        buffer.capture("widget")
        buffer.clear(wait=True)
        buffer.print("stdout", f"step {step}\n")
        buffer.capture(None)
    _, since = buffer.read(0)
    buffer.print("stdout", "after\n")
    assert shows(buffer.read(since)[0]) == ["after\n"]
    buffer.capture("widget")
    buffer.clear(wait=False)
    buffer.capture(None)
    assert shows(buffer.read(since)[0]) == ["clear", "before\n", "after\n"]
    buffer.clear(wait=False)
    assert buffer.items == []


async def test_output_flood_does_not_block_loop_or_other_tasks(tmp_path: Path) -> None:
    flood = "print('in', flush=True)\nline = 'x' * 200\nwhile True: print(line)"

    async with runtime_in(tmp_path, cpu_slots=2) as runtime:
        task_id = await busy(runtime, flood)
        async with longest_block() as blocked:
            for _ in range(50):
                await ended(runtime, await submit(runtime, "call", {"burst": "one"}))
            await asyncio.sleep(0.5)
        assert blocked[0] < BLOCKED_MS
        assert (await runtime.cancel(task_id)).status == "cancelled"
        assert (await runtime.tasks.output(task_id)).truncated


async def test_huge_result_does_not_block_loop(runtime: Runtime) -> None:
    await ended(runtime, await submit(runtime, "call"))
    async with longest_block() as blocked:
        task_id = await submit(runtime, "call", pickled(_many_bytes, 100_000_000))
        await ended(runtime, task_id)
    assert blocked[0] < BLOCKED_MS
    assert await value(runtime, task_id) == _many_bytes(100_000_000)


def _many_bytes(size: int) -> bytes:
    return b"\x5a" * size


async def test_large_output_does_not_stay_in_memory(runtime: Runtime) -> None:
    for how, number, kept in (("print", 1000, True), ("print", 900_000, False), (SHOW, 2_000_000, False)):
        task_id = await cell(runtime, f"{how}('x' * {number})")
        await ended(runtime, task_id)
        output = await runtime.tasks.output(task_id)
        shown = "".join(item.text or (item.data or {})["text/plain"] for item in output.items)
        assert (shown.count("x"), output.finished) == (number, True)
        assert (await runtime.tasks.output(task_id, since=output.next)).items == []
        assert (runtime.tasks.find(task_id) is not None) is kept


@pytest.mark.every_engine
async def test_too_large_display_is_replaced_by_its_size(runtime: Runtime) -> None:
    task_id = await cell(runtime, f"{SHOW}('y' * 20_000_000)")
    await completed(runtime, task_id)
    (item,) = (await runtime.tasks.output(task_id)).items
    assert "20,0" in (item.data or {})["text/plain"]


async def test_worker_that_stops_reading_blocks_no_other_task(tmp_path: Path) -> None:
    # The frame of its next task is larger than the socket's buffer, and it never reads it.
    stuck = "import os, signal\nprint('in', flush=True)\nos.kill(os.getpid(), signal.SIGSTOP)"

    async with runtime_in(tmp_path, cpu_slots=2) as runtime:
        task_id = await busy(runtime, stuck)
        async with longest_block() as blocked:
            large = [
                await submit(runtime, "python", {"code": "n = len(text)", "inputs": {"text": "x" * 900_000}, "outputs": ["n"]})
                for _ in range(3)
            ]
            for other in large:
                assert await value(runtime, other) == {"n": 900_000}
        assert blocked[0] < BLOCKED_MS
        assert (await runtime.cancel(task_id)).cancel_stage == "kill"


@pytest.mark.every_engine
async def test_progress_is_coalesced_with_remaining_time(runtime: Runtime) -> None:
    code = (
        "from openruntime_jupyter import progress\nimport time\n"
        "for n in range(1, 1001):\n    progress(n, 2000, f'step {n}')\nprint('half', flush=True)\n"
        "time.sleep(0.3)\nprogress(2000, 2000, 'done')"
    )
    subscription, _ = runtime.bus.subscribe(("task_progress", "task_update"))
    task = await ended(runtime, await cell(runtime, code))
    assert task.progress is not None
    assert (task.progress.n, task.progress.total, task.progress.message) == (2000, 2000, "done")
    assert task.progress.remaining == 0
    subscription.close()
    reports = [event.body["data"] async for event in subscription if event.topic == "task_progress"]
    assert 2 <= len(reports) <= 30, "1,000 calls at once are coalesced"
    assert reports[0]["remaining"] is None, "a loop that has just begun says little"


@pytest.mark.parametrize(
    ("before", "shown"),
    [
        ([], "[it runs again]\n"),
        ([("stdout", "a line\n")], "a line\n[it runs again]\n"),
        ([("stderr", "half a line")], "half a line\n[it runs again]\n"),
        ([("stdout", "half"), ("stdout", " a line")], "half a line\n[it runs again]\n"),
    ],
)
@pytest.mark.parametrize("read_before", [False, True])
def test_runtime_note_is_on_a_separate_line(before: list[tuple[Stream, str]], shown: str, read_before: bool) -> None:
    buffer = OutputBuffer(1000)
    for name, text in before:
        buffer.print(name, text)
    if read_before:
        buffer.read(0)
    buffer.note("[it runs again]\n")
    assert "".join(item.text or "" for item in buffer.read(0)[0]) == shown


def test_note_after_image_or_truncation_adds_no_empty_line() -> None:
    buffer = OutputBuffer(1000)
    buffer.display({"output_type": "display_data", "data": {"text/plain": "a picture"}, "metadata": {}})
    buffer.note("[one]\n")
    assert [item.text for item in buffer.read(0)[0]] == [None, "[one]\n"]
    buffer.print("stdout", "x" * 2000)
    buffer.note("[two]\n")
    assert (buffer.whole("task_1").items[-1].text or "").endswith("x\n[two]\n")


async def text_of(log: TokenLog, since: int = 0) -> str:
    return "".join([piece.text async for piece in log.read(since) if isinstance(piece, TokenPiece)])


async def test_every_reader_gets_text_from_its_position() -> None:
    log = TokenLog()
    assert log.add(ResponsePiece("one ")) == 0
    readers = [asyncio.ensure_future(text_of(log, since)) for since in (0, 2, 4, 9)]
    await asyncio.sleep(0)
    assert log.add(ResponsePiece("two ")) == 4
    await asyncio.sleep(0)
    log.add(ResponsePiece("three"))
    log.close()
    assert await asyncio.gather(*readers) == ["one two three", "e two three", "two three", "hree"]
    assert await text_of(log) == "one two three"


async def test_reader_restarts_with_new_attempt() -> None:
    log = TokenLog()
    found: list[object] = []

    async def read() -> None:
        found.extend([piece async for piece in log.read()])

    log.add(ResponsePiece("of the first worker"))
    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    log.restart()
    await asyncio.sleep(0)
    log.add(ResponsePiece("of the second"))
    log.close()
    await reading
    assert found == [TokenPiece(0, "of the first worker"), TokenPiece(0, "of the second")]
