"""Messages between a runtime and agents: every value arrives as it was, and anything else is rejected with a reason."""

from __future__ import annotations

import math
from typing import Any

import pytest

from openruntime_jupyter.engines.hosts.messages import (
    PROTOCOL,
    DeviceHolder,
    Discard,
    Displayed,
    Ended,
    GpuState,
    Halt,
    Hello,
    InvalidMessage,
    Message,
    Ping,
    Printed,
    Run,
    RunState,
    State,
    StoredModels,
    Welcome,
    decode,
    encode,
)
from openruntime_jupyter.engines.hosts.shared_folders import FolderProof
from openruntime_jupyter.engines.protocol import (
    Completed,
    DeviceReport,
    DeviceTaken,
    Died,
    ExecutionEnvironment,
    Job,
    Measurements,
    ModelReport,
    ModelUse,
    NeedsMemory,
    RaisedError,
    SessionUse,
    Stage,
    Stopped,
    StopReason,
    StoredArray,
    WorkerReport,
)
from openruntime_jupyter.schemas.tasks import Failure, FailureKind
from openruntime_jupyter.schemas.values import ModelSource

JOB = Job("task_1", "python", b'{"code":"1"}', "device_0", "cpu", 0, 8 << 30, 7 << 30, 2, "task_1.1")


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


MESSAGES: list[Message] = [
    Hello(PROTOCOL, "1.0", "rt_1"),
    Run(1, JOB),
    Run(
        2, Job("t", "call", b"\xff", "l", "gpu", 1, None, 1, 1, "t.2", environment=ExecutionEnvironment("/a\udcff", ("b",), (("C", None),)))
    ),
    Run(
        3,
        Job(
            "t", "chat", b"", "l", "gpu", 1, 1, 1, 1, "t.2", model=ModelUse(ModelSource("m", "/m", "gguf"), 3.0), session=SessionUse("s", 1)
        ),
    ),
    Halt(1, StopReason.TIMED_OUT),
    Ping(),
    Printed(1, "stderr", "a\x00\udcffü"),
    Displayed(1, {"output_type": "display_data", "data": {"deep": nested(300), "number": math.inf}, "metadata": {}}),
    Ended(1, Completed({"list": [1, None]}, Measurements(0.1, 2, 3), payload=b"\x00\xff", payload_size=2)),
    Ended(2, Completed({}, Measurements(), payload=b"", arrays=(StoredArray("a", (2, 3), "float32", "mlx", 0),))),
    Ended(3, RaisedError(Failure(kind=FailureKind.RAISED, message="\udcff", type="E"), Measurements())),
    Ended(4, Died(Failure(kind=FailureKind.WORKER_DIED, message="it died"), no_worker=True)),
    Ended(5, Stopped(StopReason.CANCELLED, Stage.KILL, Measurements(), Failure(kind=FailureKind.CANCELLED, message=""))),
    Ended(6, NeedsMemory(5, Measurements())),
    Ended(7, DeviceTaken()),
    DeviceHolder("device_0", "http://far runs a task"),
    DeviceHolder("device_0", None),
    Welcome(
        "1.0",
        "3.11.2",
        "Linux x86_64",
        "boot",
        4,
        5,
        (DeviceReport("cpu", 0, "CPU", None, ("unified_memory",), "0.3"),),
        "/f",
        (FolderProof("/a", "1", "/b", "2"),),
    ),
    StoredModels((ModelSource("m", "/m", "gguf", 5),)),
    Discard((1, 2), ("a",), ("b",)),
    State(
        1,
        2,
        None,
        {"device_0": GpuState(99.5, 1, 2)},
        {"device_1": "no NVML"},
        (WorkerReport("worker_1", "busy", None, 1.5, "python", session=SessionUse("s", 2, "name")),),
        (ModelReport("m", "device_0", "idle", 5, 3.0, 0.1),),
        {7: RunState(1, None)},
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_arrives_unchanged(message: Message) -> None:
    assert decode(*encode(message)) == message


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "JSONDecodeError"),
        (b"\x80\x04K\x01.", "UnicodeDecodeError"),
        (b"[]", "TypeError"),
        (b"7", "AttributeError"),
        (b"{}", "KeyError: 'type'"),
        (b'{"type":"system"}', "KeyError: 'system'"),
        (b'{"type":"Run","number":1}', "Run.job: Field required"),
        (b'{"type":"Printed","number":1,"stream":"log","text":""}', "Printed.stream: Input should be 'stdout' or 'stderr'"),
        (b'{"type":"Ended","number":1,"kind":"other","outcome":{}}', "KeyError: 'other'"),
        (b'{"type":"Ended","number":1,"kind":"stopped","outcome":{"reason":"x","stage":"kill","measurements":{}}}', "Stopped.reason"),
    ],
)
def test_anything_else_is_rejected(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessage, match=reason):
        decode(body, b"")
