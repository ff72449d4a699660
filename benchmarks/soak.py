"""Seeded mixed load on a real server while workers, a kernel and the server are killed, with invariants that are checked as it runs.

`python -m benchmarks.soak --minutes 60 --seed 7` runs for any time; `make bench` runs 3 minutes. The exit code is 1 for a violation:

- an acknowledged task is unknown, does not end, or ends in a way that no kill explains;
- a task began more often than its retries allow, or completed without having run;
- a process of a task outlives it, or anything outlives the server;
- a result is wrong; arrays, payloads or files remain that belong to nothing.

The seed determines kinds, parameters and times. The victims of a kill also depend on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from jupyter_client.blocking.client import BlockingKernelClient
from safetensors.numpy import load, save

from benchmarks.rows import Row
from tests.support import JUPYTER, Home, Server, alive, ready, running_server, wait_until

MINUTES = 3.0
DRIVERS = 3
SLOTS = 2
MOST_OPEN = 30
"""Maximum number of acknowledged tasks that have not ended."""
BETWEEN_KILLS = 6.0
"""Mean seconds between two kills."""
VICTIMS = {"worker": 8, "kernel": 1, "server": 1, "worker and server": 1}
"""Kinds of kills with their weights."""
PATIENCE = 120.0
"""Seconds in which each acknowledged task must end while the server runs."""
ORPHAN_SECONDS = 30.0
"""Seconds after which a process that should have ended counts as an orphan; the tasks with children take a second."""
SAMPLE_SECONDS = 5.0
SETTLED_SECONDS = 10.0
"""Seconds after the start of a server before its growth counts."""
BY_KILL = {"worker_died", "not_started", "interrupted"}
"""Failure kinds that only a kill explains."""
MORE_DESCRIPTORS, MORE_THREADS = 60, 16
"""Maximum growth within one life of the server. Connections and the pools of threads account for the rest."""

MARK = "import os, time\nos.write(os.open({marks!r}, os.O_WRONLY | os.O_APPEND), b'{number}\\n')\ntime.sleep({seconds})\n"
CHILD = "import subprocess\nsubprocess.Popen(['sleep', '300'])\n"
CELL = """
import sys
%load_ext openruntime_jupyter
from openruntime_jupyter import connect
client = connect()
def square(number):
    return number * number
