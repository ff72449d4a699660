"""Values and arrays of all types and sizes as inputs and results of tasks: through files, over HTTP, and embedded."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import pandas as pd
import pytest

from openruntime_jupyter.arrays.pickling import SMALL
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.embedded import EmbeddedBackend
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.errors import ArrayNotFound, InvalidRequest, TaskFailed, Unavailable
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.endpoints import GET_ARRAY, GET_TASK, LIST_ARRAYS
from tests.support import Server, running_server, wait_until

nn: Any = importlib.import_module("mlx.nn")  # whose names mypy does not find

N = 400_000
"""Elements of an array. Each array is large enough to travel outside of the pickle, as are pickles of more than a megabyte."""
QUOTA = 150_000_000
NOBODY = 65_534
"""The id of a user who owns nothing."""
X = mx.arange(6.0).reshape(2, 3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = {"OpenRuntimeApp": {"cpu_slots": 1, "array_bytes": QUOTA}}
    with running_server(tmp_path_factory.mktemp("values"), base_url="/user/x/", config=config) as running:
        yield running


def connected(server: Server, local: bool) -> Iterator[Client]:
    http = HttpBackend(server.url, server.token)
    http.local = local
    with Client(http) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[Client]:
    """Return a client of a server on this machine."""
    yield from connected(server, local=True)


@pytest.fixture(scope="module")
def remote(server: Server) -> Iterator[Client]:
    """Return a client of a server without shared files."""
    yield from connected(server, local=False)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Return a client of an embedded runtime."""
    backend = EmbeddedBackend(Settings(data_dir=tmp_path_factory.mktemp("embedded"), embedded=True, cpu_slots=1, array_bytes=QUOTA))
    with Client(backend) as client:
        yield client
    backend.stop()


@pytest.fixture(scope="module", params=["http", "remote", "embedded"])
def each_client(request: pytest.FixtureRequest) -> Client:
    """Return clients of all kinds, which differ in how they move large values."""
    client: Client = request.getfixturevalue(request.param)
    return client


@pytest.fixture
def client(http: Client) -> Client:
    """Return the client for what all kinds do before they move a value."""
    return http


def itself() -> Callable[[Any], Any]:
    """Return a local function, which is pickled by value."""
    return lambda value: value


def numbers() -> Any:
    return np.arange(N)


