"""Errors name the values that can't be pickled."""

from __future__ import annotations

import base64
import threading
from typing import Any

import cloudpickle
import pytest

from openruntime_jupyter.client.code.serialization import pack_call, pack_variables, unpack
from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError

LOCK = threading.Lock()


def named(caught: pytest.ExceptionInfo[InvalidRequest]) -> str:
    """Return the field of an error."""
    (detail,) = caught.value.details
    return detail["field"]


def test_a_function_arrives_with_its_arguments_and_what_it_uses() -> None:
    offset = 30

    def add(first: int, second: int = 2) -> int:
        return first + second + offset

    pickled = pack_call(add, (10,), {"second": 2})
    assert isinstance(pickled, str)
    function, args, kwargs = cloudpickle.loads(base64.b64decode(pickled))
    assert function(*args, **kwargs) == 42


@pytest.mark.parametrize(
    ("args", "kwargs", "field"), [((1, LOCK), {}, "second"), ((1,), {"second": LOCK}, "second"), ((LOCK, 1), {}, "first")]
)
def test_an_argument_that_cannot_travel_is_named(args: tuple[Any, ...], kwargs: dict[str, Any], field: str) -> None:
    def work(first: object, second: object) -> None: ...

    with pytest.raises(InvalidRequest, match=r"lock.*inside the task") as caught:
        pack_call(work, args, kwargs)
    assert named(caught) == field


def test_an_argument_of_a_function_without_a_signature_is_counted() -> None:
    with pytest.raises(InvalidRequest) as caught:
        pack_call(max, (1, LOCK), {})
    assert named(caught) == "argument 2"


def test_a_variable_that_a_function_uses_and_that_cannot_travel_is_named() -> None:
    held = threading.Lock()

    def work() -> bool:
        return held.locked()

    with pytest.raises(InvalidRequest, match=r"the function .*work uses this lock") as caught:
        pack_call(work, (), {})
    assert named(caught) == "held"


def test_a_global_that_a_notebooks_function_uses_and_that_cannot_travel_is_named() -> None:
    space: dict[str, Any] = {"__name__": "__main__", "held": LOCK}
    exec("def work():\n    return held.locked()", space)  # like a cell of a notebook
    with pytest.raises(InvalidRequest) as caught:
        pack_call(space["work"], (), {})
    assert named(caught) == "held"


def test_an_input_that_cannot_travel_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        pack_variables({"fine": 1, "held": LOCK})
    assert named(caught) == "held"


def test_no_inputs_are_no_pickle() -> None:
    assert pack_variables({}) is None


def test_a_result_that_needs_a_missing_package_says_which() -> None:
    payload = b"cno_such_package\nThing\n."
    with pytest.raises(OpenRuntimeError, match=r"no_such_package.*install"):
        unpack(payload, "cloudpickle")


@pytest.mark.parametrize("payload", [b"", b"not a pickle", b"\x80\x04."])
def test_a_broken_result_is_an_error_of_ours(payload: bytes) -> None:
    with pytest.raises(OpenRuntimeError, match="can't be unpickled"):
        unpack(payload, "cloudpickle")


def test_a_result_in_an_unknown_encoding_is_an_error_of_ours() -> None:
    with pytest.raises(OpenRuntimeError, match="sealed"):
        unpack(b"", "sealed")
