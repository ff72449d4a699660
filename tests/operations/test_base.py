from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from openruntime_jupyter.operations.base import LARGEST_ENVIRONMENT, LONGEST_VARIABLE, MOST_VARIABLES, World


def test_world_keeps_set_and_removed_variables() -> None:
    assert World().environment == {}
    assert World(environment={"A": "é", "EMPTY": "", "B": None}).environment == {"A": "é", "EMPTY": "", "B": None}


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"": "1"}, "'' is not a valid variable name"),
        ({"A=B": "1"}, "'A=B' is not a valid variable name"),
        ({"A\0": None}, "is not a valid variable name"),
        ({"A": "x\0y"}, "A has a NUL character"),
        ({"A": "\udc80"}, "unicode|Unicode"),
        ({"A": 1}, "valid string"),
        ({"A": "x" * LONGEST_VARIABLE}, "A has 100,001 bytes, and at most 100,000 are allowed"),
        ({"A": "é" * (LONGEST_VARIABLE // 2)}, "A has 100,001 bytes"),
        ({f"V{number}": None for number in range(MOST_VARIABLES + 1)}, "has 1,001 variables, and at most 1,000"),
        ({f"V{number}": "x" * 90_000 for number in range(LARGEST_ENVIRONMENT // 90_000 + 1)}, "has 540,012 bytes, and at most 500,000"),
    ],
)
def test_invalid_environment_is_rejected_with_reason(environment: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        World(environment=environment)


def test_long_kernel_id_is_rejected() -> None:
    assert World(kernel="x" * 64).kernel == "x" * 64
    with pytest.raises(ValidationError, match="at most 64"):
        World(kernel="x" * 65)
