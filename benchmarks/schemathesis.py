"""Long run of schemathesis on a stand-alone server and on Jupyter Server."""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Missing, Row, within
from tests.schemathesis_run import failures, installed
from tests.support import JUPYTER, STANDALONE, TOKEN, running_server

SECONDS = 60


def rows() -> Iterator[Row]:
    """Run with a new seed, with and without a token. The report of failed checks is printed with its seed."""
    if not installed():
        raise Missing("schemathesis is missing: pip install schemathesis")
    for name, command, token in (
        ("stand-alone, token", STANDALONE, True),
        ("stand-alone, no token", STANDALONE, False),
        ("Jupyter Server, token", JUPYTER, True),
    ):
        seed = secrets.randbelow(1_000_000)
        with tempfile.TemporaryDirectory() as folder, running_server(Path(folder), command, token=TOKEN) as server:
            report = failures(server, SECONDS, seed, token=token)
        if report:
            print(report, file=sys.stderr)
        yield within(f"schemathesis: failed runs of {SECONDS} s, {name} (seed {seed})", float(bool(report)), 0.5, "runs")
