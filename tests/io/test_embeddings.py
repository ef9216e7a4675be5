"""Embedding files of every producer are read; what is no embedding is refused with its reason; writing round-trips."""

import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cosmos_predict.data.captions import load_text
from cosmos_predict.errors import CorruptFileError, DataError, UnsafeFileError
from cosmos_predict.io.embeddings import read_embedding, write_embedding

ARRAY = np.random.default_rng(0).standard_normal((7, 1024)).astype(np.float16)
PADDED = np.concatenate([ARRAY.astype(np.float32), np.zeros((505, 1024), np.float32)])


def dump(path: Path, value: object) -> Path:
    path.write_bytes(pickle.dumps(value))
    return path


@pytest.mark.parametrize("suffix", [".pickle", ".pkl", ".npy", ".safetensors"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    write_embedding(path, ARRAY.astype(np.float32))
    found = read_embedding(path)
    assert found.dtype == np.float16 and np.array_equal(found, ARRAY)


def test_the_pickle_has_the_published_structure(tmp_path: Path) -> None:
    path = tmp_path / "clip.pickle"
    write_embedding(path, ARRAY.astype(np.float64))
    content = pickle.loads(path.read_bytes())
    assert type(content) is list and len(content) == 1
    assert type(content[0]) is np.ndarray and content[0].dtype == np.float16 and np.array_equal(content[0], ARRAY)
    names = [argument for opcode, argument, _ in pickletools.genops(path.read_bytes()) if opcode.name == "GLOBAL"]
    assert names[:2] == ["numpy.core.multiarray _reconstruct", "numpy ndarray"]  # an older numpy finds these too


def test_other_producers(tmp_path: Path) -> None:
    assert np.array_equal(read_embedding(dump(tmp_path / "prefix_front.pkl", ARRAY)), ARRAY)
    assert np.array_equal(read_embedding(dump(tmp_path / "clip.front.bin", [ARRAY])), ARRAY)
    windows = dump(tmp_path / "av.pkl", [ARRAY, ARRAY + 1])
    assert np.array_equal(read_embedding(windows, window=1), ARRAY + 1)
    np.save(tmp_path / "action.npy", ARRAY[None])
    assert np.array_equal(read_embedding(tmp_path / "action.npy"), ARRAY)
    tensor = torch.from_numpy(PADDED).bfloat16()
    for name, value in {"0.t5_text_embeddings.pth": tensor, "neg.pt": tensor[None], "dict.pt": {"x": tensor}}.items():
        torch.save(value, tmp_path / name)
        found = read_embedding(tmp_path / name)
        assert found.dtype == np.float32 and np.array_equal(found, tensor.float().numpy())
    save_file({"other": tensor.half(), "t5_xxl": torch.from_numpy(ARRAY)}, tmp_path / "two.safetensors")
    assert np.array_equal(read_embedding(tmp_path / "two.safetensors"), ARRAY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "an empty list, expected a list of one array"),
        ([ARRAY, ARRAY], r"holds 2 embeddings, expected one; say which with window=0\.\.1"),
        ([ARRAY[0]], r"an array of shape \(1024,\), expected floats of shape \(n, 1024 or 100352\)"),
        ([ARRAY[:, :512]], r"an array of shape \(7, 512\)"),
        ([ARRAY[:0]], r"an array of shape \(0, 1024\).*n >= 1"),
        ([np.stack([ARRAY, ARRAY])], r"an array of shape \(2, 7, 1024\)"),
        ([ARRAY.astype(np.int32)], "an array of int32"),
        ([np.full((2, 1024), np.nan, np.float16)], "2048 values are NaN or infinite"),
        ([ARRAY.tolist()], "holds a list, expected floats"),
        ({"text": ARRAY}, "holds a dict, expected floats"),
        ("text", "holds a str, expected floats"),
    ],
)
def test_what_is_no_embedding(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"clip\.pickle: {message}"):
        read_embedding(dump(tmp_path / "clip.pickle", content))


def test_windows_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"window 2 asked for, but the file holds 2 \(0\.\.1\)"):
        read_embedding(dump(tmp_path / "a.pkl", [ARRAY, ARRAY]), window=2)
    with pytest.raises(DataError, match="window 1 asked for, but the file holds a single embedding"):
        read_embedding(dump(tmp_path / "a.pkl", ARRAY), window=1)


def test_any_width_on_request(tmp_path: Path) -> None:
    assert read_embedding(dump(tmp_path / "a.pkl", [ARRAY[:, :64]]), width=None).shape == (7, 64)
    with pytest.raises(DataError, match=r"expected floats of shape \(n, 64\)"):
        read_embedding(dump(tmp_path / "a.pkl", [ARRAY]), width=64)


def test_embeddings_of_cosmos_reason1(tmp_path: Path) -> None:
    wide = torch.randn(2, 100352).bfloat16()
    save_file({"t5_xxl": wide}, tmp_path / "wide.safetensors")
    found = read_embedding(tmp_path / "wide.safetensors")
    assert found.dtype == np.float32 and np.array_equal(found, wide.float().numpy())
    text, mask = load_text(tmp_path / "wide.safetensors")
    assert text.shape == (512, 100352) and int(mask.sum()) == 2
    with pytest.raises(DataError, match=r"shape \(n, 1024\), n >= 1. Create the embedding again with t5\."):
        read_embedding(tmp_path / "wide.safetensors", width=1024)


def test_unsafe_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFileError, match=r"asks for builtins\.print"):
        read_embedding(dump(tmp_path / "a.pickle", [print]))
    np.save(tmp_path / "a.npy", np.array([ARRAY, None], dtype=object), allow_pickle=True)
    with pytest.raises(UnsafeFileError, match="an array of Python objects"):
        read_embedding(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", ARRAY)
    for length in (0, 3, 100, 5000):
        (tmp_path / "c.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:length])
        with pytest.raises(CorruptFileError, match=r"c\.npy: not a readable \.npy file"):
            read_embedding(tmp_path / "c.npy")
    with pytest.raises(FileNotFoundError):
        read_embedding(tmp_path / "absent.pickle")
    with pytest.raises(DataError, match=r"unknown kind of embedding file '\.txt', expected one of \.pickle"):
        read_embedding(tmp_path / "a.txt")


def test_writing_what_is_no_embedding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot write an embedding as '\.json'"):
        write_embedding(tmp_path / "a.json", ARRAY)
    with pytest.raises(DataError, match=r"an array of shape \(1024,\)"):
        write_embedding(tmp_path / "a.pickle", ARRAY[0])
    with pytest.raises(DataError, match="7168 values are NaN or infinite"):  # beyond float16
        write_embedding(tmp_path / "a.pickle", np.full((7, 1024), 1e6, np.float32))
    assert list(tmp_path.iterdir()) == []
