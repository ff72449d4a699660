from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.mlx import calls as _calls
from openruntime_jupyter.operations.mlx_operation import operation
from tests.operations.conftest import inline_value

RNG = np.random.default_rng(11)
A = RNG.uniform(-1, 1, (3, 4)).round(3)
B = RNG.uniform(-1, 1, (4, 5)).round(3)
S = (A @ A.T + 3 * np.eye(3)).round(3)
V = np.array([3.0, -1.0, 2.0, 2.0, 0.5])


def softmax(x: Any) -> Any:
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


AGAINST_NUMPY: list[tuple[str, list[Any], dict[str, Any], Any]] = [
    ("matmul", [A, B], {}, A @ B),
    ("sum", [A], {"axis": [0, 1]}, A.sum()),
    ("sum", [A, 1], {"keepdims": True}, A.sum(1, keepdims=True)),
    ("var", [A], {"axis": 1, "ddof": 1}, A.var(1, ddof=1)),
    ("softmax", [A], {"axis": -1}, softmax(A)),
    ("where", [[[True, False, True, False]], A, 0], {}, np.where([[True, False, True, False]], A, 0)),
    ("transpose", [A, [1, 0]], {}, A.T),
    ("concatenate", [[A, A + 1]], {"axis": 0}, np.concatenate([A, A + 1])),
    ("pad", [A, [[1, 0], [2, 3]]], {"constant_values": 7}, np.pad(A, [[1, 0], [2, 3]], constant_values=7)),
    ("roll", [A, [1, 2], [0, 1]], {}, np.roll(A, [1, 2], [0, 1])),
    ("tensordot", [A, B], {"axes": [[1], [0]]}, A @ B),
    ("einsum", ["ij,jk->ki", A, B], {}, (A @ B).T),
    ("linalg.norm", [A, "inf"], {}, np.linalg.norm(A, np.inf)),
    ("linalg.solve", [S, A], {}, np.linalg.solve(S, A)),
    ("fft.rfft", [A], {"axis": 0}, np.fft.rfft(A, axis=0)),
    ("floor_divide", [[7, -7, 5], 2], {}, np.array([7, -7, 5]) // 2),
    ("remainder", [[7, -7, 5], [3, 3, -3]], {}, np.array([7, -7, 5]) % np.array([3, 3, -3])),
    ("logical_and", [[True, True], [True, False]], {}, [True, False]),
    ("eye", [3], {"k": 1}, np.eye(3, k=1)),
    ("abs", [-3], {}, 3),
]


def plain(value: Any) -> Any:
    """Convert NumPy arrays to lists for JSON."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "expected"), AGAINST_NUMPY, ids=[f"{case[0]}-{n}" for n, case in enumerate(AGAINST_NUMPY)]
)
def test_function_agrees_with_numpy_in_float64(run, function, args, kwargs, expected):
    output = run("mlx_operation", {"function": function, "args": plain(args), "kwargs": kwargs})
    assert output["function"] == function
    assert output["result"]["shape"] == list(np.shape(expected))
    np.testing.assert_allclose(inline_value(output["result"]), expected, rtol=2e-5, atol=2e-6)


def test_several_results_are_a_list(run):
    results = run("mlx_operation", {"function": "linalg.svd", "args": [plain(A)]})["result"]
    u, s, vt = (inline_value(result) for result in results)
    np.testing.assert_allclose(u @ np.diag(s) @ vt[:3], A, atol=1e-5)


def test_large_result_is_summarised(run):
    result = run("mlx_operation", {"function": "add", "args": [{"arange": 5000}, 1]})["result"]
    assert result == {"shape": [5000], "dtype": "int32", "size": 5000, "nbytes": 20_000, "min": 1, "max": 5000, "mean": 2500.5} | {
        "non_finite": 0,
        "value": None,
    }


def test_random_functions_are_reproducible_by_key(run):
    def draw(**kwargs: Any) -> Any:
        return run("mlx_operation", {"function": "random.normal", "args": [[4]], "kwargs": kwargs})["result"]["value"]

    mx.random.seed(3)
    random_state: Any = mx.random.state
    state = [each.tolist() for each in random_state]
    assert draw() == draw(key=0) == draw(key=0)
    assert draw() != draw(key=1)
    assert [each.tolist() for each in random_state] == state


def test_dtypes_are_given_by_name(run):
    assert run("mlx_operation", {"function": "astype", "args": [[1.5, 2.5], "int32"]})["result"]["value"] == [1, 2]
    assert run("mlx_operation", {"function": "zeros", "args": [[2]], "kwargs": {"dtype": "bool"}})["result"]["value"] == [False, False]


def test_iterations_are_timed_after_warm_up(run, monkeypatch):
    calls: list[int] = []
    real = _calls.function

    def counting(module: Any, name: str) -> Any:
        function = real(module, name)
        return lambda *args, **kwargs: (calls.append(1), function(*args, **kwargs))[1]

    monkeypatch.setattr(_calls, "function", counting)
    seconds = run("mlx_operation", {"function": "abs", "args": [[1]], "iterations": 5})["seconds_per_iteration"]
    assert len(calls) == 1 + 1 + 5  # traced, warmed up, timed
    assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"function": "nope"}, "parameters.function: 'nope' is not one of the"),
        ({"function": "take", "args": [[1], 99]}, "parameters.function: take is not available: MLX does not check its indices"),
        ({"function": "abs", "args": [[1], 2]}, "parameters.args: 2 arguments are too many; the signature is abs(a: array, /) -> array"),
        (
            {"function": "sum", "args": [[1]], "kwargs": {"axes": 0}},
            "parameters.kwargs: sum has no parameter 'axes'; the signature is sum(a: array",
        ),
        ({"function": "sum", "args": [{"spool": "x"}]}, "parameters.args.0: spool: unknown field; known fields: random, normal"),
        ({"iterations": 0}, "parameters.iterations: must be greater than or equal to 1"),
        ({"device": "gpu"}, "parameters.device: unknown field; known fields: function, args, kwargs, iterations, return_arrays"),
    ],
)
def test_invalid_parameter_is_named_with_reason(parameters, problem):
    with pytest.raises(InvalidRequest) as refusal:
        operation.validate(parameters)
    assert str(refusal.value).startswith(problem)


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"args": [{"ones": [2, 3]}, {"ones": [2, 3]}]}, "matmul(float32[2, 3], float32[2, 3]): [matmul] Last dimension"),
        ({"function": "softmax"}, "softmax(nothing): invalid arguments; the signature is softmax(a: array"),
        (
            {"function": "sum", "args": [[1, 2]], "kwargs": {"axis": 4}},
            "sum(int32[2], axis=4): Invalid axis 4 for array with 1 dimensions.",
        ),
        ({"function": "sum", "args": [[[1, 2], [3]]]}, "sum([[1, 2], [3]]): Initialization encountered non-uniform length."),
        ({"function": "sum", "args": [[2**70]]}, "a number does not fit its type"),
        ({"function": "linalg.inv", "args": [[[1.0, 2.0], [2.0, 4.0]]]}, "linalg.inv(float32[2, 2])"),
    ],
    ids=str,
)
def test_mlx_error_names_arguments(run, parameters, problem):
    with pytest.raises(InvalidRequest) as refusal:
        run("mlx_operation", parameters)
    assert problem in str(refusal.value)


FATAL = [
    ({"function": "divmod", "args": [3, 0]}, "[0]"),
    ({"function": "floor_divide", "args": [[5, -(2**31)], [0, -1]]}, "[0, -2147483648]"),
    ({"function": "remainder", "args": [[5, -(2**31), 7], [0, -1, 4]]}, "[0, 0, 3]"),
    ({"function": "sum", "args": [{"zeros": [2]}], "kwargs": {"axis": [2**40]}}, "must fit into 32 bits"),
    ({"function": "fft.fft2", "args": [{"ones": [4, 4]}, [2**40, 4]]}, "must fit into 32 bits"),
    ({"function": "random.bernoulli", "args": [0.5, [-(2**63)]]}, "must fit into 32 bits"),
    ({"function": "roll", "args": [{"ones": [4]}, [4, 2**31]]}, "must fit into 32 bits"),
    ({"function": "diff", "args": [{"ones": [4]}, 2**31 - 1]}, "n is 2147483647; the maximum here is 64"),
    ({"function": "quantize", "args": [{"ones": [4, 4]}, 0], "kwargs": {"mode": "mxfp8"}}, "group_size is 0"),
    ({"function": "reshape", "args": [{"zeros": [0]}, [0, -1]]}, "shape can't have both 0 and -1"),
    ({"function": "unflatten", "args": [{"ones": [5, 3]}, 1, [0, 1, -1]]}, "shape can't have both 0 and -1"),
    ({"function": "linalg.lu", "args": [{"zeros": [3, 0]}]}, "an array is empty"),
    ({"function": "linalg.eig", "args": [{"zeros": [0, 0]}]}, "an array is empty"),
    ({"function": "conv1d", "args": [{"ones": [1, 8, 4]}, {"zeros": [4, 0, 4]}]}, "an array is empty"),
    (
        {"function": "conv1d", "args": [{"ones": [1, 8, 4]}, {"ones": [4, 2, 4]}], "kwargs": {"groups": 0}},
        "groups is 0, but must be at least 1",
    ),
    ({"function": "pad", "args": [{"ones": [8, 4]}, 1_000_000, "symmetric"]}, "pad_width is 1000000; the maximum here is 4000"),
    ({"function": "fft.stft", "args": [[1.0, 2.0]], "kwargs": {"n_fft": 10**9}}, "n_fft is 1000000000; the maximum here is 2000"),
    ({"function": "trace", "args": [{"ones": [1, 8, 8, 4]}, 1_000_000, 3, 0]}, "offset is 1000000; the maximum here is 7"),
    ({"function": "reshape", "args": [{"zeros": [0]}, [2, 2**31 - 1, 0]]}, "null"),
]


def test_calls_that_crash_or_hang_mlx_are_rejected():
    """Run in a separate process, because MLX 0.32 crashes or hangs on each of these calls."""
    script = (
        "import json, sys\n"
        "from openruntime_jupyter.errors import InvalidRequest\n"
        "from openruntime_jupyter.operations.mlx_operation import operation\n"
        "from openruntime_jupyter.operations.context import TaskContext\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        result = operation.run(operation.validate(json.loads(line)), TaskContext())['result']\n"
        "        print(json.dumps(result[0]['value'] if isinstance(result, list) else result['value']))\n"
        "    except InvalidRequest as problem:\n"
        "        print(problem)\n"
    )
    lines = "".join(json.dumps(parameters) + "\n" for parameters, _ in FATAL)
    done = subprocess.run([sys.executable, "-c", script], input=lines, capture_output=True, text=True, timeout=60, check=False)
    answers = done.stdout.splitlines()
    for (parameters, expected), answer in zip(FATAL, answers, strict=False):
        assert expected.strip("[]") in answer, parameters
    assert len(answers) == len(FATAL), FATAL[len(answers)]
    assert done.returncode == 0


def test_integer_division_corner_cases_equal_numpy():
    for dtype in (mx.int8, mx.int32, mx.int64, mx.uint8, mx.uint32):
        low = -(2 ** (8 * dtype.size - 1)) if mx.issubdtype(dtype, mx.signedinteger) else 0
        x = mx.array([low, low + 1, 7, 5, 0, 100], dtype=dtype)
        y = mx.array([0, 3, 0, 2, 0, 7], dtype=dtype)
        with np.errstate(all="ignore"):
            quotients, remainders = np.divmod(np.array(x), np.array(y))
        assert _calls.function(mx, "floor_divide")(x, y).tolist() == quotients.tolist()
        assert _calls.function(mx, "remainder")(x, y).tolist() == remainders.tolist()
    assert _calls.function(mx, "floor_divide")(mx.array([-(2**31), 6]), -1).tolist() == [-(2**31), -6]
    assert _calls.function(mx, "remainder")(mx.array([-(2**31), 6]), -1).tolist() == [0, 0]


def test_sum_of_empty_transposed_view_returns():
    empty = mx.transpose(mx.zeros((8, 0)))
    (safe,), _ = _calls.prepared(mx, "sum", [empty], {"axis": 0})
    assert mx.sum(safe, axis=0).tolist() == [0.0] * 8


class Gpu:
    """Fake MLX with a GPU, where a function without a GPU kernel raises MLX's error."""

    cpu = "cpu"

    def __init__(self) -> None:
        self.current = "gpu"
        self.ran_on: list[str] = []
        self.linalg = SimpleNamespace(inv=self.inv)

    @contextmanager
    def stream(self, device: str) -> Any:
        before, self.current = self.current, device
        try:
            yield
        finally:
            self.current = before

    def inv(self, a: int) -> int:
        if a < 0:
            raise ValueError("[linalg::inv] Expected something else.")
        if self.current == "gpu":
            raise ValueError("[linalg::inv] This op is not yet supported on the GPU. Explicitly pass a CPU stream to run it.")
        self.ran_on.append(self.current)
        return a


def test_function_without_gpu_kernel_runs_on_cpu():
    gpu = Gpu()
    assert _calls.function(gpu, "linalg.inv")(5) == 5
    assert gpu.ran_on == ["cpu"]
    assert gpu.current == "gpu"
    with pytest.raises(ValueError, match="something else"):
        _calls.function(gpu, "linalg.inv")(-1)


def test_mlx_error_for_missing_gpu_kernel_is_unchanged():
    libraries = [*Path(str(mx.__file__)).parent.glob("lib/libmlx*"), Path(str(mx.__file__))]
    assert any(b"Explicitly pass a CPU stream" in library.read_bytes() for library in libraries)


def test_function_missing_in_mlx_is_reported():
    with pytest.raises(InvalidRequest, match=r"the installed MLX .* has no linalg\.fly"):
        _calls.function(mx, "linalg.fly")


def test_float64_on_gpu_is_rejected(run):
    context = TaskContext(device_type="gpu")
    for args in ([{"zeros": [2], "dtype": "float64"}], [[1], "float64"]):
        with pytest.raises(InvalidRequest, match="float64 only on the CPU"):
            run("mlx_operation", {"function": "astype" if len(args) == 2 else "abs", "args": args}, context)