def records() -> Any:
    found = np.zeros(N // 4, dtype=[("id", "<i4"), ("when", "datetime64[ms]"), ("v", ">f8", (2,))])
    found["id"] = np.arange(N // 4)
    return found


def mapped(folder: Any) -> Any:
    np.save(folder / "x.npy", numbers() * 1.0)
    return np.load(folder / "x.npy", mmap_mode="r")


ARRAYS: dict[str, Callable[[Any], Any]] = {
    "dates": lambda folder: numbers().astype("datetime64[s]"),
    "durations": lambda folder: numbers().astype("timedelta64[us]"),
    "records": lambda folder: records(),
    "record array": lambda folder: records().view(np.recarray),
    "big-endian": lambda folder: numbers().astype(">f8"),
    "big-endian integers": lambda folder: numbers().astype(">i2"),
    "big-endian dates": lambda folder: numbers().astype(">M8[D]"),
    "Fortran order": lambda folder: np.asfortranarray(numbers().reshape(-1, 5)),
    "Fortran order of dates": lambda folder: np.asfortranarray(numbers().astype("M8[s]").reshape(-1, 5)),
    "backwards": lambda folder: numbers()[::-1],
    "every third date": lambda folder: numbers().astype("M8[s]")[::3],
    "memory-mapped": mapped,
    "matrix": lambda folder: (numbers() * 1.0).reshape(1, -1).view(np.matrix),
    "long doubles": lambda folder: numbers().astype(np.longdouble),
    "bytes": lambda folder: np.array([b"abc", b"d"] * (N // 2)),
    "text": lambda folder: np.array(["é🎉"] * (N // 4)),
    "void": lambda folder: numbers().view("V8"),
    "float8": lambda folder: (numbers() % 10).astype(ml_dtypes.float8_e4m3fn),
    "int4": lambda folder: (numbers() % 7).astype(ml_dtypes.int4),
    "broadcast": lambda folder: np.broadcast_to(np.float64(3), (N,)),
    "complex": lambda folder: numbers() + 1j,
    "NaNs of every kind": lambda folder: np.random.default_rng(3).integers(0, 256, 4 * N, dtype=np.uint8).view(np.float32),
}


def test_arrays_keep_dtype_order_and_class(each_client: Client, tmp_path: Path) -> None:
    arrays = {name: make(tmp_path) for name, make in ARRAYS.items()}
    assert min(array.nbytes for array in arrays.values()) > SMALL
    back = each_client.call(itself(), arrays)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        check_same_array(name, back[name], array)


def test_array_alone_keeps_dtype_order_and_class(client: Client) -> None:
    array = np.asfortranarray(numbers().astype(">M8[D]").reshape(-1, 5))
    check_same_array("alone", client.call(itself(), array), array)


def check_same_array(name: str, back: Any, array: Any) -> None:
    assert type(back) is type(array), name
    assert (back.dtype, back.dtype.byteorder, back.shape) == (array.dtype, array.dtype.byteorder, array.shape), name
    if array.flags.f_contiguous or array.flags.c_contiguous:
        assert back.flags.f_contiguous == array.flags.f_contiguous, name
    assert np.asarray(back).tobytes() == np.asarray(array).tobytes(), name
    back[..., :1] = back[..., -1:]  # it is writable


def test_masked_array_keeps_mask_and_fill_value(client: Client) -> None:
    array = np.ma.MaskedArray(numbers() * 1.0, numbers() % 2 == 0, fill_value=-9, hard_mask=True)
    back = client.call(itself(), array)
    assert isinstance(back, np.ma.MaskedArray)
    assert (back.data == array.data).all()
    assert (back.mask == array.mask).all()
    assert (back.fill_value, back.hardmask) == (-9, True)
    whole = client.call(itself(), np.ma.MaskedArray(numbers()))
    assert whole.mask is np.ma.nomask


def test_subclass_that_pickles_itself_keeps_what_it_adds(client: Client) -> None:
    space: dict[str, Any] = {"__name__": "__main__", "np": np}
    exec(
        "class Named(np.ndarray):\n"
        "    def __reduce__(self):\n        return _named, (np.asarray(self), self.name)\n"
        "def _named(array, name):\n    found = array.view(Named)\n    found.name = name\n    return found\n",
        space,
    )
    back = client.call(itself(), space["_named"](numbers(), "mine"))
    assert (type(back).__name__, back.name, int(back[-1])) == ("Named", "mine", N - 1)


LARGE: dict[str, Callable[[], Any]] = {
    "bytes": lambda: os.urandom(5 << 20),
    "text": lambda: "é🎉x" * 300_000,
    "list of numbers": lambda: [float(number) for number in range(200_000)],
    "dict of lists": lambda: {str(number): list(range(100)) for number in range(6_000)},
    "nested": lambda: {"x": [numbers(), {"y": (b"z" * 2_000_000,)}], "n": 1},
}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return bool((left == right).all())
    if isinstance(left, (list, tuple)) and len(left) < 10:
        return all(map(same, left, right))
    if isinstance(left, dict) and len(left) < 10:
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right) and type(left) is type(right)


@pytest.mark.parametrize("name", ["text", "nested"])
def test_large_value_travels_both_ways(each_client: Client, name: str) -> None:
    value = LARGE[name]()
    assert same(each_client.call(itself(), value), value)


@pytest.mark.parametrize("name", LARGE)
def test_large_value_goes_in_and_out_of_a_cell(client: Client, name: str) -> None:
    value = LARGE[name]()
    handle = client.submit_code("back = [t]", {"t": value, "n": 1}, ("back", "n"))
    found = handle.result()
    assert same(found["back"][0], value)
    parameters = client.backend.call(GET_TASK, handle.id).parameters
    assert parameters is not None
    assert name == "nested" or parameters["pickled"].keys() == {"array"}


def test_data_frame_with_dates_and_text_travels(client: Client) -> None:
    rows = 50_000  # more than 256 KiB in each column
    frame = pd.DataFrame(
        {
            "when": pd.date_range("2026-01-01", periods=rows, freq="s"),
            "x": np.arange(rows) * 1.0,
            "name": [f"customer {number}" for number in range(rows)],
            "kind": pd.Categorical(["a", "b"] * (rows // 2)),
        },
        index=pd.DatetimeIndex(np.arange(rows).astype("M8[s]")),
    )
    pd.testing.assert_frame_equal(client.call(itself(), frame), frame, check_freq=False)


def test_closures_default_and_global_of_any_size_travel(client: Client) -> None:
    large = {number: f"value {number}" for number in range(60_000)}  # more than a megabyte
    space: dict[str, Any] = {"__name__": "__main__", "large": large}
    exec("def size(extra):\n    return len(large) + extra", space)
    assert client.call(lambda: len(large)) == len(large)
    assert client.call(lambda given=large: len(given)) == len(large)
    assert client.map(space["size"], [1, 2]) == [60_001, 60_002]
    with client.executor() as executor:
        assert executor.submit(space["size"], 3).result() == 60_003
    assert asyncio.run(client.aio.call(space["size"], 4)) == 60_004


def test_map_takes_and_returns_large_items(client: Client) -> None:
    items = [bytes([number]) * 3_000_000 for number in range(3)]
    assert client.map(lambda item: item[::2] + item, items) == [item[::2] + item for item in items]


def test_what_was_sent_is_released_with_its_task(each_client: Client) -> None:
    before = ids(each_client)
    assert each_client.call(len, b"x" * 2_000_000) == 2_000_000
    wait_until(lambda: ids(each_client) <= before, what="the end of the pickle")


def ids(client: Client) -> set[str]:
    """Return the ids of the arrays in the spool."""
    return {each.id for each in client.backend.call(LIST_ARRAYS).arrays}


def test_value_without_room_is_named_with_size_and_setting(each_client: Client) -> None:
    large = bytes(QUOTA)
    with pytest.raises(InvalidRequest, match=r"data: this bytes of 150 MB .*array_bytes") as caught:
        each_client.call(lambda data, number: None, large, 1)
    assert caught.value.details[0]["field"] == "data"
    with pytest.raises(InvalidRequest, match=r"large: this bytes of 150 MB .*array_bytes"):
        each_client.call(lambda: len(large))
    with pytest.raises(InvalidRequest, match=r"big: this ndarray of 150 MB .*array_bytes"):
        each_client.submit_code("", {"small": 1, "big": np.zeros(QUOTA, np.uint8)})
    with pytest.raises(InvalidRequest, match=r"x: this ndarray of 160 MB .*array_bytes"):
        each_client.run("compute", expression="sum(x)", inputs={"x": np.zeros(QUOTA // 4 + 2_500_000, np.float32)})
    with pytest.raises(Unavailable, match=r"b: this bytes of 100 MB .*array_bytes"):
        each_client.call(lambda a, b: None, np.zeros(90_000_000, np.uint8), bytes(100_000_000))


def test_array_that_is_no_parameter_is_named(client: Client) -> None:
    with pytest.raises(InvalidRequest, match=r"parameters\.inputs\.when: a ndarray of dtype datetime64\[s\].*submit_code"):
        client.run("python", code="", inputs={"when": np.zeros(3, "M8[s]")})


def test_result_without_room_is_named_with_size_and_setting(each_client: Client) -> None:
    with pytest.raises(TaskFailed, match=r"The function's result \(ndarray of 160 MB\).*array_bytes"):
        each_client.call(np.zeros, 20_000_000)
    with pytest.raises(TaskFailed, match=r"The output 'big' \(list of 160 MB\).*array_bytes"):
        each_client.submit_code("import numpy as np\nsmall = 1\nbig = [np.zeros(20_000_000)]", outputs=("small", "big")).result()


def test_large_result_that_can_not_travel_is_named(client: Client) -> None:
    code = "import numpy as np, threading\nfine = np.zeros(6_000_000)\nlock = threading.Lock()"
    with pytest.raises(TaskFailed, match=r"The output 'lock' of type lock can't be sent back"):
        client.submit_code(code, outputs=("fine", "lock")).result()


def test_functions_of_mlx_run_as_tasks(client: Client) -> None:
    assert client.call(mx.sum, X).item() == 15
    assert client.call(partial(mx.sum, axis=0), X).tolist() == [3, 5, 7]
    assert client.call(X.sum).item() == 15
    assert mx.array_equal(client.map(mx.sin, [X])[0], mx.sin(X))
    assert client.call(nn.relu, X - 3).tolist() == [[0, 0, 0], [0, 1, 2]]
    with client.executor() as executor:
        assert abs(executor.submit(mx.linalg.norm, X).result().item() - 55**0.5) < 1e-4


def test_model_with_activations_and_optimizer_train_in_a_task(client: Client) -> None:
    def train(model: Any, optimizer: Any, x: Any) -> Any:
        step = nn.value_and_grad(model, lambda m, a: ((m(a) - 1) ** 2).mean())
        losses = []
        for _ in range(20):
            loss, gradients = step(model, x)
            optimizer.update(model, gradients)
            losses.append(loss.item())
        return model, optimizer, losses

    optim: Any = importlib.import_module("mlx.optimizers")
    mx.random.seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.relu, nn.Linear(4, 1), nn.gelu)
    trained, optimizer, losses = client.call(train, model, optim.Adam(optim.cosine_decay(0.1, 100)), X)
    assert losses[-1] < losses[0]
    assert (type(trained), type(optimizer)) == (type(model), optim.Adam)
    assert client.call(lambda tree: tree, trained.parameters()).keys() == trained.parameters().keys()


def test_random_state_starts_the_task_where_the_notebook_is(client: Client) -> None:
    mx.random.seed(1 << 40 | 7)
    state: Any = mx.random.state
    in_task, drawn, back = client.call(lambda s: (s[0].tolist(), mx.random.normal((2,)).tolist(), mx.random.state), state)
    assert in_task == state[0].tolist()
    assert drawn == mx.random.normal((2,)).tolist()
    assert back[0].tolist() == state[0].tolist()
    assert (
        client.call(lambda key: mx.random.normal((2,), key=key).tolist(), mx.random.key(3))
        == mx.random.normal((2,), key=mx.random.key(3)).tolist()
    )


def test_transform_is_refused_with_its_name(client: Client) -> None:
    transform = mx.compile(mx.grad(lambda a: (a * a).sum()))
    advice = "inside the (task|function)"
    with pytest.raises(InvalidRequest, match=advice):
        client.call(transform, X)
    with pytest.raises(InvalidRequest, match=f"transform: .*{advice}"):
        client.call(lambda: transform(X))
    with pytest.raises(InvalidRequest, match=f"function: .*{advice}"):
        client.call(lambda function, a: function(a), [transform], X)
    with pytest.raises(InvalidRequest, match=f"step: .*{advice}"):
        client.submit_code("", {"step": {"inner": transform}, "x": X})
    with pytest.raises(InvalidRequest, match=advice):
        client.call(partial(transform, X))
    with pytest.raises(InvalidRequest, match=advice):
        client.map(transform, [X])
    with pytest.raises(InvalidRequest, match=advice), client.executor() as executor:
        executor.submit(transform, X)


def test_transform_as_a_result_is_refused(client: Client) -> None:
    with pytest.raises(TaskFailed, match=r"The function's result .*can't be sent back.*mx\.grad"):
        client.call(lambda: mx.grad(lambda a: a * a))
    with pytest.raises(TaskFailed, match=r"The output 'g' .*can't be sent back.*mx\.grad"):
        client.submit_code("import mlx.core as mx\ng = mx.vmap(lambda a: a)", outputs=("g",)).result()


def test_mlx_arrays_are_mlx_arrays_on_both_sides(client: Client) -> None:
    def double(array: Any, small: Any) -> Any:
        import mlx.core as mx

        return [isinstance(array, mx.array), array * 2, small + 1]

    sent = mx.arange(N * 2).astype(mx.bfloat16)
    was_mlx, doubled, small = client.call(double, sent, mx.array([1, 2]))
    assert was_mlx
    assert isinstance(doubled, mx.array)
    assert doubled.dtype == mx.bfloat16
    assert mx.array_equal(doubled, sent * 2)
    assert small.tolist() == [2, 3]


def test_operations_take_arrays_of_any_size_among_their_parameters(each_client: Client) -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert each_client.run("mlx_operation", function="matmul", args=[a, mx.array([1.0, 2.0, 3.0])])["result"]["value"] == [8.0, 26.0]
    large = np.full((400, 400), 0.5, np.float32)
    assert each_client.run("compute", expression="max(x @ y) + n", inputs={"x": large, "y": large, "n": np.float32(1)})["value"] == 101.0
    assert each_client.run("python", code="pass", inputs={"x": large}) == {}


def test_a_cells_inputs_and_outputs_travel_without_pickle_and_json(each_client: Client) -> None:
    x = np.arange(N, dtype=np.float32)
    handle = each_client.submit_code("y = {'twice': x * 2, 'kept': [x]}\nx[:] = 0", {"x": x, "n": 1}, ("y", "n"))
    y = handle.result()["y"]
    assert (y["twice"] == x * 2).all()
    assert (y["kept"][0] == 0).all()
    assert x[-1] == N - 1, "the cell had a copy"
    task = each_client.backend.call(GET_TASK, handle.id)
    assert task.parameters is not None
    assert len(task.parameters["pickled"]) < 2000
    assert task.result is not None
    assert task.result.payload is not None
    assert task.result.payload.size < 2000
    y["twice"][0] = 7
    assert handle.result()["y"]["twice"][0] == 0, "what is changed here is changed here alone"


def test_inputs_go_when_their_task_has_ended_and_results_stay_with_it(each_client: Client) -> None:
    before = ids(each_client)
    handle = each_client.submit_call(lambda value: value + 1, np.ones(N, np.float32))
    assert (handle.result() == 2).all()
    assert (handle.result() == 2).all()
    wait_until(lambda: len(ids(each_client) - before) == 1, what="the input's end")
    handle.purge()
    assert ids(each_client) <= before


def test_a_result_stays_readable_after_its_task_is_erased_and_as_long_as_a_slice_of_it_lives(each_client: Client) -> None:
    handle = each_client.submit_call(np.arange, N * 4)
    part = handle.result()[-3:]
    result = handle.task.result
    assert result is not None
    gone = result.arrays[0].id
    gc.collect()
    handle.purge()
    assert part.tolist() == [N * 4 - 3, N * 4 - 2, N * 4 - 1]
    with pytest.raises(ArrayNotFound, match=gone):
        each_client.backend.call(GET_ARRAY, gone)


def test_a_submission_that_is_refused_leaves_no_array(each_client: Client) -> None:
    before = ids(each_client)
    large = np.ones(N, np.float32)
    with pytest.raises(InvalidRequest, match="no_such"):
        each_client.run("mlx_operation", function="no_such", args=[large])
    with pytest.raises(InvalidRequest, match="can't be pickled"):
        each_client.call(lambda *values: None, large, threading.Lock())
    with pytest.raises(TaskFailed):
        each_client.call(lambda value: 1 / 0, large)
    wait_until(lambda: ids(each_client) <= before, what="the end of what was sent")


def test_many_large_results_one_after_the_other_make_room_for_each_other(each_client: Client) -> None:
    for number in range(4):  # one more than there is room for
        assert each_client.call(np.full, QUOTA // 3, number, np.uint8)[-1] == number


@pytest.mark.skipif(os.geteuid() != 0 or not hasattr(os, "setresuid"), reason="only root can be somebody else for a while")
def test_a_server_of_another_user_on_this_machine_sends_what_may_not_be_opened(server: Server) -> None:
    client, numbers = Client(HttpBackend(server.url, server.token)), np.arange(N, dtype=np.int32)
    assert client.backend.local
    client.call(np.add, numbers, 1)  # lazy imports are done by now: other users may not read the files
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        back = client.call(np.add, numbers, 1)
    finally:
        os.setresuid(0, 0, 0)
    assert np.array_equal(back, numbers + 1)
    client.close()


def test_a_result_whose_file_is_gone_is_a_clear_error(client: Client) -> None:
    handle = client.submit_call(np.arange, N * 4)
    task = handle.wait()
    assert task.result is not None
    path = client.backend.call(GET_ARRAY, task.result.arrays[0].id).path
    assert path is not None
    Path(path).unlink()
    with pytest.raises(ArrayNotFound, match=r"array .*(deleted|never existed)"):
        handle.result()


def test_an_operation_gives_its_whole_value_where_it_is_asked_to(client: Client) -> None:
    left, right = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((3, 2), np.float32)
    product = client.run("compute", expression="a @ b", inputs={"a": left, "b": right}, return_arrays=True)
    assert isinstance(product, mx.array)
    assert np.array_equal(np.array(product), left @ right)
    total = client.run("compute", expression="sum(a)", inputs={"a": left}, return_arrays=True)
    assert (total.shape, total.item()) == ((), 15.0)
    summary = client.run("compute", expression="a @ b", inputs={"a": left, "b": right})
    assert summary["shape"] == [2, 2]


def test_a_function_of_several_results_gives_them_all(client: Client) -> None:
    handle = client.submit("mlx_operation", function="linalg.qr", args=[[[2.0, 0.0], [0.0, 3.0]]], return_arrays=True)
    orthogonal, upper = handle.result(30)
    assert np.allclose(np.array(orthogonal) @ np.array(upper), [[2.0, 0.0], [0.0, 3.0]])
    assert [each.shape for each in handle.task.result.arrays] == [[2, 2], [2, 2]]  # type: ignore[union-attr]
    assert len(handle.task.result.output["result"]) == 2  # type: ignore[union-attr]
