from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations import compute
from openruntime_jupyter.operations.compute import operation
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.mlx import expressions as language
from openruntime_jupyter.operations.mlx import graph
from tests.operations.conftest import inline_value

RNG = np.random.default_rng(7)
A = RNG.uniform(-1, 1, (4, 3)).round(3)
B = RNG.uniform(-1, 1, (3, 4)).round(3)
S = (B @ B.T + 3 * np.eye(3)).round(3)
V = np.array([3.0, -1.0, 2.0])
INPUTS = {"a": A.tolist(), "b": B.tolist(), "s": S.tolist(), "v": V.tolist(), "n": 2, "x": 0.5, "i": [7, -7, 5]}

# Syntax and conversion of arguments; test_mlx_operation compares single functions.
AGAINST_NUMPY: list[tuple[str, Any]] = [
    ("sum(tanh(a @ b) + v @ b)", np.sum(np.tanh(A @ B) + V @ B)),
    ("-a + +a", A * 0),
    ("1 + 2 * 3 ** 2", 19),
    ("2 ** -1", 0.5),
    ("7 // 2 + 7 % 4 - 9 / 3", 3.0),
    ("(1 < 2) == (3 >= 2)", True),
    ("a * n + x", A * 2 + 0.5),
    ("2 ** i", 2.0 ** np.array([7, -7, 5]) * [1, 0, 1]),
    ("i % 3", np.array([1, 2, 2])),
    ("v % 2.5", V % 2.5),
    ("where(a > 0, a, 0)", np.where(A > 0, A, 0)),
    ("sum(a, axis=1, keepdims=True)", A.sum(1, keepdims=True)),
    ("inv(s) @ s", np.eye(3)),
    ("norm(a, ord='fro')", np.linalg.norm(A)),
    ("norm(v, ord=inf)", 3.0),
    ("fft(v)", np.fft.fft(V)),
    ("einsum('ij,jk->ik', a, b)", A @ B),
    ("reshape(a, (2, 6))", A.reshape(2, 6)),
    ("sum(isnan(v / 0 - v / 0))", 3),
    ("astype(v, 'int32')", V.astype(int)),
    ("tril(s) + triu(s) - diag(diag(s))", S),
    ("sin(pi / 2) + log(e)", 2.0),
    ("nan_to_num(v / 0, posinf=1, neginf=-1)", [1, -1, 1]),
]


@pytest.mark.parametrize(("expression", "expected"), AGAINST_NUMPY, ids=[expression for expression, _ in AGAINST_NUMPY])
def test_expression_agrees_with_numpy_in_float64(run, expression, expected):
    output = run("compute", {"expression": expression, "inputs": INPUTS})
    assert output["shape"] == list(np.shape(expected))
    np.testing.assert_allclose(inline_value(output), expected, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 5e-2), ("float32", 1e-5), ("float64", 1e-13)])
def test_input_dtype_determines_precision_of_result(run, dtype, tolerance):
    inputs = {"a": {"values": A.tolist(), "dtype": dtype}, "b": {"values": B.tolist(), "dtype": dtype}}
    output = run("compute", {"expression": "2 * a @ b + 0.5", "inputs": inputs})
    assert output["dtype"] == dtype
    np.testing.assert_allclose(inline_value(output), 2 * A @ B + 0.5, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("expression", "shape", "expected"),
    [
        ("a + 1", [0], []),
        ("a @ transpose(a)", [2, 0], [[0, 0], [0, 0]]),
        ("sum(transpose(a), axis=0)", [3, 0], [0, 0, 0]),
        ("a * 2", [], None),
        ("sort(a)", [0], []),
    ],
)
def test_empty_arrays_and_scalars_are_arrays_too(run, expression, shape, expected):
    output = run("compute", {"expression": expression, "inputs": {"a": {"ones": shape}}})
    assert output["value"] == (2.0 if expected is None else expected)
    if output["size"] == 0:
        assert output["min"] is output["max"] is output["mean"] is None


def test_default_expression_runs(run):
    output = run("compute", {})
    assert output["expression"] == "sum(tanh(a @ b) + c)"
    assert output["inputs"] == {"a": "float32[256, 256]", "b": "float32[256, 256]", "c": "float32[256]"}
    assert output["value"] == run("compute", {})["value"]
    assert 0 < output["value"] < 2 * 256 * 256


