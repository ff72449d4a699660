"""The magic `%openruntime doctor`, which checks each component that a task needs and suggests fixes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from openruntime_jupyter import __version__
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.errors import NotAllowed, OpenRuntimeError, TaskError, Unavailable
from openruntime_jupyter.notebook.display.format import duration
from openruntime_jupyter.notebook.display.html import Column, RecordTable, Styled, prose, sign, table

PATIENCE = 30.0
"""Timeout of a small task, in seconds. The first task also waits for a worker to start."""

ARRAY = 1 << 20
"""Size of the test array, in bytes: large enough to go through the spool."""

Verdict = Literal["ok", "note", "wrong"]

SIGNS: dict[Verdict, tuple[str, str]] = {"ok": ("✓", "ok"), "note": ("!", "wa"), "wrong": ("✗", "no")}

TOKEN_ADVICE = "Restart this kernel to get a token from its server, or use `%openruntime connect URL?token=…`"

FOREIGN = "http://another-site.invalid"
"""Origin of a simulated malicious page."""

PACKAGES = ("ipywidgets", "anywidget")
PAGE = {"@jupyter-widgets/jupyterlab-manager": "jupyterlab_widgets", "anywidget": "anywidget"}
"""Front-end extension that JupyterLab and Notebook need for widgets, and the package that provides each."""


@dataclass(frozen=True)
class Check:
    """Result of one check: `ok`, a `note` with a suggestion, or `wrong` with a fix."""

    name: str
    verdict: Verdict
    says: str


class Report(RecordTable[Check]):
    """Results of the doctor."""

    label, kind = "OpenRuntime doctor", "ort-c"
    columns = (
        Column("", lambda check: sign(*SIGNS[check.verdict], check.verdict)),
        Column("check", lambda check: check.name, labelled=False),
        Column("result", lambda check: prose(check.says), "wrap", labelled=False),
    )

    @property
    def well(self) -> bool:
        """True if no check failed."""
        return all(check.verdict != "wrong" for check in self)

    def content(self) -> Iterable[Styled]:
        """Return the number of failed checks and the table."""
        wrong = sum(check.verdict == "wrong" for check in self)
        return [table(f"{wrong} of {len(self)} checks failed" if wrong else "All checks passed", self.columns, self)]


def examine(connect: Callable[[], Client]) -> Report:
    """Run all checks. Without a connection to a runtime, the checks that need one are skipped."""
    report = Report(_widgets())
    try:
        client = connect()
        report += [_runtime(client), *_access(client.backend)]
    except NotAllowed as problem:
        return Report([*report, Check("token", "wrong", f"{problem}. {TOKEN_ADVICE}")])
    except OpenRuntimeError as problem:
        advice = "Start Jupyter from an environment with openruntime-jupyter, or use `%openruntime connect embedded`"
        return Report([*report, Check("runtime", "wrong", f"{problem}. {advice}")])
    for name, look in (
        ("versions", _versions),
        ("environments", _environments),
        ("front end", _front_end),
        ("devices", _devices),
        ("hosts", _hosts),
        ("a task", _task),
        ("a cell", _cell),
        ("spool", _arrays),
        ("models", _models),
    ):
        try:
            report += look(client)
        except (OpenRuntimeError, TimeoutError) as problem:
            report.append(Check(name, "wrong", _describe(problem)))
    return report


def _describe(problem: Exception) -> str:
    """Return the first line of an error, with the last output line of a dead worker."""
    failure = problem.task.failure if isinstance(problem, TaskError) and problem.task is not None else None
    last = (failure.last_output or "").strip().splitlines()[-1:] if failure is not None else []
    return f"{str(problem).splitlines()[0]}{f'; last output: {last[0]}' if last else ''}"


def _runtime(client: Client) -> Check:
    health = client.health()
    deadline = time.monotonic() + PATIENCE
    while health.status == "starting" and time.monotonic() < deadline:
        time.sleep(0.1)
        health = client.health()
    place = "inside this kernel, so its tasks end with the kernel" if client.where == "embedded" else f"at {client.where}"
    if health.problems:
        return Check("runtime", "note" if health.status == "healthy" else "wrong", f"{health.status}, {place}. {' '.join(health.problems)}")
    return Check("runtime", "ok", f"{health.status}, {place}")


def _versions(client: Client) -> Iterator[Check]:
    theirs = client.health().version
    if theirs == __version__:
        yield Check("versions", "ok", f"{__version__} in the kernel and the runtime")
    else:
        yield Check(
            "versions",
            "wrong",
            f"{__version__} in this kernel, {theirs} in the runtime: install the same version in both, for example "
            f"{sys.executable} -m pip install openruntime-jupyter=={theirs}",
        )


def _environments(client: Client) -> Iterator[Check]:
    on_hosts = {device for host in client.hosts() for device in host.devices}
    theirs = {worker.interpreter for worker in client.workers() if worker.device not in on_hosts} - {sys.executable}
    if not theirs:
        yield Check("environments", "ok", f"this kernel and the runtime's workers use {sys.executable}")
    elif client.backend.local:
        yield Check("environments", "ok", f"cells run with this kernel's {sys.executable}, operations with {', '.join(sorted(theirs))}")
    else:
        yield Check("environments", "note", f"the runtime is elsewhere: cells run with {', '.join(sorted(theirs))}, not with this kernel's")


def _devices(client: Client) -> Iterator[Check]:
    found = client.devices()
    if not found:
        yield Check("devices", "wrong", "no worker has reported a device yet; `%openruntime status` shows why")
    for device in found:
        what = f"{device.name}, MLX {device.mlx_version}" + (f", {device.blas}" if device.blas else "")
        yield Check(device.id, "note" if device.advice else "ok", f"{what}. {device.advice}" if device.advice else what)


def _hosts(client: Client) -> Iterator[Check]:
    for host in client.hosts():
        if host.state != "ready":
            said = ": ".join(filter(None, (f"{host.state}, {host.address}", host.problem, host.advice)))
            yield Check(host.name, "note" if host.state == "connecting" else "wrong", said)
            continue
        devices = ", ".join(host.devices) or "no devices"
        trip = "" if host.round_trip_s is None else f", {1000 * host.round_trip_s:.1f} ms away"
        has = f"Python {host.python}, OpenRuntime {host.version}, MLX {host.mlx_version}"
        yield Check(host.name, "ok" if host.devices else "wrong", f"{host.address}{trip}: {has}, {devices}")


def _task(client: Client) -> Iterator[Check]:
    began = time.monotonic()
    try:
        handle = client.submit("compute", expression="1 + 1")
    except Unavailable as problem:
        if client.health().status != "degraded":
            raise
        yield Check("history", "wrong", f"tasks cannot be stored, so persistent tasks are rejected: {problem}")
        return
    value = handle.result(PATIENCE)["value"]
    yield Check("a task", "ok" if value == 2 else "wrong", f"1 + 1 = {value:g}, by a worker, in {duration(time.monotonic() - began)}")
    known = client.tasks(limit=1).total_count
    yield Check("history", "ok", f"{client.task(handle.id).id} is stored, with {known - 1:,} other{'' if known == 2 else 's'}")


def _cell(client: Client) -> Iterator[Check]:
    began = time.monotonic()
    found = client.submit_code("import sys\nwhere = sys.executable", outputs=("where",)).result(PATIENCE)["where"]
    yield Check("a cell", "ok", f"code runs with {found} in {duration(time.monotonic() - began)}")


def _arrays(client: Client) -> Iterator[Check]:
    import numpy as np

    there = np.arange(ARRAY // 4, dtype=np.float32)
    began = time.monotonic()
    back = client.submit_call(np.negative, there).result(PATIENCE)
    same = bool(np.array_equal(back, -there))
    way = "through mapped files" if client.backend.local else "over HTTP"
    took = duration(time.monotonic() - began)
    says = f"1 MiB to a worker and back in {took}, {way}" if same else "an array was corrupted in transfer: please report this bug"
    yield Check("spool", "ok" if same else "wrong", says)


def _models(client: Client) -> Iterator[Check]:
    found = client.models()
    local = [f"{model.name} ({model.engine})" for model in found.models if model.engine]
    answering = local + [f"the profile {profile.name}" for profile in found.profiles]
    if answering:
        yield Check("models", "ok", f"{', '.join(answering)} can answer prompts")
    else:
        yield Check(
            "models",
            "note",
            "no model is available: `jupyter openruntime pull` downloads a small one, OPENAI_API_KEY or a profile sets up a provider",
        )


def _widgets() -> Iterator[Check]:
    """Check that the kernel has the packages for widgets."""
    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        yield Check("widgets", "wrong", f"{' and '.join(missing)} missing here: {sys.executable} -m pip install {' '.join(missing)}")
    else:
        yield Check("widgets", "ok", f"{', '.join(found)} in this kernel")


def _front_end(client: Client) -> Iterator[Check]:
    """Check that the server's front end can show widgets. Its environment may differ from the kernel's."""
    if client.where == "embedded" or not client.backend.local:
        yield Check(
            "front end", "ok", "cannot be checked from here: if pages show text instead of the dashboard, they lack the widget packages"
        )
        return
    prefixes = {Path(worker.interpreter).parent.parent for worker in client.workers()}
    missing = [package for name, package in PAGE.items() if not _installed(name, prefixes)]
    if missing:
        python = min((worker.interpreter for worker in client.workers()), default=sys.executable)
        problem = f"the server lacks {' and '.join(missing)}, so pages show text instead of the dashboard"
        yield Check("front end", "note", f"{problem}: {python} -m pip install {' '.join(missing)}, and reload the page")
    else:
        yield Check("front end", "ok", "the server has the extensions for widgets")


def _installed(name: str, prefixes: Iterable[Path]) -> bool:
    from jupyter_core.paths import jupyter_path

    folders = [*(prefix / "share" / "jupyter" / "labextensions" for prefix in prefixes), *map(Path, jupyter_path("labextensions"))]
    return any((folder / name / "package.json").exists() for folder in folders)


def _access(backend: Backend) -> Iterator[Check]:
    """Check that the runtime accepts this kernel and rejects cross-site requests from the user's browser."""
    if not isinstance(backend, HttpBackend):
        yield Check("token", "ok", "not needed: the runtime is in this kernel")
        return
    how = "with a token" if backend.has_token else "without a token"
    yield Check("token", "ok", f"this kernel is accepted {how}")
    status = backend.knock(FOREIGN)
    if status in (401, 403, 404):
        yield Check("XSRF", "ok", f"cross-site requests are rejected (status {status}); requests with a token need no XSRF cookie")
    else:
        advice = "set a token or password for the server, and keep ServerApp.disable_check_xsrf off"
        yield Check("XSRF", "wrong", f"cross-site requests can submit tasks (status {status}): {advice}")
