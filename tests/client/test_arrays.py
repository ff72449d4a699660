"""Arrays as inputs and results of tasks with every backend: through files, and over HTTP as from another machine."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from openruntime_jupyter.arrays import pickling
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.embedded import EmbeddedBackend
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.errors import ArrayNotFound, InvalidRequest, TaskFailed, Unavailable
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.endpoints import GET_ARRAY, GET_TASK, LIST_ARRAYS
from tests.client.conftest import over_http
from tests.support import Server, running_server, wait_until

LARGE = 100_000
"""float32 elements of an array that does not stay in a pickle."""
QUOTA = 40_000_000
NOBODY = 65_534
"""The id of a user who owns nothing."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = {"OpenRuntimeApp": {"cpu_slots": 1, "array_bytes": QUOTA}}
    with running_server(tmp_path_factory.mktemp("arrays"), base_url="/user/x/", config=config) as running:
        yield running


@pytest.fixture(scope="module", params=["http", "remote", "embedded"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Return backends of a local server, a server without shared files, and an embedded runtime."""
    if request.param == "embedded":
        embedded = EmbeddedBackend(Settings(data_dir=tmp_path_factory.mktemp("embedded"), embedded=True, cpu_slots=1, array_bytes=QUOTA))
        yield embedded
        embedded.stop()
        return
    running: Server = request.getfixturevalue("server")
    http = HttpBackend(running.url, running.token)
    http.local = request.param == "http"
    yield http
    http.close()


@pytest.fixture
def client(backend: Backend) -> Iterator[Client]:
    with Client(backend) as client:
        yield client


def ids(client: Client) -> set[str]:
    """Return the ids of the arrays in the spool."""
    return {each.id for each in client.backend.call(LIST_ARRAYS).arrays}


def test_arrays_go_in_and_come_back_bit_for_bit(client: Client) -> None:
    generator = np.random.default_rng(3)
    sent = {
        "float32": generator.integers(0, 256, 4 * LARGE, dtype=np.uint8).view(np.float32),  # NaNs of every kind
        "big": np.arange(LARGE, dtype=">f8").reshape(-1, 10),
        "strided": np.arange(4 * LARGE, dtype=np.int32).reshape(-1, 4)[::-2, 1:3],
        "bfloat16": generator.random(2 * LARGE).astype(ml_dtypes.bfloat16),
        "complex128": generator.random(LARGE) + 1j,
        "small": np.array([1, 2], np.uint8),
        "text": "plain",
    }
    back = client.call(lambda value: value, sent)
    assert back.keys() == sent.keys()
    for name, array in sent.items():
        if isinstance(array, np.ndarray):
            assert back[name].shape == array.shape
            assert (
                back[name].astype(back[name].dtype.newbyteorder("<")).tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
            ), name
    assert back["text"] == "plain"


@over_http
@given(data=st.data())
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_array_of_any_size_comes_back_as_it_was(client: Client, data: st.DataObject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickling, "SMALL", 1)
    array = data.draw(
        hnp.arrays(hnp.floating_dtypes(endianness="?") | hnp.integer_dtypes(endianness="?"), hnp.array_shapes(min_dims=0, min_side=0))
    )
    back = client.call(lambda value: value, array)
    assert back.shape == array.shape
    assert (
        np.ascontiguousarray(back, back.dtype.newbyteorder("<")).tobytes()
        == np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    )


@over_http
def test_mlx_arrays_are_mlx_arrays_on_both_sides(client: Client) -> None:
    def double(array: Any, small: Any) -> Any:
        import mlx.core as mx

        return [isinstance(array, mx.array), array * 2, small + 1]

    sent = mx.arange(LARGE * 2).astype(mx.bfloat16)
    was_mlx, doubled, small = client.call(double, sent, mx.array([1, 2]))
    assert was_mlx
    assert isinstance(doubled, mx.array)
    assert doubled.dtype == mx.bfloat16
    assert mx.array_equal(doubled, sent * 2)
    assert small.tolist() == [2, 3]


def test_operations_take_arrays_of_any_size_among_their_parameters(client: Client) -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert client.run("mlx_operation", function="matmul", args=[a, mx.array([1.0, 2.0, 3.0])])["result"]["value"] == [8.0, 26.0]
    large = np.full((400, 400), 0.5, np.float32)
    assert client.run("compute", expression="max(x @ y) + n", inputs={"x": large, "y": large, "n": np.float32(1)})["value"] == 101.0
    assert client.run("python", code="pass", inputs={"x": large}) == {}


def test_a_cells_inputs_and_outputs_travel_without_pickle_and_json(client: Client) -> None:
    x = np.arange(LARGE, dtype=np.float32)
    handle = client.submit_code("y = {'twice': x * 2, 'kept': [x]}\nx[:] = 0", {"x": x, "n": 1}, ("y", "n"))
    y = handle.result()["y"]
    assert (y["twice"] == x * 2).all()
    assert (y["kept"][0] == 0).all()
    assert x[-1] == LARGE - 1, "the cell had a copy"
    task = client.backend.call(GET_TASK, handle.id)
    assert task.parameters is not None
    assert len(task.parameters["pickled"]) < 2000
    assert task.result is not None
    assert task.result.payload is not None
    assert task.result.payload.size < 2000
    y["twice"][0] = 7
    assert handle.result()["y"]["twice"][0] == 0, "what is changed here is changed here alone"


def test_inputs_go_when_their_task_has_ended_and_results_stay_with_it(client: Client) -> None:
    before = ids(client)
    handle = client.submit_call(lambda value: value + 1, np.ones(LARGE, np.float32))
    assert (handle.result() == 2).all()
    assert (handle.result() == 2).all()
    wait_until(lambda: len(ids(client) - before) == 1, what="the input's end")
    handle.purge()
    assert ids(client) <= before


def test_a_result_stays_readable_after_its_task_is_erased_and_as_long_as_a_slice_of_it_lives(client: Client) -> None:
    handle = client.submit_call(np.arange, LARGE * 4)
    part = handle.result()[-3:]
    result = handle.task.result
    assert result is not None
    gone = result.arrays[0].id
    gc.collect()
    handle.purge()
    assert part.tolist() == [LARGE * 4 - 3, LARGE * 4 - 2, LARGE * 4 - 1]
    with pytest.raises(ArrayNotFound, match=gone):
        client.backend.call(GET_ARRAY, gone)


def test_a_submission_that_is_refused_leaves_no_array(client: Client) -> None:
    before = ids(client)
    large = np.ones(LARGE, np.float32)
    with pytest.raises(InvalidRequest, match="no_such"):
        client.run("mlx_operation", function="no_such", args=[large])
    with pytest.raises(InvalidRequest, match="can't be pickled"):
        client.call(lambda *values: None, large, threading.Lock())
    with pytest.raises(TaskFailed):
        client.call(lambda value: 1 / 0, large)
    wait_until(lambda: ids(client) <= before, what="the end of what was sent")


def test_more_than_there_is_room_for_is_refused_with_figures(client: Client) -> None:
    with pytest.raises(InvalidRequest, match=r"exceed the quota of 40\.0 MB"):
        client.call(len, np.ones(QUOTA, np.uint8))
    with pytest.raises(Unavailable, match=r"array_bytes"):
        client.call(lambda *values: None, np.ones(QUOTA // 2, np.uint8), np.zeros(QUOTA // 2, np.uint8))
    with pytest.raises(TaskFailed, match=r"does not fit: the current limit is"):
        client.call(np.zeros, QUOTA)
    assert client.call(lambda value: value.sum(), np.ones(QUOTA // 2, np.uint8)) == QUOTA // 2


def test_many_large_results_one_after_the_other_make_room_for_each_other(client: Client) -> None:
    for number in range(4):  # one more than there is room for
        assert client.call(np.full, QUOTA // 3, number, np.uint8)[-1] == number


@over_http
def test_map_sends_arrays_outside_too(client: Client) -> None:
    before = ids(client)
    items = [np.full(LARGE, number, np.float32) for number in range(4)]
    results = client.map(lambda item: item + 1, items, chunk_size=2)
    assert [result[0] for result in results] == [1, 2, 3, 4]
    del results
    assert len(ids(client) - before) <= 4, "the inputs have gone"


@pytest.mark.skipif(os.geteuid() != 0 or not hasattr(os, "setresuid"), reason="only root can be somebody else for a while")
def test_a_server_of_another_user_on_this_machine_sends_what_may_not_be_opened(server: Server) -> None:
    client, numbers = Client(HttpBackend(server.url, server.token)), np.arange(LARGE, dtype=np.int32)
    assert client.backend.local
    client.call(np.add, numbers, 1)  # lazy imports are done by now: other users may not read the files
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        back = client.call(np.add, numbers, 1)
    finally:
        os.setresuid(0, 0, 0)
    assert np.array_equal(back, numbers + 1)
    client.close()


@pytest.mark.parametrize("backend", ["http", "embedded"], indirect=True)
def test_a_result_whose_file_is_gone_is_a_clear_error(client: Client) -> None:
    handle = client.submit_call(np.arange, LARGE * 4)
    task = handle.wait()
    assert task.result is not None
    path = client.backend.call(GET_ARRAY, task.result.arrays[0].id).path
    assert path is not None
    Path(path).unlink()
    with pytest.raises(ArrayNotFound, match=r"array .*(deleted|never existed)"):
        handle.result()


@over_http
def test_an_operation_gives_its_whole_value_where_it_is_asked_to(client: Client) -> None:
    left, right = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((3, 2), np.float32)
    product = client.run("compute", expression="a @ b", inputs={"a": left, "b": right}, return_arrays=True)
    assert isinstance(product, mx.array)
    assert np.array_equal(np.array(product), left @ right)
    total = client.run("compute", expression="sum(a)", inputs={"a": left}, return_arrays=True)
    assert (total.shape, total.item()) == ((), 15.0)
    summary = client.run("compute", expression="a @ b", inputs={"a": left, "b": right})
    assert summary["shape"] == [2, 2]


@over_http
def test_a_function_of_several_results_gives_them_all(client: Client) -> None:
    handle = client.submit("mlx_operation", function="linalg.qr", args=[[[2.0, 0.0], [0.0, 3.0]]], return_arrays=True)
    orthogonal, upper = handle.result(30)
    assert np.allclose(np.array(orthogonal) @ np.array(upper), [[2.0, 0.0], [0.0, 3.0]])
    assert [each.shape for each in handle.task.result.arrays] == [[2, 2], [2, 2]]  # type: ignore[union-attr]
    assert len(handle.task.result.output["result"]) == 2  # type: ignore[union-attr]