def test_unused_inputs_are_not_built(run):
    output = run("compute", {"expression": "1 + 1", "inputs": {"huge": {"zeros": [10**9, 100]}}}, TaskContext(memory_total=10_000_000))
    assert (output["value"], output["inputs"]) == (2, {})


def test_repeated_subexpression_is_computed_once(monkeypatch, run):
    measured: list[Any] = []
    real = graph.needed
    monkeypatch.setattr(graph, "needed", lambda mx, call, args, kwargs: (measured.append(call), real(mx, call, args, kwargs))[1])
    run("compute", {"expression": "tanh(a) + tanh( a ) * tanh(a)", "inputs": {"a": [1.0]}})
    assert len(measured) == 3  # one tanh, one product, one sum


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("1 + a @ v", "expression: at column 5 (a @ v): matmul(float32[4, 3], float32[4]): [matmul] Last dimension"),
        (
            "sum(a + transpose(b) + s)",
            "expression: at column 5 (a + transpose(b) + s): add(float32[4, 3], float32[3, 3]): [broadcast_shapes]",
        ),
        ("reshape(a, (5, 5))", "[reshape] Cannot reshape array of size 12 into shape (5,5)"),
        ("sum(3, 'x')", "sum(int32[], 'x'): invalid arguments; the signature is sum(a: array"),
        ("2 @ 3", "expression: at column 1 (2 @ 3): @ multiplies arrays"),
        ("a + 9 ** 9 ** 9", "expression: at column 5 (9 ** 9 ** 9): Numerical result out of range"),
        ("9007199254740992 * 9007199254740992", "more than 64 bits"),
        ("(-8) ** 0.5", "the result is a complex number"),
        ("broadcast_to(x, (100000, 100000, 1000))", "an array of 100000 by 100000 by 1000 has 10,000,000,000,000 elements"),
        ("reshape(v, (3, 2147483648))", "must fit into 32 bits"),
    ],
)
def test_mlx_error_names_position_and_shapes(run, expression, problem):
    with pytest.raises(InvalidRequest) as refusal:
        run("compute", {"expression": expression, "inputs": {**INPUTS, "v": [1.0, 2.0, 3.0, 4.0]}})
    assert problem in str(refusal.value)


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"expression": "a + q"}, "parameters.expression: at column 5 (q): unknown input; the inputs are: a, b, c"),
        ({"inputs": {"a b": 1}}, "parameters.inputs: 'a b' is not a valid name"),
        ({"inputs": {f"i{n}": n for n in range(51)}}, "parameters.inputs: Dictionary should have at most 50 items"),
        ({"iterations": 10_001}, "parameters.iterations: must be less than or equal to 10000"),
        ({"code": "1"}, "parameters.code: unknown field; known fields: inputs, expression, iterations, return_arrays"),
    ],
)
def test_invalid_parameter_is_named_with_reason(parameters, problem):
    with pytest.raises(InvalidRequest) as refusal:
        operation.validate(parameters)
    assert str(refusal.value).startswith(problem)


def test_estimates_grow_with_inputs_operations_and_iterations():
    def both(**parameters: Any) -> tuple[int, float]:
        params = compute.Params.model_validate({"inputs": {"a": {"zeros": [1000, 1000]}}, **parameters})
        return compute.memory(params), compute.seconds(params)

    memory, seconds = both(expression="a + 1")
    assert memory == 4_000_000
    assert both(expression="a + 1 + 1 + 1")[1] == pytest.approx(3 * seconds)
    assert both(expression="a + 1", iterations=9)[1] == pytest.approx(5 * seconds)
    assert both(expression="1 + 1") == (0, 0.0)


NUMBERS = st.integers(-8, 8).map(lambda number: number / 8)
MATRICES = st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=3, max_size=3)
LEAVES = st.sampled_from(["a", "b", "c", "0.5", "2", "(-1.25)"])


