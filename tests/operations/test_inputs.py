from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from openruntime_jupyter.arrays.array_layout import SIZES
from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations import inputs as _inputs
from openruntime_jupyter.operations.inputs import KEY, Generator
from openruntime_jupyter.operations.numerics import FLOATING, mlx_dtype
from openruntime_jupyter.operations.registry import operation

GENERATORS: list[dict[str, Any]] = [
    {"random": [300, 7]},
    {"random": [40], "dtype": "float16"},
    {"normal": [3, 4, 5], "dtype": "bfloat16"},
    {"normal": []},
    {"zeros": [5], "dtype": "complex64"},
    {"zeros": [0, 3]},
    {"ones": [2, 2], "dtype": "uint8"},
    {"arange": 10, "dtype": "float32"},
    {"arange": 0},
    {"eye": 4},
    {"values": [[1, 2], [3, 4]], "dtype": "int64"},
    {"values": []},
]


@pytest.mark.parametrize("given", GENERATORS, ids=str)
def test_generator_builds_array_with_declared_shape(given):
    generator = Generator.model_validate(given)
    array = generator.build(mx, 0)
    assert array.shape == generator.shape
    assert array.size == generator.elements
    assert array.nbytes <= generator.nbytes
    if generator.dtype is not None:
        assert str(array.dtype) == f"mlx.core.{generator.dtype}".replace("bool", str(mx.bool_).rpartition(".")[2])
        assert array.nbytes == generator.nbytes


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("way", ["random", "normal"])
def test_random_generator_peak_is_within_estimate(way, dtype):
    generator = Generator.model_validate({way: [500, 1000], "dtype": dtype})
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    array = generator.build(mx, 0)
    mx.eval(array)
    assert mx.get_peak_memory() - before <= generator.making
    assert array.nbytes == generator.nbytes


def test_generators_produce_expected_values():
    assert Generator(arange=4).build(mx, 0).tolist() == [0, 1, 2, 3]
    assert np.array_equal(np.array(Generator(eye=3).build(mx, 0)), np.eye(3))
    drawn = np.array(Generator(random=[100_000]).build(mx, 0))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.01
    normal = np.array(Generator(normal=[100_000]).build(mx, 0))
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02


def test_default_seed_is_the_index():
    generator = Generator(normal=[5])
    assert generator.build(mx, 1).tolist() == generator.build(mx, 1).tolist() != generator.build(mx, 2).tolist()
    seeded = Generator(normal=[5], seed=9)
    assert seeded.build(mx, 1).tolist() == seeded.build(mx, 2).tolist()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "a generator needs exactly one of random, normal"),
        ({"random": [2], "zeros": [2]}, "has random and zeros"),
        ({"random": [2**31]}, "random.0: must be less than or equal to 2147483647"),
        ({"zeros": [1] * 9}, "zeros: List should have at most 8 items"),
        ({"zeros": [100_000, 100_000, 100]}, "zeros: 1,000,000,000,000 elements exceed the maximum of 137,438,953,472"),
        ({"random": [2], "dtype": "int32"}, "dtype: random supports float16, bfloat16, float32 and float64, not int32"),
        ({"zeros": [2], "seed": 1}, "seed: only for random and normal, not for zeros"),
        ({"spool": "a1"}, "spool: unknown field; known fields: random, normal, zeros, ones, arange, eye, values, dtype, seed"),
        ({"randon": [2]}, "randon: unknown field: did you mean random?"),
        ({"array": "a1", "of": 2}, "of: unknown field; known fields: array"),
        ({"values": [[1, 2], [3]]}, "an inline list must be regular"),
        ({"values": [2**64]}, "more than 64 bits"),
        ([[1, 2], [3]], "an inline list must be regular"),
        ([None], "an inline list may contain only numbers"),
        ([0] * 20_001, "inline lists may have at most 20,000 numbers in total: use a generator"),
        ([[0] * 1000] * 21, "inline lists may have at most 20,000 numbers in total: use a generator"),
        ([[[[[[[[[1]]]]]]]]], "lists may be nested at most 8 deep"),
        ({"values": [[[[[[[[[1]]]]]]]]]}, "an inline list may have at most 8 dimensions"),
        (2**70, "more than 64 bits"),
        ("text", "give a number, a list of numbers or a generator"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_input_is_rejected_with_reason(value, problem):
    with pytest.raises(InvalidRequest) as refusal:
        operation("compute").validate({"expression": "a", "inputs": {"a": value}})
    assert str(refusal.value).startswith("parameters.inputs")
    assert problem in str(refusal.value)


def test_needed_bytes_include_inputs_built_before():
    one = Generator(zeros=[1000])
    drawn = Generator(random=[1000], dtype="float16")
    assert one.nbytes == one.making == 4000
    assert (drawn.nbytes, drawn.making) == (2000, 6000 + KEY)
    assert _inputs.needed([one, drawn]) == 4000 + 6000 + KEY
    assert _inputs.needed([drawn, one]) == 6000 + KEY
    assert _inputs.needed([[one, [drawn]], 3, "text"]) == 10_000 + KEY
    assert _inputs.elements([one, [1, 2, 3], 4]) == 1004


@pytest.mark.parametrize("dtype", SIZES)
def test_dtype_sizes_equal_mlx(dtype):
    assert SIZES[dtype] == mlx_dtype(dtype).size
    assert (dtype in FLOATING) == mx.issubdtype(mlx_dtype(dtype), mx.floating)


def calls(work: Callable[[], object]) -> int:
    """Return the number of Python and C function calls, a deterministic measure of the time that blocks an event loop."""
    number = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return number


@pytest.mark.parametrize(
    "long",
    [[0.5] * 19_000, [[0.5] * 19] * 990, [[7]] * 9900, {"values": [[1, 2]] * 6600, "dtype": "int64"}],
    ids=["flat", "rows", "ones", "values"],
)
@pytest.mark.parametrize("name", ["compute", "mlx_operation"])
def test_longest_lists_cost_few_calls_per_number(name, long):
    parameters = {"expression": "a", "inputs": {"a": long}} if name == "compute" else {"function": "abs", "args": [long]}
    kind = operation(name)

    def check() -> None:
        params = kind.validate(parameters)
        kind.memory(params), kind.seconds(params)

    assert calls(check) < 25 * 20_000  # 5 to 15 ms on the reference machine


def test_list_of_millions_is_rejected_early():
    parameters = {"expression": "a", "inputs": {f"i{n}": [[0.5] * 1000] * 1000 for n in range(40)}}

    def refuse() -> None:
        with pytest.raises(InvalidRequest, match="20,000 numbers in total"):
            operation("compute").validate(parameters)

    assert calls(refuse) < 3 * 20_000
