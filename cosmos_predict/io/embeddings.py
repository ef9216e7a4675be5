"""Files of precomputed text embeddings: every form that published tools wrote, read without running code.

| producer | file | content |
| --- | --- | --- |
| Predict1, Predict2, Curate | `t5_xxl/NAME.pickle`, `annotation/SPLIT/ID.pickle` | list of one array (n, 1024) |
| Predict1 multi-view | `NAME.pkl`, `prefix_VIEW.pkl` | the same, or the array itself |
| Curate for driving, NeMo multicamera | `.pkl`, `.bin` | list of arrays, one a caption window |
| Predict2 action | `.npy` | array (n, 1024) or (1, n, 1024) |
| NeMo | `I.t5_text_embeddings.pth`, `.pt` | bfloat16 tensor (512, 1024) or (1, 512, 1024), zero padded |
| this package | `.safetensors` | tensor `t5_xxl`, float16 (n, 1024) |

Those of Cosmos-Reason1 (Predict2.5) are (512, 100352), in any of these forms.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_predict.errors import CorruptFileError, DataError, UnsafeFileError
from cosmos_predict.io.atomic import atomic_path, atomic_write_bytes
from cosmos_predict.io.unpickle import load_pickle

TENSOR_NAME = "t5_xxl"
WIDTH = 1024
ENCODERS = {WIDTH: "t5", 100352: "cosmos_reason1"}  # by the width of what they make; the tiny encoder's is T5's
PICKLE_SUFFIXES = (".pickle", ".pkl", ".bin")
TORCH_SUFFIXES = (".pth", ".pt")


def read_embedding(
    path: str | os.PathLike[str], *, window: int | None = None, width: int | Collection[int] | None = tuple(ENCODERS)
) -> np.ndarray:
    """Return a text embedding (n, width), float16 or float32 as stored (bfloat16 and float64 become float32).

    Zero rows that a producer padded with are kept. `window` picks one array of a list with several; `width`, or one of
    several, is what the embedding must have, None takes any.

    Raises:
        FileNotFoundError: no such file.
        UnsafeFileError: the file would have to run code to be read.
        CorruptFileError: truncated or damaged.
        DataError: readable, but not an embedding: wrong suffix, rank, width or type, no rows, NaN, several windows.
    """
    path = Path(path)
    content = _read(path)
    if isinstance(content, list | tuple):
        content = _pick(path, content, window)
    elif window not in (None, 0):
        raise DataError(f"{path}: window {window} asked for, but the file holds a single embedding")
    return _checked(path, content, width)


def write_embedding(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an embedding (n, width) as float16, whole or not at all; the suffix picks the form.

    `.pickle` and `.pkl` hold a list of one array, as the published tools write and read it; `.safetensors` the tensor
    `t5_xxl`; `.npy` the array.

    Raises:
        DataError: another suffix, or an array that is not (n, width) of finite floats that float16 can hold.
    """
    path = Path(path)
    with np.errstate(over="ignore"):  # what overflows becomes infinite, which the check reports
        half = np.ascontiguousarray(_checked(path, array, None).astype(np.float16))
    _checked(path, half, None)
    if path.suffix in (".pickle", ".pkl"):
        atomic_write_bytes(path, dump_embeddings([half]))
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save

        atomic_write_bytes(path, save({TENSOR_NAME: half}))
    elif path.suffix == ".npy":
        with atomic_path(path) as temporary:
            np.save(temporary, half, allow_pickle=False)
    else:
        raise DataError(f"{path}: cannot write an embedding as {path.suffix!r}, expected .pickle, .safetensors or .npy")


def dump_embeddings(arrays: list[np.ndarray]) -> bytes:
    """Return the pickle of a list of arrays, readable with any numpy."""
    # numpy 2 names its functions numpy._core, which an older numpy cannot find; both find numpy.core. In protocol 3
    # the name is plain text without a length, and its first occurrence comes before any data.
    return pickle.dumps(arrays, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)


def _read(path: Path) -> Any:
    if path.suffix in PICKLE_SUFFIXES:
        return load_pickle(path)
    if path.suffix == ".npy":
        return _read_npy(path)
    if path.suffix in TORCH_SUFFIXES:
        from cosmos_predict.io.tensors import load_torch_file

        content = load_torch_file(path)
        return list(content.values()) if isinstance(content, dict) else content
    if path.suffix == ".safetensors":
        from cosmos_predict.io.tensors import load_tensors

        tensors = load_tensors(path)
        return tensors[TENSOR_NAME] if TENSOR_NAME in tensors else list(tensors.values())
    expected = ", ".join((*PICKLE_SUFFIXES, *TORCH_SUFFIXES, ".npy", ".safetensors"))
    raise DataError(f"{path}: unknown kind of embedding file {path.suffix!r}, expected one of {expected}")


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        if "allow_pickle" in str(error) and path.read_bytes()[:6] == b"\x93NUMPY":
            what = "refused, an array of Python objects, which would have to run code to be read"
            raise UnsafeFileError(f"{path}: {what}. Save it as an array of float16.") from error
        raise CorruptFileError(f"{path}: not a readable .npy file ({error}). Copy or create it again.") from error


def _pick(path: Path, items: list | tuple, window: int | None) -> Any:
    if not items:
        raise DataError(f"{path}: an empty list, expected a list of one array (n, width). Create it again.")
    count, index = len(items), window or 0
    if count > 1 and window is None:
        raise DataError(f"{path}: holds {count} embeddings, expected one; say which with window=0..{count - 1}")
    if not 0 <= index < count:
        raise DataError(f"{path}: window {index} asked for, but the file holds {count} (0..{count - 1})")
    return items[index]


def _checked(path: Path, value: Any, width: int | Collection[int] | None) -> np.ndarray:
    """Return the value as an array (n, width) of finite float16 or float32, or raise DataError."""
    widths = () if width is None else (width,) if isinstance(width, int) else width
    wanted = f"expected floats of shape (n, {' or '.join(map(str, widths)) or 'width'}), n >= 1"
    if hasattr(value, "detach"):  # a torch tensor; numpy knows no bfloat16
        keeps = str(value.dtype) == "torch.float16" or not value.is_floating_point()
        value = (value if keeps else value.float()).detach().numpy()
    if not isinstance(value, np.ndarray):
        raise DataError(f"{path}: holds a {type(value).__name__}, {wanted}")
    array = value.astype(np.float32) if value.dtype == np.float64 else value
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.dtype not in (np.float16, np.float32):
        raise DataError(f"{path}: an array of {array.dtype}, {wanted}")
    if array.ndim != 2 or array.shape[0] == 0 or (widths and array.shape[1] not in widths):
        makers = " or ".join(ENCODERS[each] for each in widths if each in ENCODERS) or "the model's text encoder"
        raise DataError(f"{path}: an array of shape {value.shape}, {wanted}. Create the embedding again with {makers}.")
    if not np.isfinite(array).all():
        raise DataError(f"{path}: {int((~np.isfinite(array)).sum())} values are NaN or infinite. Create it again.")
    return array