def combined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return a strategy for expressions over 3 by 3 matrices and numbers."""
    return st.one_of(
        st.tuples(parts, st.sampled_from("+-*"), parts).map(lambda pair: f"({' '.join(pair)})"),
        st.tuples(st.sampled_from("abc"), st.sampled_from("abc")).map(lambda pair: f"({pair[0]} @ {pair[1]})"),
        st.tuples(st.sampled_from(["tanh", "abs"]), parts).map(lambda pair: f"{pair[0]}({pair[1]})"),
        st.tuples(st.sampled_from(["maximum", "minimum"]), parts, parts).map(lambda three: f"{three[0]}({three[1]}, {three[2]})"),
        st.tuples(st.sampled_from(["sum", "mean", "max"]), st.sampled_from("abc"), st.sampled_from([", axis=0", ", axis=-1", ""])).map(
            lambda three: f"{three[0]}({three[1]}{three[2]})"
        ),
        parts.map(lambda part: f"(-{part})"),
        st.sampled_from("abc").map(lambda name: f"transpose({name})"),
    )


NUMPY = {name: getattr(np, name) for name in ("tanh", "abs", "maximum", "minimum", "sum", "mean", "max", "transpose", "add")}


@settings(max_examples=60, deadline=None)
@given(st.recursive(LEAVES, combined, max_leaves=8), MATRICES, MATRICES, MATRICES)
def test_random_expression_agrees_with_numpy(expression, a, b, c):
    inputs = {"a": a, "b": b, "c": c}
    exact = {name: np.array(each) for name, each in inputs.items()}
    expected = eval(expression, {"__builtins__": {}}, {**NUMPY, **exact})
    # The same with positive operands, without cancellation and saturation: the scale of rounding errors.
    grown = expression.replace("-", "+").replace("(+", "(").replace("tanh", "abs").replace("maximum", "add").replace("minimum", "add")
    scale = np.max(eval(grown.replace("axis=+1", "axis=-1"), {"__builtins__": {}}, {**NUMPY, **{n: abs(e) for n, e in exact.items()}}))
    output = operation.run(operation.validate({"expression": expression, "inputs": inputs}), TaskContext())
    assert isinstance(output, dict)
    np.testing.assert_allclose(np.array(output["value"]), expected, rtol=0, atol=1e-5 * max(1.0, float(scale)))


ARGUMENTS = st.one_of(
    st.sampled_from(["a", "b", "c", "d", "a @ b", "a > 0", "transpose(d)"]),
    st.integers(-3, 5).map(str),
    st.sampled_from(
        ["0.5", "None", "True", "'fro'", "'float16'", "(0, 1)", "[1, 0]", "[-1]", "[a, b]", "2147483647", "-2147483648", "99999999999"]
    ),
)
KEYWORDS = st.sampled_from(["", ", axis=0", ", axis=-1", ", axis=(0, 1)", ", keepdims=True", ", axis=None"])
CALLS = st.tuples(st.sampled_from(sorted(language.FUNCTIONS)), st.lists(ARGUMENTS, min_size=1, max_size=3), KEYWORDS).map(
    lambda call: f"{call[0]}({', '.join(call[1])}{call[2]})"
)
ODD_INPUTS = {"a": [[1, -2], [0, 4]], "b": {"values": [[0.5, -1.0], [3.0, 0.0]]}, "c": {"zeros": [0]}, "d": {"arange": 3, "dtype": "uint8"}}


@settings(max_examples=100, deadline=None)
@given(CALLS, st.sampled_from(["", " + a", " // a", " % c", " @ b", " ** 2", " < d"]))
def test_random_call_returns_a_value_or_an_error(call, rest):
    message = None
    try:
        output = operation.run(operation.validate({"expression": call + rest, "inputs": ODD_INPUTS}), TaskContext(memory_total=50_000_000))
    except InvalidRequest as refusal:
        message = str(refusal)
    else:
        assert isinstance(output, dict)
        assert output["size"] == math.prod(output["shape"])
    assert message is None or "column" in message or "memory" in message


def test_numbers_compute_like_python_and_stay_weakly_typed(run):
    output = run("compute", {"expression": "a * 2 + 1", "inputs": {"a": {"values": [1], "dtype": "int8"}}})
    assert (output["dtype"], output["value"]) == ("int8", [3])
    assert run("compute", {"expression": "n / 2", "inputs": {"n": 3}})["value"] == 1.5
    assert mx.array(1.5).dtype == mx.float32
