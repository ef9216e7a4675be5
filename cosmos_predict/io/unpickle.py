"""The one unpickler of the package: it builds plain values and numpy arrays and can call nothing else.

A pickle is a small program; the standard reader lets it call any function of any module. This one looks each name up in
a table and refuses the rest. Even numpy's own functions are replaced by a few lines here that check what they are
given, because numpy trusts the descriptions of arrays in a pickle. The tables are made anew for every file: nothing
that a pickle changes outlives its reading.
"""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_predict.errors import CorruptFileError, UnsafeFileError

GlobalTable = Mapping[tuple[str, str], Any]

_DTYPE = re.compile(r"[<>|=]?([?biufcSU])(\d*)")


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickler over a table of allowed globals, {(module, name): stand-in}.

    `fallback(module, name)` may give a stand-in for a name outside the table, or None to refuse it;
    `load_storage(persistent_id)` resolves persistent ids (torch archives), which are refused without it.
    """

    def __init__(
        self,
        stream: io.BufferedIOBase,
        allowed: GlobalTable,
        path: str | os.PathLike[str],
        *,
        fallback: Callable[[str, str], Any] | None = None,
        load_storage: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(stream, encoding="latin1")
        self._allowed, self._path = allowed, path
        self._fallback, self._load_storage = fallback, load_storage

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the stand-in for a global; raise UnsafeFileError for a name that is not in the table."""
        module_name = "builtins" if module_name == "__builtin__" else module_name  # its name up to protocol 2
        if (module_name, global_name) in self._allowed:
            return self._allowed[module_name, global_name]
        stand_in = self._fallback(module_name, global_name) if self._fallback else None
        if stand_in is None:
            raise UnsafeFileError(
                f"{self._path}: refused, the pickle asks for {module_name}.{global_name}. Only plain values (numbers, "
                "strings, lists, tuples, dicts) and arrays or tensors of numbers are read, since a pickle can run any "
                "code. If you trust the file, load it where it was made and save its tensors as .safetensors."
            )
        return stand_in

    def persistent_load(self, pid: Any, /) -> Any:
        """Resolve a torch storage; raise UnsafeFileError where storages are not expected."""
        if self._load_storage is None:
            raise UnsafeFileError(f"{self._path}: refused, the pickle refers to data outside itself ({pid!r})")
        return self._load_storage(pid)

    def load_checked(self) -> Any:
        """Return the object; a damaged stream raises CorruptFileError, a forbidden name UnsafeFileError."""
        try:
            return self.load()
        except (UnsafeFileError, CorruptFileError, MemoryError):
            raise
        except Exception as error:  # a damaged pickle can raise anything: EOFError, KeyError, TypeError, ...
            what = f"not a readable pickle ({type(error).__name__}: {error}); it is truncated or damaged"
            raise CorruptFileError(f"{self._path}: {what}. Copy, download or create it again.") from error


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of numpy arrays, numbers, strings, lists, tuples, dicts and sets, running nothing.

    Raises:
        UnsafeFileError: the pickle names anything else (the message gives the name).
        CorruptFileError: the file is empty, truncated or no pickle.
    """
    data = Path(path).read_bytes()
    if not data:
        raise CorruptFileError(f"{path}: the file is empty, expected a pickle. Copy, download or create it again.")
    reader = RestrictedUnpickler(io.BytesIO(data), numpy_globals(path), path)
    return _without_stand_ins(reader.load_checked())


def numpy_globals(path: str | os.PathLike[str]) -> dict[tuple[str, str], Any]:
    """Return a new table of what pickled numpy arrays and plain values name, by numpy 1.x and 2.x."""

    class DType:
        """Stands in for numpy.dtype: keeps the descriptor and the byte order, accepts numbers and strings only."""

        __slots__ = ("value",)

        def __init__(self, descriptor: str, align: object = False, copy: object = False) -> None:
            match = _DTYPE.fullmatch(descriptor) if isinstance(descriptor, str) else None
            if match is None:
                known = "only arrays of numbers, booleans and strings are read"
                raise UnsafeFileError(f"{path}: refused, the pickle holds an array of {descriptor!r}; {known}")
            self.value = np.dtype(descriptor)

        def __setstate__(self, state: tuple) -> None:
            if state[1] in ("<", ">"):
                self.value = self.value.newbyteorder(state[1])

    class Array(_ArrayStandIn):
        """Stands in for numpy.ndarray, new for every file."""

    def from_buffer(buffer: bytes | bytearray, dtype: DType, shape: tuple[int, ...], order: str) -> np.ndarray:
        return _to_array(bytes(buffer), dtype.value, shape, order == "F")

    def scalar(dtype: DType, data: bytes | str) -> np.generic:
        return np.frombuffer(_to_bytes(data), dtype.value)[0]

    def encode(text: str, encoding: str = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise UnsafeFileError(f"{path}: refused, the pickle asks for the text encoding {encoding!r}")
        return _to_bytes(text)

    table: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): DType,
        ("_codecs", "encode"): encode,
        ("builtins", "bytes"): lambda: b"",
    }
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "_reconstruct"] = lambda *_: Array()
        table[f"{core}.multiarray", "scalar"] = scalar
        for module in ("numeric", "multiarray"):
            table[f"{core}.{module}", "_frombuffer"] = from_buffer
    for builtin in (list, tuple, dict, set, frozenset, bytearray, complex):
        table["builtins", builtin.__name__] = builtin
    return table


def record_globals(names: Mapping[str, Iterable[str]]) -> dict[tuple[str, str], Any]:
    """Return a new table of {module: class names}: objects of these classes become records of what the pickle says of them.

    A record has the pickled attributes, or `state` where that is no dict, and `args`, what its constructor was given.
    """

    class Record:
        def __init__(self, *args: Any) -> None:
            self.args = args

        def __setstate__(self, state: Any) -> None:
            self.__dict__.update(state if isinstance(state, dict) else {"state": state})

    return {(module, name): type(name, (Record,), {}) for module, classes in names.items() for name in classes}


class _ArrayStandIn:
    """Takes the state of a pickled numpy.ndarray, (version, shape, dtype, is_fortran, bytes), and checks it."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, is_fortran, data = state[-4:]
        self.value = _to_array(_to_bytes(data), dtype.value, shape, bool(is_fortran))


def _to_array(data: bytes, dtype: np.dtype, shape: tuple[int, ...], is_fortran: bool) -> np.ndarray:
    flat = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if is_fortran else "C").copy(order="K")


def _to_bytes(data: bytes | str) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


def _without_stand_ins(value: Any) -> Any:
    """Replace the array stand-ins in nested lists, tuples and dicts by their arrays."""
    if isinstance(value, _ArrayStandIn):
        return value.value
    if isinstance(value, dict):
        return {key: _without_stand_ins(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_stand_ins(item) for item in value)
    return value
