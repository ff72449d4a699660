"""How functions are pickled by value: as cloudpickle does it, but so that a traceback can tell where they stand."""

from __future__ import annotations

import io
from types import CodeType
from typing import Any

import cloudpickle

NAMELESS = "<dynamic-code>"
"""What cloudpickle calls every file, from 3.1 on."""


class CodePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Leaves each function the name of its file; `codes` gets the code of those that it pickled by value."""

    def __init__(self, file: io.BytesIO, codes: list[CodeType] | None = None, **options: Any) -> None:
        super().__init__(file, protocol=5, **options)
        self._codes = codes

    def reducer_override(self, obj: Any) -> Any:
        """See `pickle`."""
        if type(obj) is not CodeType:
            return super().reducer_override(obj)
        if self._codes is not None:
            self._codes.append(obj)
        make, arguments = self.dispatch_table[CodeType](obj)
        return make, tuple(obj.co_filename if type(each) is str and each == NAMELESS else each for each in arguments)


def pickled(value: Any, codes: list[CodeType] | None = None) -> bytes:
    """`value` in one piece; raises whatever the pickling of `value` raises."""
    file = io.BytesIO()
    CodePickler(file, codes).dump(value)
    return file.getvalue()
