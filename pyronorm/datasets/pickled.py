"""Arrays and lists out of a pickle, without running anything that the pickle names."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from pyronorm.errors import DataError

__all__ = ["read_pickled_bytes"]


class _Inert:
    """Takes the place of whatever a pickle makes; it only remembers what it was given.

    A pickle's REDUCE and NEWOBJ opcodes call this class, its BUILD opcode ``__setstate__``. Nothing
    of NumPy runs on what the file says; the array is made afterwards, from checked parts.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Inert):
    """In the place of ``numpy.core.multiarray._reconstruct``."""

    def value(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The array of bytes.

        Raises:
            ValueError: if the remembered parts are not those of an array of unsigned bytes.
        """
        _, shape, kind, fortran, content = self.state
        if not (isinstance(kind, _Type) and kind.arguments[:1] in (("u1",), (b"u1",))):
            raise ValueError("an array that is not of unsigned bytes")
        flat = np.frombuffer(content, np.uint8)
        return flat.reshape(shape, order="F" if fortran else "C")


class _Type(_Inert):
    """In the place of ``numpy.dtype``."""


class _Class(_Inert):
    """In the place of ``numpy.ndarray``, which the pickle only names."""


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Class,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays are read")
        return _STAND_INS[module, name]


def read_pickled_bytes(content: bytes, where: str) -> dict[str, Any]:
    """The dictionary in a pickle, of numbers, strings, lists and NumPy arrays of unsigned bytes.

    No function or class that the pickle names is imported or called: the four names that an array
    needs are replaced by stand-ins that remember their arguments, any other is refused.

    Args:
        content: the pickle, of Python 2 or 3.
        where: the file, for errors.

    Raises:
        DataError: if the pickle is damaged, asks for anything else, or holds no dictionary.
    """
    try:
        # Strings of Python 2 stay bytes: pixels among them.
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not a dictionary")
        return {
            key.decode() if isinstance(key, bytes) else str(key): (
                value.value() if isinstance(value, _Array) else value
            )
            for key, value in found.items()
        }
    # A damaged pickle can end in any of Python's errors.
    except Exception as error:
        raise DataError(f"{where}: not a pickle of arrays: {error}") from error
