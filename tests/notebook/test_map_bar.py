"""The progress bar of `client.map`, in real kernels."""

from __future__ import annotations

import re

from tests.notebook.conftest import Kernel

SET_UP = """
import time
from openruntime_jupyter import connect
from openruntime_jupyter.errors import MapFailed
client = connect()
def invert(number, seconds=0.1):
    time.sleep(seconds)
    return 1 / number
"""


def test_map_updates_one_bar_and_saves_its_end(kernel: Kernel) -> None:
    kernel.run(SET_UP)
    cell = kernel.run(
        "try:\n    client.map(invert, range(40))\nexcept MapFailed as problem:\n    print(len(problem.failures))",
        until=lambda cell: bool(re.search(r"\b[1-9]\d* of 40 items.* left", "".join(cell.shown()))),
    )
    (bar,) = cell.shown()
    assert re.search(r"completed.*invert.*40 of 40 items.*1 failed", bar)
    assert " left" not in bar
    assert 'aria-valuenow="100"' in cell.shown("text/html")[0]
    assert cell.updates >= 2
    assert cell.stream() == "1\n"


def test_bar_of_interrupted_map_says_so(kernel: Kernel) -> None:
    kernel.run(SET_UP)
    cell = kernel.run("client.map(invert, [600.0] * 40, chunk_size=1, progress=True)", lambda cell: bool(cell.shown()), kernel.interrupt)
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert re.search(r"cancelled.* of 40 items", cell.shown()[0])


def test_no_bar_on_request(server_kernel: Kernel) -> None:
    server_kernel.run(SET_UP)
    assert server_kernel.run("client.map(invert, range(1, 12), progress=False)").shown() == [
        server_kernel.value("[1 / n for n in range(1, 12)]")
    ]
