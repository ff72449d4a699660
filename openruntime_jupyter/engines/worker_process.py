"""Worker process as seen by the runtime: its start, frames, output, memory, and end.

A worker cannot block the loop: frames are read as they arrive, bodies are bounded, payloads are not unpickled here, and output is read
at a bounded rate (a worker that prints faster waits).
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fcntl
import json
import logging
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil

from openruntime_jupyter.engines.failures import Death, install_command, missing_package, not_started, worker_died
from openruntime_jupyter.engines.protocol import ExecutionEnvironment
from openruntime_jupyter.environment import is_secret
from openruntime_jupyter.errors import EngineError, InterpreterError
from openruntime_jupyter.schemas.base import dumps, loads
from openruntime_jupyter.schemas.tasks import Failure
from openruntime_jupyter.terminal import terminal_text
from openruntime_jupyter.worker.frames import HEADER, PROTOCOL, READ_BYTES, BrokenFrame, Kind, decode_header, display_marker, encode
from openruntime_jupyter.worker.resident import max_resident, own_peak

REAP_POLL = 0.05
"""Seconds between checks of a child process on systems without pidfd."""

TAIL_CHARACTERS = 2000

START_ATTEMPTS = 3
"""Maximum number of workers started, one after the other, if each is killed before it is ready."""

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Receiver of a worker's frames and output while it has a job."""

    def frame(self, kind: Kind, body: dict[str, Any], payload: bytes) -> None:
        """Handle a frame."""

    def printed(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        """Handle text written to `stdout` or `stderr`."""


class _Reader(asyncio.BufferedProtocol):
    """Protocol that assembles frames from the data channel: several small ones per buffer, a large one in a separate buffer."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self._small = bytearray(READ_BYTES)
        self._room = memoryview(self._small)
        self._large: bytearray | None = None
        self._filled = 0
        self._broken = False

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer for the next bytes."""
        if self._large is not None:
            return memoryview(self._large)[self._filled :]
        return self._room[self._filled :] if self._filled else self._room

    def buffer_updated(self, nbytes: int) -> None:
        """Process received bytes."""
        if self._broken:
            return
        self._filled += nbytes
        try:
            if self._large is None:
                self._take_small()
            elif self._filled == len(self._large):
                whole, self._large, self._filled = self._large, None, 0
                self._take(whole, 0, *decode_header(whole))
        except Exception as problem:  # a task may have corrupted the stream
            self._broken, self._large, self._filled = True, None, 0
            self._worker.broken(problem)

    def _take_small(self) -> None:
        start = 0
        while self._filled - start >= HEADER.size:
            kind, generation, body, payload = decode_header(self._small, start)
            size = HEADER.size + body + payload
            if size > len(self._small):
                self._large = bytearray(size)
                self._large[: self._filled - start] = self._small[start : self._filled]
                self._filled -= start
                return
            if self._filled - start < size:
                break
            self._take(self._small, start, kind, generation, body, payload)
            start += size
        if start == self._filled:
            self._filled = 0
        elif start:
            self._small[: self._filled - start] = self._small[start : self._filled]
            self._filled -= start

    def _take(self, data: bytearray, start: int, kind: Kind, generation: int, body: int, payload: int) -> None:
        if generation == self._worker.generation:
            middle = start + HEADER.size + body
            content = loads(data[start + HEADER.size : middle])
            self._worker.on_frame(kind, content, bytes(data[middle : middle + payload]) if payload else b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of the stream. The worker has left frames unread if it is a reset or a broken pipe."""
        self._worker.on_disconnect(unread=exc is not None)


class WorkerKilled(EngineError):
    """Worker that another program, or a crash, killed before it was ready."""


class WorkerProcess:
    """Worker process. `hello` is a future of its first message, `dead` one of its `Death`."""

    def __init__(self, interpreter: str, generation: int, environment: dict[str, str], folder: str, arguments: list[str]) -> None:
        self.interpreter = interpreter
        self.generation = generation
        self.name = f"worker_{generation}"
        self.started = time.time()
        self.lane: str | None = None
        """Lane of its pool."""
        self.idle_since = time.monotonic()
        loop = asyncio.get_running_loop()
        self.hello: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.dead: asyncio.Future[Death] = loop.create_future()
        self.listener: Listener | None = None
        self.fresh = True
        """True until it gets its first task."""
        self.variables: tuple[tuple[str, str | None], ...] = ()
        """Environment variables changed at its start."""
        self.environment: ExecutionEnvironment | None = None
        """Only environment whose tasks it may run, set when it is prepared for one."""
        self.imports: frozenset[str] = frozenset()
        """Modules of its `PREPARE` frames."""
        self.prepared: asyncio.Future[None] = loop.create_future()
        """Done when it has imported the modules of its last `PREPARE` frame; cancelled when it has ended."""
        self.burst: str | None = None
        """Burst of calls that it serves."""
        self.killed_by_us: str | None = None
        self.signalled, self.left_frames = False, False
        """True after a signal was sent to it, and after it ended with unread frames."""
        # `wait4` counts more towards the worker's peak: the runtime's memory, which it shared at its vfork, and the processes that earlier
        # tasks started. A peak up to this value is not that of the running task.
        self._foreign_peak = own_peak()
        secret = secrets.token_hex(8)
        self._process, data, self._control, out, err = _spawn(interpreter, generation, environment, folder, arguments, secret)
        self.pid = self._process.pid
        marker = display_marker(secret)
        self.stdout = OutputPipe(out, loop, marker, partial(self._printed, "stdout"))
        self.stderr = OutputPipe(err, loop, marker, partial(self._printed, "stderr"))
        self._written = select.poll()
        self._written.register(out, select.POLLIN)
        self._written.register(err, select.POLLIN)
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._connecting = loop.create_task(self._connect(data))
        self._reaped = False
        self._lost = asyncio.Event()
        self._ending = select.poll()
        self._pidfd = _pidfd(self.pid)
        if self._pidfd is not None:
            self._ending.register(self._pidfd, select.POLLIN)
            loop.add_reader(self._pidfd, self._reap)
        else:
            loop.call_later(REAP_POLL, self._poll_death)

    async def _connect(self, ours: socket.socket) -> None:
        transport, _ = await self._loop.create_unix_connection(lambda: _Reader(self), sock=ours)
        self._transport = transport

    async def ready(self, seconds: float) -> None:
        """Wait for the first message; kill a worker that is not ready after `seconds`, and raise `EngineError` or a subclass."""
        try:
            await asyncio.wait_for(asyncio.shield(self.hello), seconds)
        except asyncio.TimeoutError:
            self.killed_by_us = f"it was not ready after {seconds:g} s"
            self.signal_group(signal.SIGKILL)
            raise EngineError(f"The worker of {self.interpreter} was not ready after {seconds:g} s") from None

    # Frames from the worker

    def on_frame(self, kind: Kind, body: dict[str, Any], payload: bytes) -> None:
        """Handle a complete frame."""
        if kind is Kind.HELLO:
            if body.get("protocol") != PROTOCOL:
                raise BrokenFrame(f"protocol {body.get('protocol')} instead of {PROTOCOL}")
            if not self.hello.done():
                self.hello.set_result(body)
        elif kind is Kind.PREPARED:
            if not self.prepared.done():
                self.prepared.set_result(None)
        elif self.listener is not None:
            if kind not in (Kind.PROGRESS, Kind.TOKEN) and self._written.poll(0):
                self.stdout.drain()
                self.stderr.drain()
            if kind in (Kind.RESULT, Kind.RAISED, Kind.NEEDS_MEMORY):
                self._foreign_peak = max(self._foreign_peak, body["children_peak"])
            self.listener.frame(kind, body, payload)
            if kind is Kind.DISPLAY:
                self.stdout.skip_marker()
                self.stderr.skip_marker()

    def _printed(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        if self.listener is not None:
            self.listener.printed(stream, text)

    def broken(self, problem: Exception) -> None:
        """Kill the process after an invalid frame, because no further frame can be trusted."""
        self.killed_by_us = self.killed_by_us or f"it broke the protocol ({problem})"
        self.signal_group(signal.SIGKILL)

    def on_disconnect(self, *, unread: bool) -> None:
        """Handle the end of the data channel: the process is ending, or a task closed the channel."""
        self.left_frames = unread
        self._lost.set()
        self._loop.call_later(1.0, self._end_silent)

    def _end_silent(self) -> None:
        if not self._reaped:
            self.killed_by_us = self.killed_by_us or "it closed its connection to the runtime"
            self.signal_group(signal.SIGKILL)

    # Frames and signals to the worker

    def send(self, kind: Kind, body: bytes) -> None:
        """Send a frame without waiting; it is buffered until the worker reads it."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(kind, self.generation, body))

    @property
    def unread(self) -> bool | None:
        """True if sent frames are still unread; None if the system cannot report it."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return None
        if transport.get_write_buffer_size():
            return True
        if not sys.platform.startswith("linux"):
            return None
        waiting = array("i", [0])
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, waiting)
        return waiting[0] > 0

    @property
    def stopped(self) -> bool:
        """True if a signal or a debugger has stopped the process."""
        try:
            return psutil.Process(self.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        except psutil.Error:
            return False

    def hold_output(self, held: bool) -> None:
        """Stop reading frames and text, so that the task waits at its next output, or continue."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if held:
                transport.pause_reading()
            else:
                transport.resume_reading()
        self.stdout.hold(held)
        self.stderr.hold(held)

    def interrupt(self, task_id: str) -> None:
        """Request a KeyboardInterrupt in that task; ignored unless the worker is running it."""
        with contextlib.suppress(OSError):  # full or closed; the next stage of the cancel follows
            self._control.send(json.dumps({"interrupt": task_id}).encode() + b"\n")

    def signal_group(self, number: int) -> None:
        """Send a signal to the worker and all processes that its tasks started."""
        if not self._reaped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
                self.signalled = True

    @property
    def alive(self) -> bool:
        """True while the process is running, according to the operating system: the loop may not have processed its end yet."""
        return not self._reaped and not (self._pidfd is not None and self._ending.poll(0))

    def prepare(self, environment: ExecutionEnvironment, modules: list[str]) -> bool:
        """Import these modules in the worker, which from then on runs only tasks of that environment.

        Return False if all of them are already imported.
        """
        new = [name for name in modules if name not in self.imports]
        if self.environment == environment and not new:
            return False
        self.environment, self.imports = environment, self.imports.union(new)
        self.prepared = self._loop.create_future()
        self.send(Kind.PREPARE, dumps({"directory": environment.directory, "path": environment.path, "modules": new}))
        return True

    def leave(self) -> None:
        """Request the worker to exit when it is idle."""
        self.send(Kind.LEAVE, b"{}")

    # End of the process

    def _poll_death(self) -> None:
        if not self._reaped and not self._reap():
            self._loop.call_later(REAP_POLL, self._poll_death)

    def _reap(self) -> bool:
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:  # other code in this process reaped it
            pid, status, usage = self.pid, 0, None
        if pid == 0:
            return False
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._reaped = True
        self.hold_output(False)
        peak = max_resident(usage) if usage is not None else 0
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # processes that its tasks started must not survive, nor keep the pipes open
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._loop.create_task(self._close(Death(status, peak if peak > self._foreign_peak else None)))
        return True

    async def _close(self, death: Death) -> None:
        await self._connecting
        with contextlib.suppress(asyncio.TimeoutError):  # read the frames that it sent before its end
            await asyncio.wait_for(self._lost.wait(), 1.0)
        self.stdout.drain(everything=True)
        self.stderr.drain(everything=True)
        self.stdout.close()
        self.stderr.close()
        self._control.close()
        if self._transport is not None:
            self._transport.close()
        if not self.hello.done():
            self.hello.set_exception(self._why_no_hello(death))
            self.hello.exception()  # marks it as retrieved, in case nothing awaits it
        self.prepared.cancel()
        if not self.dead.done():
            self.dead.set_result(death)

    def _why_no_hello(self, death: Death) -> EngineError:
        text = self.last_output()
        if "No module named openruntime_jupyter" in text or "No module named 'openruntime_jupyter" in text:
            return InterpreterError(missing_package(self.interpreter))
        if self.killed_by_us:
            return InterpreterError(
                f"The worker of {self.interpreter} was stopped: {self.killed_by_us}. "
                f"Install the same openruntime-jupyter there: {install_command(self.interpreter)}"
            )
        output = f"Its output: {text[-800:] or 'none'}"
        if death.signal is not None:
            return WorkerKilled(f"The worker of {self.interpreter} was killed by signal {death.signal} before it was ready. {output}")
        return EngineError(f"The worker of {self.interpreter} ended before it was ready. {output}")

    def failure(self, death: Death, peak: int | None = None, loading: str | None = None) -> Failure:
        """Return the failure of a task that this worker ran when it died; `peak` is in bytes, `loading` the model that it was loading."""
        return worker_died(death, peak, self.killed_by_us, self.last_output(), loading)

    def last_output(self) -> str:
        """Return the end of its output as a terminal shows it, with standard error last."""
        parts = (terminal_text(tail, colours=False) for tail in (self.stdout.tail, self.stderr.tail))
        return "\n".join(part for part in parts if part)[-TAIL_CHARACTERS:]


async def start_ready(start: Callable[[], WorkerProcess], seconds: float) -> WorkerProcess:
    """Call `start` and return the worker once it is ready, or another one if it is killed before. Raise `EngineError` or a subclass."""
    for _ in range(START_ATTEMPTS - 1):
        worker = start()
        try:
            await worker.ready(seconds)
        except WorkerKilled as problem:
            log.warning("%s. Starting another worker", problem)
        else:
            return worker
    worker = start()
    await worker.ready(seconds)
    return worker


def _spawn(
    interpreter: str, generation: int, environment: dict[str, str], folder: str, arguments: list[str], marker: str
) -> tuple[subprocess.Popen[bytes], socket.socket, socket.socket, int, int]:
    """Start a worker and return it with the runtime's ends of its data and control channels, and of its output pipes.

    Raises `EngineError` or a subclass.
    """
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        try:
            data, their_data = _connection(ours, theirs)
            control, their_control = _connection(ours, theirs)
            out, their_out = _pipe(ours, theirs)
            err, their_err = _pipe(ours, theirs)
            descriptors = (their_data.fileno(), their_control.fileno())
            command = [interpreter, "-m", "openruntime_jupyter.worker", *map(str, descriptors), str(generation), str(os.getpid()), marker]
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=their_out,
                stderr=their_err,
                pass_fds=descriptors,
                start_new_session=True,
                cwd=folder,
                env=environment,
            )
        except OSError as problem:
            raise not_started(interpreter, problem) from None
        ours.pop_all()
    data.setblocking(False)
    control.setblocking(False)
    return process, data, control, out, err


def _pidfd(pid: int) -> int | None:
    """Return a descriptor that is readable once the process has ended; None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _connection(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """Return the parent's and the worker's end of a connection."""
    here, there = socket.socketpair()
    return ours.enter_context(here), theirs.enter_context(there)


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    """Return the reading end for the parent and the writing end for the worker. Python before 3.12 leaks those of a failing `Popen`."""
    reading, writing = os.pipe()
    ours.callback(os.close, reading)
    theirs.callback(os.close, writing)
    return reading, writing


def worker_environment(
    base: Mapping[str, str], temporary: Path, secret: frozenset[str] = frozenset(), changes: Mapping[str, str | None] | None = None
) -> dict[str, str]:
    """Return the environment variables of a worker: `base` with the caller's `changes`, without secrets."""
    merged = {**base, **(changes or {})}
    environment: dict[str, Any] = {
        name: value for name, value in merged.items() if value is not None and name not in secret and not is_secret(name)
    }
    environment["OPENRUNTIME_WORKER"] = "1"
    environment["PYTHONSAFEPATH"] = "1"
    environment["TMPDIR"] = str(temporary)
    environment.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # plots are shown, as in a kernel
    if sys.platform.startswith("linux"):
        tunables = environment.get("GLIBC_TUNABLES", "")
        if "glibc.malloc.hugetlb" not in tunables:
            environment["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, "glibc.malloc.hugetlb=1")))
    return environment


CHUNK = 65536
BUDGET = 1 << 20
"""Maximum bytes read from one pipe per `REFILL` seconds; a faster writer waits, so that it cannot keep the loop busy."""
REFILL = 0.1


class OutputPipe:
    """Reader of a pipe. It passes text to `on_text` and keeps its end in `tail`."""

    def __init__(self, descriptor: int, loop: asyncio.AbstractEventLoop, marker: bytes, on_text: Callable[[str], None]) -> None:
        self.tail = ""
        self._on_text = on_text
        self._unfinished = False
        self._marker = marker
        self._raw = b""
        self._descriptor = descriptor
        self._loop = loop
        self._left = BUDGET
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._open = True
        self._paused = False
        self._held = False
        self._refill: asyncio.TimerHandle | None = None
        os.set_blocking(descriptor, False)
        loop.add_reader(descriptor, self._readable)

    def _readable(self) -> None:
        if self._left <= 0 or self._held:
            self._loop.remove_reader(self._descriptor)
            self._paused = True
        else:
            self._read()
        if self._refill is None and self._open:
            self._refill = self._loop.call_later(REFILL, self._resume)

    def _resume(self) -> None:
        self._refill = None
        self._left = BUDGET
        if self._paused and self._open and not self._held:
            self._paused = False
            self._loop.add_reader(self._descriptor, self._readable)

    def hold(self, held: bool) -> None:
        """Stop reading, so that a writer waits once the pipe is full, or continue."""
        self._held = held
        if not held and self._refill is None:
            self._resume()

    def _read(self) -> bool:
        """Read one chunk. Return False if none is available."""
        try:
            data = os.read(self._descriptor, CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self._unfinished = True
        self._left -= len(data)
        self._raw += data
        self._advance()
        return True

    def _advance(self) -> None:
        """Emit the text up to the next marker, or all except a possible beginning of a marker."""
        end = self._raw.find(self._marker)
        if end < 0:
            end = len(self._raw)
            start = self._raw.rfind(self._marker[:1], max(0, end - len(self._marker)))
            if start >= 0 and self._marker.startswith(self._raw[start:]):
                end = start
        text, self._raw = self._raw[:end], self._raw[end:]
        self._emit(self._decoder.decode(text))

    def skip_marker(self) -> None:
        """Emit the text after the current marker, once its rich output has been handled."""
        if self._raw.startswith(self._marker):
            self._raw = self._raw[len(self._marker) :]
            self._advance()

    def _emit(self, text: str) -> None:
        if text:
            self.tail = (self.tail + text)[-TAIL_CHARACTERS:]
            self._on_text(text)

    def begin(self) -> None:
        """Clear `tail` at the start of a task."""
        self.tail = ""

    def drain(self, everything: bool = False) -> None:
        """Read the text that is available now, which the task wrote before its result."""
        most = BUDGET if everything else 4 * CHUNK
        read = 0
        while self._open and read < most and self._read():
            read += CHUNK

    def finish_text(self) -> None:
        """Emit the remaining text at a task's end, including an incomplete character."""
        if not self._unfinished:
            return
        self._unfinished = False
        rest, self._raw = self._raw.replace(self._marker, b""), b""
        self._emit(self._decoder.decode(rest, final=True))
        self._decoder.reset()

    def close(self) -> None:
        """Stop reading."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            if self._refill is not None:
                self._refill.cancel()


INTERVAL = 0.1
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class _Watched:
    read: Callable[[], int]
    close: Callable[[], None]
    peak_reset: int | None
    """Descriptor of `/proc/PID/clear_refs`; opening it for each task would take 10 µs. None where the system has no such file."""
    task_id: str | None = None
    limit: int = 0
    resident: int = 0
    lowest: int | None = None
    peak: int = 0

    def reset_peak(self) -> bool:
        """Set the kernel's peak of the process's resident memory to the present value. Return False if that is not possible."""
        try:
            return self.peak_reset is not None and os.write(self.peak_reset, b"5") > 0
        except OSError:
            return False

    def release(self) -> None:
        """Close the descriptors."""
        self.close()
        if self.peak_reset is not None:
            os.close(self.peak_reset)


def _reader(pid: int) -> tuple[Callable[[], int], Callable[[], None]]:
    """Return functions that read a process's resident bytes (1.5 µs with an open descriptor on Linux) and close the reader."""
    try:
        descriptor = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        process = psutil.Process(pid)
        return lambda: process.memory_info().rss, lambda: None
    return lambda: int(os.pread(descriptor, 200, 0).split()[1]) * PAGE, lambda: os.close(descriptor)


def _open_peak_reset(pid: int) -> int | None:
    try:
        return os.open(f"/proc/{pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:  # only Linux has this file
        return None


def resident_bytes(pid: int) -> int | None:
    """Return the resident bytes of a process; None if it has ended or cannot be read."""
    try:
        read, close = _reader(pid)
        try:
            return read()
        finally:
            close()
    except (OSError, IndexError, psutil.Error):
        return None


class Watchdog:
    """Thread that reads the resident memory of every busy worker ten times a second and reports those above their limit.

    Rlimits are not used, because MLX crashes with a segmentation fault when it reaches one. The thread calls `on_excess(task_id)` once per
    task, and `on_reading()` at every reading while tasks run.
    """

    def __init__(self, on_excess: Callable[[str], None], on_reading: Callable[[], None] = lambda: None) -> None:
        self._on_excess = on_excess
        self._on_reading = on_reading
        self._watched: dict[int, _Watched] = {}
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def ensure_running(self) -> None:
        """Start the thread, or another one if it has died."""
        if self._thread is not None:
            if self._thread.is_alive():
                return
            log.error("The watchdog of the workers' memory has ended and is started again. This is a bug in openruntime.")
        self._thread = threading.Thread(target=self._run, name="openruntime-watchdog", daemon=True)
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Stop the thread within `deadline` seconds."""
        self._closed = True
        self._work.set()
        if self._thread is not None:
            self._thread.join(deadline)
        for pid in tuple(self._watched):
            self.forget(pid)

    def watch(self, pid: int, task_id: str, limit: int) -> bool:
        """Watch a process that runs a task and may use up to `limit` bytes.

        Return whether the kernel's peak of its memory, which `wait4` reports at its end, is that of this task from now on.
        """
        watched = self._watched.get(pid)
        if watched is None:
            try:
                watched = _Watched(*_reader(pid), _open_peak_reset(pid))
            except (OSError, psutil.Error):  # it has ended, which its owner notices independently
                return False
            with self._lock:
                self._watched[pid] = watched
        watched.limit, watched.peak, watched.lowest, watched.task_id = limit, 0, None, task_id
        if not self._work.is_set():
            self._work.set()
        return watched.reset_peak()

    def unwatch(self, pid: int) -> int:
        """Stop watching an idle process. Return its peak in bytes, 0 if it was never read."""
        watched = self._watched.get(pid)
        if watched is None:
            return 0
        watched.task_id = None
        return watched.peak

    def forget(self, pid: int) -> None:
        """Remove a process that has ended."""
        with self._lock:
            watched = self._watched.pop(pid, None)
            if watched is not None:
                watched.release()

    def growth(self, pid: int) -> int:
        """Return the bytes from the lowest reading since the task began to the last one; 0 without a reading."""
        watched = self._watched.get(pid)
        return watched.resident - watched.lowest if watched is not None and watched.lowest is not None else 0

    def resident(self, pid: int) -> int | None:
        """Return the last reading since the task began; None without one."""
        watched = self._watched.get(pid)
        return watched.resident if watched is not None and watched.task_id is not None and watched.lowest is not None else None

    def _run(self) -> None:
        while not self._closed:
            if not self._read_all():
                self._work.clear()
                # Check again, for tasks that started between the reading and the clearing.
                if not any(watched.task_id for watched in tuple(self._watched.values())):
                    self._work.wait()
            time.sleep(INTERVAL)

    def _read_all(self) -> bool:
        busy = False
        with self._lock:
            for watched in self._watched.values():
                task_id = watched.task_id
                if task_id is None:
                    continue
                busy = True
                try:
                    watched.resident = watched.read()
                except (OSError, IndexError, psutil.Error):
                    continue
                watched.peak = max(watched.peak, watched.resident)
                watched.lowest = watched.resident if watched.lowest is None else min(watched.lowest, watched.resident)
                if watched.limit and watched.resident > watched.limit:
                    watched.limit = 0
                    self._on_excess(task_id)
        if busy:
            self._on_reading()
        return busy
