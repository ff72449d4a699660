from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations import inputs as _inputs
from openruntime_jupyter.operations.inputs import KEY, Dtype, Generator
from openruntime_jupyter.operations.registry import operation

GENERATORS: list[dict[str, Any]] = [
    {"random": [300, 7]},
    {"random": [40], "dtype": "float16"},
    {"random": [40], "dtype": "float64"},
    {"normal": [3, 4, 5], "dtype": "bfloat16"},
    {"normal": []},
    {"zeros": [5], "dtype": "complex64"},
    {"zeros": [0, 3]},
    {"ones": [2, 2], "dtype": "uint8"},
    {"arange": 10},
    {"arange": 10, "dtype": "float32"},
    {"arange": 3, "dtype": "bool"},
    {"arange": 0},
    {"eye": 4},
    {"eye": 0},
    {"values": [[1, 2], [3, 4]], "dtype": "int64"},
    {"values": 2.5},
    {"values": []},
]


@pytest.mark.parametrize("given", GENERATORS, ids=str)
def test_a_generator_makes_the_array_that_it_announces(given):
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
def test_making_random_numbers_needs_no_more_than_is_announced(way, dtype):
    generator = Generator.model_validate({way: [500, 1000], "dtype": dtype})
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    array = generator.build(mx, 0)
    mx.eval(array)
    assert mx.get_peak_memory() - before <= generator.making
    assert array.nbytes == generator.nbytes


def test_values_are_where_they_belong():
    assert Generator(arange=4).build(mx, 0).tolist() == [0, 1, 2, 3]
    assert np.array_equal(np.array(Generator(eye=3).build(mx, 0)), np.eye(3))
    drawn = np.array(Generator(random=[100_000]).build(mx, 0))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.01
    normal = np.array(Generator(normal=[100_000]).build(mx, 0))
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02


def test_a_seed_repeats_and_the_place_stands_in_for_one():
    generator = Generator(normal=[5])
    assert generator.build(mx, 1).tolist() == generator.build(mx, 1).tolist() != generator.build(mx, 2).tolist()
    seeded = Generator(normal=[5], seed=9)
    assert seeded.build(mx, 1).tolist() == seeded.build(mx, 2).tolist()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "a generator says one of random, normal"),
        ({"random": [2], "zeros": [2]}, "this one random and zeros"),
        ({"random": [-1]}, "random.0: Input should be greater than or equal to 0"),
        ({"random": [2**31]}, "random.0: Input should be less than or equal to 2147483647"),
        ({"random": [2.5]}, "random.0: Input should be a valid integer"),
        ({"zeros": [1] * 9}, "zeros: List should have at most 8 items"),
        ({"zeros": [100_000, 100_000, 100]}, "zeros: 1,000,000,000,000 elements; the most is 137,438,953,472"),
        ({"eye": 2**30}, "eye: 1,152,921,504,606,846,976 elements"),
        ({"random": [2], "dtype": "int32"}, "dtype: random makes float16, bfloat16, float32 or float64, not int32"),
        ({"random": [2], "dtype": "quad"}, "dtype: Input should be 'bool'"),
        ({"zeros": [2], "seed": 1}, "seed: only random and normal take one, not zeros"),
        ({"spool": "a1"}, "spool: there is no such field; there are random, normal, zeros, ones, arange, eye, values, dtype, seed"),
        ({"randon": [2]}, "randon: there is no such field: did you mean random?"),
        ({"array": "a1", "of": 2}, "of: there is no such field; there are array"),
        ({"values": [[1, 2], [3]]}, "an inline list must be even"),
        ({"values": [[1, 2], 3]}, "an inline list must be even"),
        ({"values": ["1"]}, "an inline list holds numbers and lists of them only"),
        ({"values": [2**64]}, "a whole number of more than 64 bits"),
        ([[1, 2], [3]], "an inline list must be even"),
        ([None], "an inline list holds numbers"),
        ([0] * 20_001, "inline lists may have 20,000 numbers in all: use a generator"),
        ([[0] * 1000] * 21, "inline lists may have 20,000 numbers in all: use a generator"),
        ({"values": [0] * 20_001}, "inline lists may have 20,000 numbers in all: use a generator"),
        ([[[[[[[[[1]]]]]]]]], "lists may be nested 8 deep"),
        ({"values": [[[[[[[[[1]]]]]]]]]}, "an inline list may have 8 dimensions"),
        ("text", "a number, a list of numbers or a generator is wanted"),
        (None, "a number, a list of numbers or a generator is wanted"),
        (2**70, "a whole number of more than 64 bits"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_input_is_refused_with_the_reason(value, problem):
    with pytest.raises(InvalidRequest) as refusal:
        operation("compute").validate({"expression": "a", "inputs": {"a": value}})
    assert str(refusal.value).startswith("parameters.inputs")
    assert problem in str(refusal.value)


def test_the_bytes_of_several_inputs_count_what_is_made_while_others_are_there():
    one = Generator(zeros=[1000])
    drawn = Generator(random=[1000], dtype=Dtype.FLOAT16)
    assert one.nbytes == one.making == 4000
    assert (drawn.nbytes, drawn.making) == (2000, 6000 + KEY)
    assert _inputs.needed([one, drawn]) == 4000 + 6000 + KEY
    assert _inputs.needed([drawn, one]) == 6000 + KEY
    assert _inputs.needed([[one, [drawn]], 3, "text"]) == 10_000 + KEY
    assert _inputs.elements([one, [1, 2, 3], 4]) == 1004


@pytest.mark.parametrize("dtype", Dtype)
def test_the_size_of_every_type_is_mlx_s(dtype):
    assert dtype.size == dtype.of(mx).size
    assert dtype.floating == mx.issubdtype(dtype.of(mx), mx.floating)


def calls(work: Callable[[], object]) -> int:
    """How many functions are called, Python's and C's: as good as a clock for what an event loop is held up by, and always the same."""
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
def test_the_longest_lists_cost_the_event_loop_a_few_calls_a_number(name, long):
    parameters = {"expression": "a", "inputs": {"a": long}} if name == "compute" else {"function": "abs", "args": [long]}
    kind = operation(name)

    def check() -> None:
        params = kind.validate(parameters)
        kind.memory(params), kind.seconds(params)

    assert calls(check) < 25 * 20_000  # 5 to 15 ms on the reference machine


def test_a_list_of_millions_is_refused_before_all_its_numbers_are_looked_at():
    parameters = {"expression": "a", "inputs": {f"i{n}": [[0.5] * 1000] * 1000 for n in range(40)}}

    def refuse() -> None:
        with pytest.raises(InvalidRequest, match="20,000 numbers in all"):
            operation("compute").validate(parameters)

    assert calls(refuse) < 3 * 20_000
