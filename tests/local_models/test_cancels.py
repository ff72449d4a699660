"""Cancels of prompts: they do not wait for what llama.cpp and MLX are computing."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from openruntime_jupyter.local_models.llama_cpp import Requests

Receive = Callable[[dict[str, Any]], bool]

MLX = """
import signal, threading, time
import mlx.core as mx
from openruntime_jupyter.local_models.mlx_model import ComputingThread

def compute(size):
    made = mx.random.normal((2000, 2000))
    for _ in range(size):
        made = mx.sort(made, axis=0) * 1.01
    mx.eval(made)

def steps(stop):
    for number in range(100):
        if stop.is_set():
            return
        compute(3)
        if number > 1:
            yield number

thread, stop = ComputingThread(), threading.Event()
thread.run(compute, 1)
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.1)
began = time.perf_counter()
try:
    next(thread.iterate(steps(stop), stop))
except KeyboardInterrupt:
    print(time.perf_counter() - began)
thread.run(compute, 1)
print(time.perf_counter() - began)
"""


def test_interrupt_does_not_wait_for_mlx() -> None:
    done = subprocess.run([sys.executable, "-c", MLX], capture_output=True, text=True, check=True, timeout=120)
    interrupted, following = map(float, done.stdout.split())
    assert interrupted < following - 0.1, "the interrupt waited for the step, or the next caller did not"


def test_only_the_next_request_waits_for_a_batch_of_llama_cpp() -> None:
    batch_ends, asked = threading.Event(), []

    def compute(body: dict[str, Any], receive: Receive) -> None:
        asked.append(body["number"])
        receive({"choices": []})
        assert batch_ends.wait(30)
        assert receive({"choices": []}), "the request is stopped after its batch"

    requests = Requests()
    chunks = requests.chunks(compute, {"number": 1})
    next(chunks)
    chunks.close()
    assert not batch_ends.is_set()
    timer = threading.Timer(0.2, batch_ends.set)
    timer.start()
    began = time.monotonic()
    next(following := requests.chunks(lambda body, receive: receive({"choices": [], **body}), {"number": 2}))
    assert batch_ends.is_set(), "two requests were computed at once"
    assert time.monotonic() - began < 20
    following.close()
    timer.join()


def test_interrupt_ends_the_wait_for_a_batch() -> None:
    batch_ends = threading.Event()
    requests = Requests()
    chunks = requests.chunks(lambda _, receive: receive({"choices": []}) or batch_ends.wait(30), {})
    next(chunks)
    chunks.close()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    interrupted = False
    try:
        requests.wait()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        batch_ends.set()
    requests.wait()
    assert interrupted
