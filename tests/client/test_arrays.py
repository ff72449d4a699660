"""Arrays by name, in clients with and without NumPy."""

from __future__ import annotations

import array
import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest

from openruntime_jupyter.arrays.array_layout import SIZES
from openruntime_jupyter.client.array_data import ArrayData
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.sdk import Client as PlainClient
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.errors import ArrayConflict, ArrayNotFound, InvalidRequest


@pytest.fixture
def plain(backend: Backend) -> Iterator[PlainClient]:
    """Return the client of `openruntime-sdk`, with each kind of backend."""
    with PlainClient(backend) as client:
        yield client


def named(dtype: str) -> Any:
    """Return a NumPy array of a type."""
    return np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize("dtype", SIZES)
def test_array_of_each_type_survives(plain: PlainClient, dtype: str) -> None:
    name, value = f"{dtype}-{uuid4().hex}", named(dtype)
    info = plain.arrays.put(name, value)
    assert (info.id, info.shape, info.dtype, info.state) == (name, [2, 3], dtype, "ready")
    found = plain.arrays.get(name)
    assert (found.dtype, found.shape) == (dtype, (2, 3))
    assert found.tolist() == value.tolist()
    raw = np.asarray(found)
    assert raw.tobytes() == value.tobytes()
    assert raw.dtype == (np.uint16 if dtype == "bfloat16" else value.dtype)


@pytest.mark.every_engine
def test_array_is_input_of_tasks_by_its_name(client: Client) -> None:
    name = f"weights-{uuid4().hex}"
    client.arrays.put(name, np.arange(4.0))
    assert client.run("compute", expression="sum(a)", inputs={"a": {"array": name}})["value"] == 6
    assert name in {each.id for each in client.arrays.list().arrays}
    with pytest.raises(ArrayConflict):
        client.arrays.put(name, np.ones(7))
    assert client.arrays.delete(name).id == name
    with pytest.raises(ArrayNotFound):
        client.arrays.get(name)


def test_client_with_numpy_returns_its_arrays(client: Client) -> None:
    name = f"mine-{uuid4().hex}"
    client.arrays.put(name, mx.array([[1.0, 2.0]], dtype=mx.bfloat16))
    found = client.arrays.get(name)
    assert isinstance(found, np.ndarray)
    assert found.dtype == ml_dtypes.bfloat16
    assert found.tolist() == [[1, 2]]


@pytest.mark.parametrize("value", [array.array("d", [1, 2, 3]), memoryview(array.array("d", [1, 2, 3])), np.array([1.0, 2, 3])])
@pytest.mark.every_engine
def test_arrays_in_parameters_are_sent(plain: PlainClient, value: Any) -> None:
    before = {each.id for each in plain.arrays.list().arrays}
    assert plain.run("compute", expression="sum(a * b)", inputs={"a": value, "b": ArrayData.of(value)})["value"] == 14
    assert {each.id for each in plain.arrays.list().arrays} <= before, "released after the submission"


@pytest.mark.every_engine
def test_result_arrays_are_array_data(plain: PlainClient) -> None:
    found = plain.run("compute", expression="a + 1", inputs={"a": [1, 2]}, return_arrays=True)
    assert isinstance(found, ArrayData)
    assert found.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        (b"\0\0\x80?\0\0\0@", {"dtype": "float32"}, [1.0, 2.0]),
        (b"\x80?\0@", {"dtype": "bfloat16"}, [1.0, 2.0]),
        (b"\1\2\3\4", {"shape": [2, 2]}, [[1, 2], [3, 4]]),
        (np.asfortranarray(np.arange(6).reshape(2, 3)), {}, [[0, 1, 2], [3, 4, 5]]),
        (np.zeros((2, 0), np.float32), {}, [[], []]),
        (np.float64(2.5).reshape(()), {}, 2.5),
        (ArrayData.of(array.array("h", [1, 2])), {"shape": (2, 1)}, [[1], [2]]),
    ],
    ids=lambda each: type(each).__name__,
)
def test_values_become_arrays(value: Any, options: dict[str, Any], expected: Any) -> None:
    assert ArrayData.of(value, **options).tolist() == expected


@pytest.mark.parametrize(
    ("value", "options", "problem"),
    [
        ("text", {}, "a str can't be sent"),
        ([1, 2], {}, "a list can't be sent"),
        (b"123", {"dtype": "float32"}, "has 3 bytes"),
        (b"1234", {"dtype": "float31"}, "unknown dtype"),
        (b"1234", {"shape": [5]}, "of shape"),
        (np.zeros(2, "M8[s]"), {}, "can't be sent"),
        (np.zeros(2, ">f4"), {}, "not supported"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_other_values_are_rejected(value: Any, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        ArrayData.of(value, **options)


def test_arrays_of_asynchronous_client(plain: PlainClient) -> None:
    async def round_trip() -> Any:
        name = f"async-{uuid4().hex}"
        await plain.aio.arrays.put(name, array.array("f", [1, 2]))
        found = await plain.aio.arrays.get(name)
        assert (await plain.aio.arrays.info(name)).shape == [2]
        assert (await plain.aio.arrays.delete(name)).id == name
        return found.tolist()

    assert asyncio.run(round_trip()) == [1, 2]


def test_array_data_needs_no_numpy() -> None:
    code = "import sys; from openruntime_jupyter.client.array_data import ArrayData; ArrayData.of(b'1').tolist(); "
    code += "assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
