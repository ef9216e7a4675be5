"""Writing tensor files one tensor at a time: memory for the largest tensor, whatever the size of the file.

`.pt`: the zip that `torch.save` writes (torch's serialization format, version 3), read back by
`torch.load(weights_only=True)`, also with `mmap=True`. `.safetensors`: one file, or shards with an index.
All files appear by rename, a sharded index last.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import io
import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.atomic import atomic_path, atomic_write_text
from cosmos_predict.io.jit_archive import STORAGE_DTYPES
from cosmos_predict.io.tensors import TensorFile

_ALIGNMENT = 64  # torch's, so that storages can be mapped
_LOCAL_HEADER, _ZIP64_EXTRA, _PADDING_HEADER = 30, 20, 4
_CHUNK = 1 << 24
_PT_STORAGES = {dtype: getattr(torch, name) for name, dtype in STORAGE_DTYPES.items()}
_SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor to write. `load` is called once, when its turn comes, and must return that shape and dtype (any device)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def entries_of(state: Mapping[str, Tensor]) -> list[Entry]:
    """Return the entries of a state dict that is in memory."""
    return [Entry(name, tuple(t.shape), t.dtype, lambda t=t: t) for name, t in state.items()]


def file_entry(file: TensorFile, key: str) -> Entry:
    """Return the entry of a tensor of an open file."""
    return Entry(key, file.shape(key), file.dtype(key), lambda: file.get(key))


def write_tensors(
    path: str | os.PathLike[str],
    entries: Iterable[Entry],
    *,
    max_shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
    on_tensor: Callable[[Entry], object] | None = None,
) -> list[Path]:
    """Write `entries` to `path`, `.pt` / `.pth` or `.safetensors` by its suffix; return the files written.

    Tensors are asked for in the order of `entries` for `.pt`, by falling item size for `.safetensors` (which keeps them
    aligned), so that several ranks that gather shards together can follow. `max_shard_bytes` cuts `.safetensors` into
    `NAME-00001-of-0000N.safetensors` with `NAME.safetensors.index.json`. `on_tensor` is called after each tensor.

    Raises ConfigError for another suffix or shards of a `.pt`; CheckpointError for names given twice and dtypes that
    the format lacks, before anything is written.
    """
    path, entries = Path(path), list(entries)
    names = [entry.name for entry in entries]
    if twice := {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set():
        raise CheckpointError(f"{path}: two tensors are named {sorted(twice)[0]!r}")
    if path.suffix in (".pt", ".pth"):
        if max_shard_bytes is not None:
            raise ConfigError(f"{path}: a .pt file is written in one piece; shards need the suffix .safetensors")
        _check_dtypes(path, entries, _PT_STORAGES, "write .safetensors instead")
        with atomic_path(path) as temporary:
            _write_pt(temporary, entries, on_tensor)
        return [path]
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: unknown kind of file {path.suffix!r}; tensors are written as .pt or .safetensors")
    _check_dtypes(path, entries, _SAFETENSORS_DTYPES, "write .pt instead, or convert it")
    entries.sort(key=lambda entry: -entry.dtype.itemsize)
    shards = _cut(entries, max_shard_bytes)
    files = [path]
    if len(shards) > 1:
        numbers = (f"{i:05d}-of-{len(shards):05d}" for i in range(1, len(shards) + 1))
        files = [path.with_name(f"{path.stem}-{number}.safetensors") for number in numbers]
    for file, shard in zip(files, shards, strict=True):
        with atomic_path(file) as temporary:
            _write_safetensors(temporary, shard, {"format": "pt", **(metadata or {})}, on_tensor)
    if len(shards) > 1:
        weight_map = {entry.name: file.name for file, shard in zip(files, shards, strict=True) for entry in shard}
        total = sum(entry.nbytes for entry in entries)
        index = path.with_name(f"{path.name}.index.json")
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        atomic_write_text(index, json.dumps(content, indent=2) + "\n")
        files.append(index)
    return files


def write_with_bar(
    path: str | os.PathLike[str], entries: Sequence[Entry], show: bool = True, **options: Any
) -> list[Path]:
    """`write_tensors`, with a bar of the bytes written."""
    from tqdm import tqdm

    total = sum(entry.nbytes for entry in entries)
    with tqdm(total=total, unit="B", unit_scale=True, desc=Path(path).name, disable=not show) as bar:
        return write_tensors(path, entries, on_tensor=lambda entry: bar.update(entry.nbytes), **options)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `5GB`, `500MB` or `2GiB`; raises ConfigError for other text."""
    match = re.fullmatch(r"(\d+\.?\d*)\s*([KMG]I?B|)", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise ConfigError(f"size {text!r} is not a number of bytes with a unit, such as 5GB, 500MB or 2GiB")
    return size


class _Storage:
    """Stands in the pickle for the bytes of one entry, `data/<key>` in the zip."""

    def __init__(self, key: str, entry: Entry) -> None:
        self.id = ("storage", _PT_STORAGES[entry.dtype], key, "cpu", torch.Size(entry.shape).numel())


class _TensorRecord:
    """Pickles as the call that rebuilds a contiguous tensor over its storage."""

    def __init__(self, key: str, entry: Entry) -> None:
        self.storage, self.shape = _Storage(key, entry), tuple(entry.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        stride = torch.empty(self.shape, device="meta").stride()
        return _rebuild_tensor_v2, (self.storage, 0, self.shape, stride, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.id if isinstance(obj, _Storage) else None


def _write_pt(path: Path, entries: Sequence[Entry], on_tensor: Callable[[Entry], object] | None) -> None:
    root = path.stem
    records = io.BytesIO()
    _Pickler(records, protocol=2).dump({entry.name: _TensorRecord(str(i), entry) for i, entry in enumerate(entries)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("data.pkl", records.getvalue()), ("byteorder", b"little")):
            with _member(archive, f"{root}/{name}", len(content)) as stream:
                stream.write(content)
        for i, entry in enumerate(entries):
            with _member(archive, f"{root}/data/{i}", entry.nbytes) as stream:
                _write_bytes(stream, entry)
            if on_tensor:
                on_tensor(entry)
        with _member(archive, f"{root}/version", 2) as stream:
            stream.write(b"3\n")


def _member(archive: zipfile.ZipFile, name: str, size: int) -> IO[bytes]:
    """Open a stored member whose bytes begin at a multiple of 64 in the file."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    big = size >= zipfile.ZIP64_LIMIT
    assert archive.fp is not None
    start = archive.fp.tell() + _LOCAL_HEADER + len(name.encode()) + (_ZIP64_EXTRA if big else 0) + _PADDING_HEADER
    padding = -start % _ALIGNMENT
    # An extra field "FB" of padding, as torch writes it.
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    return archive.open(info, "w", force_zip64=big)


def _write_safetensors(
    path: Path, entries: Sequence[Entry], metadata: Mapping[str, str], on_tensor: Callable[[Entry], object] | None
) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        start, end = end, end + entry.nbytes
        said = {"dtype": _SAFETENSORS_DTYPES[entry.dtype], "shape": entry.shape, "data_offsets": [start, end]}
        header[entry.name] = said
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            _write_bytes(stream, entry)
            if on_tensor:
                on_tensor(entry)


def _write_bytes(stream: IO[bytes], entry: Entry) -> None:
    tensor = entry.load()
    came, announced = f"{tuple(tensor.shape)} {tensor.dtype}", f"{tuple(entry.shape)} {entry.dtype}"
    if came != announced:
        raise CheckpointError(f"tensor {entry.name!r} came as {came}, announced as {announced}")
    data = memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for start in range(0, len(data), _CHUNK):
        stream.write(data[start : start + _CHUNK])
    del data, tensor
    if entry.nbytes >= _CHUNK:
        _trim_heap()


def _trim_heap() -> None:
    """Give freed blocks back: glibc keeps those below 32 MiB, which over a large file adds up to several tensors."""
    with contextlib.suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _cut(entries: Sequence[Entry], most: int | None) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if most is not None and shards[-1] and size + entry.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


def _check_dtypes(path: Path, entries: Sequence[Entry], known: Mapping[torch.dtype, Any], advice: str) -> None:
    for entry in entries:
        if entry.dtype not in known:
            what = f"tensor {entry.name!r} has dtype {entry.dtype}"
            raise CheckpointError(f"{path}: {what}, which a {path.suffix} file cannot hold; {advice}")
