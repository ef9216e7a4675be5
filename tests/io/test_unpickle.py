"""The restricted unpickler reads numbers and arrays, from every numpy and protocol, and refuses everything else."""

import datetime
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from cosmos_predict.errors import CorruptFileError, UnsafeFileError
from cosmos_predict.io.unpickle import load_pickle

ARRAY = np.arange(12, dtype=np.float16).reshape(3, 4)
VALUES = [
    [ARRAY],
    ARRAY,
    [np.asfortranarray(ARRAY), ARRAY[::2]],
    {"a": (1, 2.5, "text", None, True, b"raw"), "b": [np.float32(3), np.int64(-4)], 3: {1, 2}},
    [
        np.zeros((0, 4), np.float32),
        np.array(7, dtype=">i4"),
        np.array(["ab", "c"]),
        np.array([True]),
        np.array([1 + 2j]),
    ],
    [2**80, 1 + 2j, bytearray(b"x"), frozenset({1}), b""],
]


def assert_equal(found: object, expected: object) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert isinstance(found, list | tuple) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray) and found.dtype == expected.dtype and found.shape == expected.shape
        assert np.array_equal(found, expected) and found.flags.writeable
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_round_trip(tmp_path: Path, value: object, protocol: int) -> None:
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert_equal(load_pickle(path), value)
    # The same file by a numpy 1.x, which names its functions numpy.core (lengths only occur from protocol 4 on).
    if protocol < 4:
        path.write_bytes(path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))
        assert_equal(load_pickle(path), value)


class Calls:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    path, marker = tmp_path / "x.pickle", tmp_path / "marker"
    path.write_bytes(pickle.dumps([ARRAY, Calls(os.system, f"touch {marker}")], protocol=protocol))
    with pytest.raises(UnsafeFileError, match=r"x\.pickle: refused, the pickle asks for posix\.system"):
        load_pickle(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Calls(eval, "1"), "builtins.eval"),
        (Calls(getattr, ARRAY, "T"), "builtins.getattr"),
        (Calls(np.load, "x"), r"numpy\.load"),
        (datetime.date(2024, 1, 1), r"datetime\.date"),
        (Path("x"), r"pathlib"),
        (np.random.default_rng(0), r"numpy\.random"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, value: object, name: str) -> None:
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(UnsafeFileError, match=name):
        load_pickle(path)


@pytest.mark.parametrize("array", [np.array([{}, 1], dtype=object), np.zeros(2, dtype=[("a", "f4")])])
def test_arrays_of_other_things_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps([array]))
    with pytest.raises(UnsafeFileError, match="only arrays of numbers, booleans and strings"):
        load_pickle(path)


def test_external_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pickle"
    path.write_bytes(b"\x80\x02X\x01\x00\x00\x00aQ.")
    with pytest.raises(UnsafeFileError, match="refers to data outside itself"):
        load_pickle(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_damaged(tmp_path: Path, protocol: int) -> None:
    data, path = pickle.dumps([ARRAY], protocol=protocol), tmp_path / "x.pickle"
    for length in range(1, len(data), 3):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptFileError, match=r"x\.pickle: not a readable pickle"):
            load_pickle(path)
    path.write_bytes(b"")
    with pytest.raises(CorruptFileError, match="the file is empty"):
        load_pickle(path)


def test_an_array_whose_shape_lies(tmp_path: Path) -> None:
    path = tmp_path / "x.pickle"
    data = pickle.dumps(np.zeros(3, np.float32), protocol=2)
    assert data.count(b"K\x03\x85") == 1
    path.write_bytes(data.replace(b"K\x03\x85", b"K\x7f\x85"))
    with pytest.raises(CorruptFileError, match="not a readable pickle"):
        load_pickle(path)