assert client.map(square, range({count}), progress=False) == [n * n for n in range({count})]
client.close()
"""


@dataclass
class Acknowledged:
    """Acknowledged task: its number in the file of marks, the runs that its retries allow, and the states in which it may end."""

    number: int
    runs: int
    ends: tuple[str, ...]
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Sample:
    """Sizes of a server and its files; memory and files in MB."""

    life: int
    age: float
    memory: float
    descriptors: int
    threads: int
    spool: float
    history: float

    def __str__(self) -> str:
        return (
            f"life {self.life:3} {self.age:6.0f} s | memory {self.memory:6.1f} MB | descriptors {self.descriptors:4} | "
            f"threads {self.threads:3} | spool {self.spool:7.2f} MB | history {self.history:7.2f} MB"
        )


class Record:
    """Acknowledged tasks, counts and violations. Thread-safe."""

    def __init__(self, marks: Path) -> None:
        self._lock = threading.Lock()
        self._marks = marks
        self._number = 0
        self.open: dict[str, Acknowledged] = {}
        self.ended: dict[str, str] = {}
        """Final states by task id."""
        self.counts: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.violations: list[str] = []

    def next(self) -> int:
        """Return a new number for a task."""
        with self._lock:
            self._number += 1
            return self._number

    def acknowledge(self, task_id: str, task: Acknowledged) -> None:
        """Record an acknowledged task."""
        with self._lock:
            self.counts["acknowledged"] += 1
            self.open[task_id] = task

    def violate(self, what: str) -> None:
        """Record and print a violation."""
        with self._lock:
            self.violations.append(what)
        print(f"VIOLATION: {what}", file=sys.stderr, flush=True)

    def end(self, task_id: str, task: dict[str, Any]) -> None:
        """Check a task that has ended."""
        with self._lock:
            expected = self.open.pop(task_id)
            self.ended[task_id] = task["status"]
        kind = (task.get("failure") or {}).get("kind")
        if task["status"] not in expected.ends and kind not in BY_KILL:
            self.violate(f"{task_id} ended as {task['status']}, expected {' or '.join(expected.ends)}: {task.get('error')}")
        if kind in BY_KILL:
            self.counts["ended by kills"] += 1
        runs = self.marks()[expected.number]
        if runs > expected.runs:
            self.violate(f"{task_id} began {runs} times, and {expected.runs} are allowed")
        if task["status"] == "completed" and not runs:
            self.violate(f"{task_id} completed without having run")

    def marks(self) -> Counter[int]:
        """Return how often each task began."""
        return Counter(map(int, self._marks.read_text().split()))


class Soak:
    """One run: server, load, kills and checks."""

    def __init__(self, folder: Path, minutes: float, seed: int, say: Callable[[str], None]) -> None:
        self.marks = folder / "marks"
        self.marks.touch()
        self.record = Record(self.marks)
        self.samples: list[Sample] = []
        self._seed = seed
        self._seconds = 60 * minutes
        self._say = say
        self._folder = folder
        self._home = Home(folder / "home")
        self._token = uuid.uuid4().hex
        """Value of the environment variable that marks all processes of the run."""
        self._over = threading.Event()
        self._up = threading.Event()
        self._life = contextlib.ExitStack()
        self._started = 0.0
        self._lives = 0
        self._children_seen: dict[psutil.Process, float] = {}
        self.server: Server = self._start()

    def run(self) -> None:
        """Run for the given time, let all tasks end, and check what remains."""
        work: list[Callable[[], None]] = [*(partial(self._drive, number) for number in range(DRIVERS)), self._kernel, self._verify]
        threads = [threading.Thread(target=self._guarded, args=(each,)) for each in work]
        try:
            for thread in threads:
                thread.start()
            self._kill_and_sample()
        finally:
            self._over.set()
            for thread in threads:
                thread.join(PATIENCE)
        try:
            self._finish()
        except (httpx.TransportError, psutil.Error) as problem:
            self.record.violate(f"the server ended: {type(problem).__name__}: {problem}\n{self.server.tail()}")
        finally:
            self._life.close()

    # The server and its end

    def _start(self) -> Server:
        config = {"OpenRuntimeApp": {"cpu_slots": SLOTS, "spool_dir": str(self._folder / "spool")}}
        (self._folder / "spool").mkdir(mode=0o700, exist_ok=True)
        server = self._life.enter_context(running_server(self._home, JUPYTER, config=config, environment={"SOAK": self._token}))
        self._started, self._lives = time.monotonic(), self._lives + 1
        self._up.set()
        return server

    def _restart(self) -> None:
        """Start a server after the last one was killed. The two together must end all that the last one has left."""
        self.server.process.wait()
        left = self._processes()
        self.server.seen.clear()  # otherwise `running_server` would kill them
        self._life.close()
        self.server = self._start()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not any(map(alive, left)), ORPHAN_SECONDS)
        for process in filter(alive, left):
            self._remains(process, "outlived the killed server")

    def _processes(self) -> list[psutil.Process]:
        """Return all processes of the run."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SOAK") == self._token and alive(process):
                    found.append(process)
        return found

    def _remains(self, process: psutil.Process, what: str) -> None:
        """Record a process as a violation, and kill it."""
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())[:100]
            process.kill()
            self.record.violate(f"{what}: {process.pid} {command}")

    # Load

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as problem:
            self.record.violate(f"the load ended early: {type(problem).__name__}: {problem}")

    def _request(self, method: str, path: str, *expected: int, **options: Any) -> httpx.Response:
        """Request, and check the status. Raises `httpx.TransportError` while the server is down."""
        server = self.server
        headers = {**server.headers, **options.pop("headers", {})}
        response = httpx.request(method, server.url + path, headers=headers, timeout=60, **options)
        if response.status_code == 503:
            raise httpx.ConnectError("starting or stopping")
        if response.status_code not in expected:
            self.record.violate(f"{method} {path}: {response.status_code} {response.text[:300]}")
        return response

    def _drive(self, number: int) -> None:
        draw = random.Random(f"{self._seed} driver {number}")
        kinds = (self._marked, self._marked, self._retried, self._children, self._cancelled, self._failed, self._computed, self._batch)
        kinds = (*kinds, self._arrays, self._repeated, self._listed)  # type: ignore[assignment]
        while not self._over.is_set():
            if len(self.record.open) >= MOST_OPEN:
                time.sleep(0.1)
                continue
            kind = draw.choice(kinds)
            try:
                kind(draw)
            except (httpx.TransportError, OSError):
                self.record.counts["requests without a response"] += 1
                time.sleep(0.2)
            else:
                self.record.counts[kind.__name__.strip("_")] += 1

    def _submit(self, code: str, runs: int, *ends: str, number: int = 0, key: str | None = None, **fields: Any) -> str:
        number = number or self.record.next()
        body = {"operation": "python", "parameters": {"code": code.replace("NUMBER", str(number))}, "wait": False, **fields}
        response = self._request("POST", "/tasks", 202, json=body, headers={"Idempotency-Key": key} if key else {})
        task_id: str = response.json()["task_id"]
        if task_id not in self.record.open and task_id not in self.record.ended:
            self.record.acknowledge(task_id, Acknowledged(number, runs, ends))
        return task_id

    def _code(self, seconds: float) -> str:
        return MARK.format(marks=os.fspath(self.marks), number="NUMBER", seconds=round(seconds, 3))

    def _marked(self, draw: random.Random) -> None:
        self._submit(self._code(draw.uniform(0, 0.3)), 1, "completed", priority=draw.randint(1, 10))

    def _retried(self, draw: random.Random) -> None:
        self._submit(self._code(draw.uniform(0, 0.5)), 4, "completed", retries=3)

    def _children(self, draw: random.Random) -> None:
        self._submit(self._code(draw.uniform(0, 0.5)) + CHILD, 1, "completed")

    def _failed(self, draw: random.Random) -> None:
        self._submit(self._code(draw.uniform(0, 0.1)) + "raise ValueError('expected')", 1, "failed")

    def _cancelled(self, draw: random.Random) -> None:
        task_id = self._submit(self._code(60), 1, "cancelled")
        time.sleep(draw.uniform(0, 1.5))
        for _ in range(600):  # by the next server if this one was killed
            with contextlib.suppress(httpx.TransportError, OSError):
                self._request("DELETE", f"/tasks/{task_id}", 200, 409)
                return
            time.sleep(0.2)

    def _repeated(self, draw: random.Random) -> None:
        number, key, code = self.record.next(), uuid.uuid4().hex, self._code(draw.uniform(0, 0.1))
        ids = {self._submit(code, 1, "completed", number=number, key=key) for _ in range(2)}
        if len(ids) > 1:
            self.record.violate(f"one idempotency key made {len(ids)} tasks")

    def _computed(self, draw: random.Random) -> None:
        count = draw.randint(1, 5000)
        body = {"operation": "compute", "parameters": {"inputs": {"a": {"arange": count}}, "expression": "sum(a)"}}
        task = self._request("POST", "/tasks", 200, json=body).json()
        kind = (task.get("failure") or {}).get("kind")
        if kind not in BY_KILL and (task["status"], task["result"]["output"]["value"]) != ("completed", count * (count - 1) // 2):
            self.record.violate(f"wrong sum of {count}: {task['status']} {task['error']} {task['result']}")

    def _batch(self, draw: random.Random) -> None:
        numbers = [self.record.next() for _ in range(draw.randint(2, 6))]
        codes = [self._code(0).replace("NUMBER", str(number)) for number in numbers]
        body = {"tasks": [{"operation": "python", "parameters": {"code": code}} for code in codes]}
        entries = self._request("POST", "/tasks/batch", 202, json=body).json()["tasks"]
        for number, entry in zip(numbers, entries, strict=True):
            if "task" in entry:
                self.record.acknowledge(entry["task"]["task_id"], Acknowledged(number, 1, ("completed",)))

    def _arrays(self, draw: random.Random) -> None:
        name = f"soak-{self.record.next()}"
        array = np.arange(draw.randint(1, 500_000), dtype=np.float32)
        try:
            self._request(
                "PUT", f"/arrays/{name}", 201, content=save({"a": array}), headers={"Content-Type": "application/vnd.safetensors"}
            )
            back = load(self._request("GET", f"/arrays/{name}", 200).content)["array"]
            if not np.array_equal(back, array):
                self.record.violate(f"the array {name} came back changed")
        finally:
            self._request("DELETE", f"/arrays/{name}", 200, 404)

    def _listed(self, draw: random.Random) -> None:
        for path in ("/health", "/metrics", "/workers", f"/tasks?limit={draw.randint(1, 100)}", "/metrics/history?timeframe=5m"):
            self._request("GET", path, 200)

    def _kernel(self) -> None:
        """Run cells with `client.map` in a kernel of the server; start another one when it is gone."""
        draw = random.Random(f"{self._seed} kernel")
        while not self._over.is_set():
            if not self._up.wait(1.0):
                continue
            before, kernel = self.record.kills.total(), None
            try:
                name = self._jupyter("POST", "", json={"name": "python3"}).json()["id"]
                kernel = BlockingKernelClient(connection_file=os.fspath(self._home.runtime_dir / f"kernel-{name}.json"))
                kernel.load_connection_file()
                kernel.start_channels()
                ready(kernel, 30.0)
                while not self._over.is_set():
                    before = self.record.kills.total()
                    reply = kernel.execute_interactive(CELL.format(count=draw.randint(1, 40)), timeout=45, output_hook=lambda _: None)
                    if reply["content"]["status"] == "ok":
                        self.record.counts["cells"] += 1
                    elif before == self.record.kills.total():
                        self.record.violate(f"a cell failed without a kill: {reply['content']['ename']}: {reply['content']['evalue']}")
                    time.sleep(draw.uniform(0, 1))
                self._jupyter("DELETE", f"/{name}")
            except (httpx.HTTPError, OSError, RuntimeError, TimeoutError, AssertionError, KeyError, ValueError) as problem:
                if before == self.record.kills.total():
                    self.record.violate(f"the kernel was lost without a kill: {type(problem).__name__}: {problem}")
                time.sleep(0.5)
            finally:
                if kernel is not None:
                    kernel.stop_channels()

    def _jupyter(self, method: str, path: str, **options: Any) -> httpx.Response:
        server = self.server
        return httpx.request(method, f"{server.root}/api/kernels{path}", headers=server.headers, timeout=30, **options).raise_for_status()

    # Kills

    def _kill_and_sample(self) -> None:
        draw = random.Random(f"{self._seed} kills")
        end = time.monotonic() + self._seconds
        next_kill, next_sample = time.monotonic() + draw.expovariate(1 / BETWEEN_KILLS), 0.0
        while (now := time.monotonic()) < end:
            if now >= next_sample:
                next_sample = now + SAMPLE_SECONDS
                self._sample()
                self._find_orphans()
            if now >= next_kill:
                self._kill(draw.choices([*VICTIMS], [*VICTIMS.values()])[0], draw)
                next_kill = time.monotonic() + draw.expovariate(1 / BETWEEN_KILLS)
            time.sleep(0.05)

    def _kill(self, victim: str, draw: random.Random) -> None:
        self.record.kills[victim] += 1
        if victim != "server":
            module = "ipykernel_launcher" if victim == "kernel" else "openruntime_jupyter.worker"
            found = []
            for process in psutil.Process(self.server.pid).children():
                with contextlib.suppress(psutil.Error):
                    if module in process.cmdline():
                        found.append(process)
            if found:
                with contextlib.suppress(psutil.Error):
                    draw.choice(found).kill()
        if "server" in victim:
            self._up.clear()
            self.server.process.kill()
            self._restart()

    # Checks

    def _sample(self) -> None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.server.pid)
            sample = Sample(
                self._lives,
                time.monotonic() - self._started,
                process.memory_info().rss / 1e6,
                process.num_fds(),
                process.num_threads(),
                size_of(self._folder / "spool"),
                size_of(self._home.data_dir),
            )
            self.samples.append(sample)
            counts = f"{self.record.counts['acknowledged']} tasks, {self.record.kills.total()} kills"
            self._say(f"{sample} | {counts}, {len(self.record.violations)} violations")

    def _find_orphans(self) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                first_seen = self._children_seen.setdefault(process, time.monotonic())
                if process.name() == "sleep" and time.monotonic() - first_seen > ORPHAN_SECONDS:
                    self._remains(process, "the child of a task outlived it")

    def _verify(self) -> None:
        """Check acknowledged tasks as they end."""
        while not self._over.is_set() or self.record.open:
            for task_id, expected in list(self.record.open.items()):
                try:
                    response = self._request("GET", f"/tasks/{task_id}", 200, 404)
                except (httpx.TransportError, OSError):
                    time.sleep(0.2)
                    continue
                if response.status_code == 404:
                    self.record.open.pop(task_id)
                    self.record.violate(f"the acknowledged task {task_id} is lost")
                elif (task := response.json())["status"] not in ("pending", "running"):
                    self.record.end(task_id, task)
                elif time.monotonic() - max(expected.since, self._started) > PATIENCE:
                    self.record.open.pop(task_id)
                    self.record.violate(f"{task_id} is {task['status']} after {PATIENCE:g} s: {task.get('waiting_for')}")
            time.sleep(0.1)

    def _finish(self) -> None:
        """Check the final states again, what the server still holds, and what remains after its end."""
        for task_id, status in self.record.ended.items():
            if (found := self.server.request("GET", f"/tasks/{task_id}").json().get("status")) != status:
                self.record.violate(f"{task_id} had ended as {status} and is {found} now")
        for array in self.server.get("/arrays")["arrays"]:
            name = array["id"]
            if name.startswith("soak-"):  # of a request that was cut off
                self.server.request("DELETE", f"/arrays/{name}")
            else:
                self.record.violate(f"the array {name} of task {array['task_id']} remains")
        kills = self.record.kills
        by_kill, most = self.record.counts["ended by kills"], kills["worker"] + (SLOTS + 1) * (kills["server"] + kills["worker and server"])
        if by_kill > most:
            self.record.violate(f"{by_kill} tasks ended by kills, and {most} are possible")
        self._sample()
        self._check_growth()
        try:
            self.server.stop()
        except AssertionError as problem:
            self.record.violate(f"the server did not stop: {problem}")
        self._find_remains()

    def _find_remains(self) -> None:
        """Check that the stopped server has left no process and no file."""
        for process in self._processes():
            self._remains(process, "outlived the stopped server")
        data = self._home.data_dir
        for folder in (self._folder / "spool", data / "arrays", data / "payloads", data / "tmp"):
            for file in folder.rglob("*"):
                if file.is_file():
                    self.record.violate(f"a file remains: {file.relative_to(self._folder)}")

    def _check_growth(self) -> None:
        for life in range(1, self._lives + 1):
            settled = [each for each in self.samples if each.life == life and each.age > SETTLED_SECONDS]
            if len(settled) > 1 and settled[-1].descriptors - settled[0].descriptors > MORE_DESCRIPTORS:
                self.record.violate(f"descriptors grew from {settled[0].descriptors} to {settled[-1].descriptors}")
            if len(settled) > 1 and settled[-1].threads - settled[0].threads > MORE_THREADS:
                self.record.violate(f"threads grew from {settled[0].threads} to {settled[-1].threads}")

    def growth(self) -> str:
        """Return the growth within the longest life of the server, and of its files over the run."""
        lives = Counter(each.life for each in self.samples if each.age > SETTLED_SECONDS)
        if not lives or lives.most_common(1)[0][1] < 2:
            return "no server lived long enough to measure its growth"
        settled = [each for each in self.samples if each.life == lives.most_common(1)[0][0] and each.age > SETTLED_SECONDS]
        first, last, begin = settled[0], settled[-1], self.samples[0]
        return (
            f"in {last.age - first.age:.0f} s of one server: memory {last.memory - first.memory:+.1f} MB, descriptors "
            f"{last.descriptors - first.descriptors:+}, threads {last.threads - first.threads:+}; over the run: spool "
            f"{last.spool - begin.spool:+.2f} MB, history {self.samples[-1].history - begin.history:+.2f} MB"
        )


