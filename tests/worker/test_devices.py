"""Readable names of processors."""

from __future__ import annotations

import pytest

from openruntime_jupyter.worker.devices import readable_name


@pytest.mark.parametrize(
    ("brand", "name"),
    [
        ("Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz", "Intel Core i7-8700K 3.70 GHz"),
        ("Intel(R) Xeon(R) CPU E5-2673 v4 @ 2.30GHz", "Intel Xeon E5-2673 v4 2.30 GHz"),
        ("AMD EPYC 7763 64-Core Processor                ", "AMD EPYC 7763 64-Core"),
        ("QEMU Virtual CPU version 2.5+", "QEMU Virtual CPU version 2.5+"),
        ("Apple M1 Max", "Apple M1 Max"),
    ],
)
def test_processor_has_readable_name(brand: str, name: str) -> None:
    assert readable_name(brand) == name
