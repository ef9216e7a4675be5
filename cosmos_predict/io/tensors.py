"""Named tensors from any published file: safetensors, `.pt` / `.pth` / `.bin`, TorchScript archives, sharded folders.

The kind is told from the content, not from the suffix. No path here can run code of the file. Everything maps the file:
opening costs nothing, and only what is used is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import mmap
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cosmos_predict.errors import CheckpointError, CorruptFileError, UnsafeFileError
from cosmos_predict.io.jit_archive import DOWNLOAD_AGAIN, is_jit_archive, read_jit_archive

WRAPPERS = ("model", "module", "state_dict")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".jit")
_INDEX_SUFFIX = ".index.json"
_ADVICE = (
    "It would have to run code to be read. If you trust the file, load it where it was made and save its tensors with "
    "safetensors.torch.save_file (or torch.save of a plain dict of tensors)."
)


class TensorFile:
    """Named tensors of a file or sharded folder, one at a time, in memory for the largest tensor only.

    `get` returns a private copy and gives the mapped pages back to the system, so that going through a 14B file never
    holds more than one tensor in resident memory. Usable as a context manager.

    Attributes:
        path: what was opened.
        metadata: the string metadata of a safetensors file (merged over shards), else empty.
        others: {name: type name} of entries that are no tensors, such as Transformer Engine's `_extra_state`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open `path`; errors as for `load_tensors`."""
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self.others: dict[str, str] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._files: set[str] = set()
        self._ranges: list[tuple[int, int]] | None = None
        for file, names in _files_of(self.path).items():
            found = self._open(file)
            absent = [name for name in names or () if name not in found]
            if absent:
                raise CorruptFileError(f"{file}: lacks {len(absent)} tensors that its index lists, e.g. {absent[0]}")
            self._tensors.update({name: found[name] for name in names} if names is not None else found)
        if not self._tensors:
            listed = ", ".join(f"{name}: {kind}" for name, kind in list(self.others.items())[:6])
            raise CheckpointError(f"{self.path}: holds no named tensors (it holds {listed or 'nothing'})")

    def keys(self) -> list[str]:
        """Return the names in file order."""
        return list(self._tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it; KeyError for an unknown name."""
        return tuple(self._mapped(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype without reading it; KeyError for an unknown name."""
        return self._mapped(name).dtype

    def get(self, name: str, part: tuple[slice, ...] | None = None) -> torch.Tensor:
        """Return a contiguous copy of one tensor, or of a slice of it (nothing else is read), on the CPU, in the file's
        dtype; KeyError for an unknown name.
        """
        mapped = self._mapped(name)
        copy = (mapped if part is None else mapped[part]).clone(memory_format=torch.contiguous_format)
        self._release(mapped)
        return copy

    def close(self) -> None:
        """Let go of the file."""
        self._tensors.clear()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def mapped(self) -> dict[str, torch.Tensor]:
        """Return all tensors as views of the mapped file, unread; writing to one changes memory, never the file."""
        return dict(self._tensors)

    def _mapped(self, name: str) -> torch.Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise KeyError(f"{self.path}: no tensor {name!r} among its {len(self._tensors)}") from None

    def _open(self, file: Path) -> dict[str, torch.Tensor]:
        kind = _kind_of(file)
        self._files.add(os.path.realpath(file))
        if kind == "safetensors":
            return self._open_safetensors(file)
        if kind == "jit":
            return read_jit_archive(file)
        content = _load_torch(file, kind)
        if isinstance(content, torch.Tensor):
            raise CheckpointError(f"{file}: holds a single unnamed tensor; read it with load_torch_file")
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{file}: holds a {type(content).__name__}, expected a dict of tensors")
        content = _unwrap(content)
        tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, torch.Tensor)}
        self.others.update({str(name): type(value).__name__ for name, value in content.items() if name not in tensors})
        return tensors

    def _open_safetensors(self, file: Path) -> dict[str, torch.Tensor]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt", device="cpu") as handle:
                self.metadata.update(handle.metadata() or {})
                return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (no iterator)
        except (SafetensorError, json.JSONDecodeError) as error:
            raise _damaged(file, f"safetensors, {file.stat().st_size} bytes ({error})") from error

    def _release(self, tensor: torch.Tensor) -> None:
        """Drop the resident pages under a mapped tensor; only ever inside this file's own mapping."""
        if sys.platform != "linux" or tensor.numel() == 0:
            return
        storage = tensor.untyped_storage()
        start = storage.data_ptr() & ~(mmap.PAGESIZE - 1)
        end = -(-(storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE) * mmap.PAGESIZE
        if self._ranges is None:
            self._ranges = _mapped_ranges(self._files)
        if any(low <= start and end <= high for low, high in self._ranges):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def load_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Return {name: CPU tensor} of a file, a folder with one tensor file, or a sharded folder (or its index file).

    The tensors map the file: pages are read when used; writing to a tensor changes memory, never the file. A `.pt` whose
    tensors lie under `model`, `module` or `state_dict` gives those. Entries that are no tensors are left out
    (`TensorFile.others` lists them).

    Raises:
        FileNotFoundError: no such file, or a folder without tensor files.
        UnsafeFileError: a `.pt` that only `weights_only=False` could read, or a TorchScript archive with foreign code.
        CorruptFileError: truncated or damaged, or none of the known kinds.
        CheckpointError: readable, but no dict of tensors; or a folder with several unrelated tensor files.
    """
    return TensorFile(path).mapped()


def load_torch_file(path: str | os.PathLike[str]) -> Any:
    """Return whatever a `.pt` / `.pth` holds (tensor, tuple, dict, ...), read with `weights_only=True`, on the CPU.

    Raises as `load_tensors`.
    """
    kind = _kind_of(Path(path))
    if kind not in ("torch zip", "torch legacy"):
        raise CheckpointError(f"{path}: a {kind} file, expected one written by torch.save")
    return _load_torch(Path(path), kind)


def _files_of(path: Path) -> dict[Path, list[str] | None]:
    """Return {file: names wanted from it, or None for all}."""
    if path.is_file():
        return _sharded(path) if path.name.endswith(_INDEX_SUFFIX) else {path: None}
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder of tensors")
    indices = sorted(path.glob(f"*{_INDEX_SUFFIX}"))
    if len(indices) == 1:
        return _sharded(indices[0])
    files = next((found for suffix in _SUFFIXES if (found := sorted(path.glob(f"*{suffix}")))), [])
    if len(files) == 1 and not indices:
        return {files[0]: None}
    if not files:
        raise FileNotFoundError(f"{path}: the folder has no tensor file ({', '.join(_SUFFIXES)} or a sharded index)")
    names = ", ".join(file.name for file in [*indices, *files][:8])
    raise CheckpointError(f"{path}: several tensor files ({names}); give the path of the one you mean")


def _sharded(index: Path) -> dict[Path, list[str] | None]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        shards: dict[Path, list[str] | None] = {}
        for name, file in weight_map.items():
            if Path(file).name != file:
                raise UnsafeFileError(f"{index}: refused, it names {file!r} outside its own folder")
            names = shards.setdefault(index.parent / file, [])
            assert names is not None
            names.append(name)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise CorruptFileError(f"{index}: no sharded index with a weight_map ({error}). {DOWNLOAD_AGAIN}") from error
    absent = [file.name for file in shards if not file.is_file()]
    if absent:
        what = f"{len(absent)} of its {len(shards)} shards are missing"
        raise FileNotFoundError(f"{index}: {what}: {', '.join(absent[:8])}")
    return shards


def _kind_of(path: Path) -> str:
    """Return "safetensors", "jit", "torch zip" or "torch legacy" from the content."""
    with path.open("rb") as stream:
        head = stream.read(64)
    size = path.stat().st_size
    if head.startswith(b"version https://git-lfs"):
        raise CorruptFileError(f"{path}: a Git LFS pointer ({size} bytes), not the file itself. Fetch it: git lfs pull")
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                return "jit" if is_jit_archive(archive) else "torch zip"
        except zipfile.BadZipFile as error:
            raise _damaged(path, f"zip, {size} bytes and no table of contents at the end") from error
    if head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80" or path.suffix == ".tar":
        return "torch legacy"
    what = f"{size} bytes that begin with {head[:12]!r}" if size else "empty"
    raise CorruptFileError(f"{path}: {what}, expected a safetensors, torch.save or TorchScript file. {DOWNLOAD_AGAIN}")


def _damaged(path: Path, what: str) -> CorruptFileError:
    return CorruptFileError(f"{path}: truncated or damaged {what}. {DOWNLOAD_AGAIN}")


def _load_torch(path: Path, kind: str) -> Any:
    zipped = kind == "torch zip"
    with contextlib.ExitStack() as stack:
        try:
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
            if unsafe == ["_io.BytesIO"]:  # it only holds bytes: Transformer Engine keeps its `_extra_state` in one
                unsafe.clear()
                stack.enter_context(torch.serialization.safe_globals([io.BytesIO]))
            if not unsafe:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except Exception as error:  # the readers raise RuntimeError, EOFError, UnpicklingError, KeyError, ...
            match = re.search(r"GLOBAL (\S+)|(Unsupported [^\n]*)", str(error))
            if match is None:
                first_line = str(error).partition("\n")[0]
                raise _damaged(path, f"torch file, {path.stat().st_size} bytes ({first_line})") from error
            unsafe = [match.group(1) or match.group(2)]
    raise UnsafeFileError(f"{path}: refused, its pickle asks for {', '.join(unsafe)}. {_ADVICE}")


def _unwrap(content: Mapping) -> Mapping:
    """Follow `model` / `module` / `state_dict` down while a level has such an entry and no tensors of its own."""
    inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
    if inner is None or any(isinstance(value, torch.Tensor) for value in content.values()):
        return content
    return _unwrap(inner)


def _mapped_ranges(files: set[str]) -> list[tuple[int, int]]:
    """Return the address ranges at which this process maps one of `files`."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in files:
            low, high = fields[0].split("-")
            ranges.append((int(low, 16), int(high, 16)))
    return ranges