def size_of(folder: Path) -> float:
    """Return the size of all files in MB."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total / 1e6


def soak(minutes: float, seed: int, say: Callable[[str], None]) -> Soak:
    """Run and return the results."""
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name:
        run = Soak(Path(name), minutes, seed, say)
        run.run()
        return run


def rows() -> list[Row]:
    """Run for three minutes with a new seed."""
    seed = random.SystemRandom().randrange(10**6)
    record = (run := soak(MINUTES, seed, lambda _: None)).record
    what = (
        f"soak with the seed {seed}: violations in {record.counts['acknowledged']} tasks and {record.kills.total()} kills; {run.growth()}"
    )
    violations = len(record.violations)
    return [Row(what, f"{violations}", "", float(violations), "0", not violations)]


def main(arguments: list[str]) -> int:
    """Run with the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Mixed load with kills; exits with 1 for a violation.")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="length of the run (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="seed of load and kills")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}, {options.minutes:g} minutes", flush=True)
    run = soak(options.minutes, options.seed, lambda line: print(line, flush=True))
    record = run.record
    print(f"load: {', '.join(f'{count} {name}' for name, count in sorted(record.counts.items()))}")
    print(f"kills: {', '.join(f'{count} {name}' for name, count in record.kills.items()) or 'none'}")
    print(f"growth {run.growth()}")
    print(f"{len(record.violations)} violations", *record.violations, sep="\n  ")
    return 1 if record.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
