"""The tensors of a TorchScript archive (`encoder.jit`, `decoder.jit`), read without TorchScript.

Such an archive is an uncompressed zip: `ROOT/data.pkl` holds the tree of modules, `ROOT/data/N` the bytes of each
tensor, `ROOT/code/` the source of every module class. The pickle is read by the restricted unpickler with empty
stand-ins for the module classes; of the source only the lists of parameter and buffer names are looked at. No code of
the archive ever runs.
"""

from __future__ import annotations

import collections
import io
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from cosmos_predict.errors import CheckpointError, CorruptFileError, UnsafeFileError
from cosmos_predict.io.unpickle import RestrictedUnpickler

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DOWNLOAD_AGAIN = "Copy or download it again."
_LOCAL_HEADER_BYTES = 30
_MAX_TEXT_BYTES = 256 * 2**20  # of data.pkl or one source file; real ones are below 1 MiB
_CLASS = re.compile(r"^class (\w+)(?:\((\w+)\))?:", re.MULTILINE)
_MEMBERS = re.compile(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", re.MULTILINE)


class _Module:
    """Stands in for every class of the archive: keeps the attributes of one module."""

    members: frozenset[str] | None = None  # names of its parameters and buffers; None if the source does not say
    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


def is_jit_archive(archive: zipfile.ZipFile) -> bool:
    """Tell a TorchScript archive from a zip that `torch.save` wrote."""
    root = archive_root(archive)
    return any(name == f"{root}/constants.pkl" or name.startswith(f"{root}/code/") for name in archive.namelist())


def archive_root(archive: zipfile.ZipFile) -> str:
    """Return the folder inside the zip that holds `data.pkl`; raise CorruptFileError where there is none."""
    for name in archive.namelist():
        if name.count("/") == 1 and name.endswith("/data.pkl"):
            return name.removesuffix("/data.pkl")
    raise CorruptFileError(f"{archive.filename}: a zip file without data.pkl, so neither a .pt nor a TorchScript file")


def read_jit_archive(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Return {state-dict key: tensor} of a TorchScript archive, the same as `torch.jit.load(path).state_dict()`.

    The tensors are on the CPU whatever device they were saved from. They map the file: nothing is read until it is
    used, and writing to one never reaches the file.

    Raises:
        UnsafeFileError: the archive's pickle names anything but modules, tensors and lists.
        CorruptFileError: the zip is truncated or damaged.
        CheckpointError: it holds no parameters (a frozen archive keeps them as constants of its code).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tensors = _read(archive, path)
    except (zipfile.BadZipFile, EOFError, struct.error) as error:
        raise CorruptFileError(f"{path}: truncated or damaged archive ({error}). {DOWNLOAD_AGAIN}") from error
    if not tensors:
        raise CheckpointError(f"{path}: this TorchScript archive has no parameters or buffers (was it frozen?)")
    return tensors


def _read(archive: zipfile.ZipFile, path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    root = archive_root(archive)
    names = set(archive.namelist())
    if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
        raise CorruptFileError(f"{path}: saved on a big-endian machine; save it again on a little-endian one")
    members = _class_members(archive, root)
    whole_file = torch.UntypedStorage.from_file(os.fspath(path), shared=False, nbytes=Path(path).stat().st_size)

    def load_storage(persistent_id: Any) -> tuple[torch.UntypedStorage, torch.dtype]:
        _, dtype, key, _location, _numel = persistent_id
        start, size = _record_range(archive, f"{root}/data/{key}")
        return whole_file[start : start + size], dtype  # pyright: ignore[reportReturnType]  (slices are storages)

    def rebuild_tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: object) -> torch.Tensor:
        data, dtype = storage
        return torch.empty(0, dtype=dtype).set_(data, offset, size, stride)  # checks the bounds itself

    def same(value: Any, *_: object) -> Any:
        return value

    allowed: dict[tuple[str, str], Any] = {
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch", "device"): same,
        ("torch.jit._pickle", "restore_type_tag"): same,
        **{("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()},
        **{("torch.jit._pickle", f"build_{kind}list"): same for kind in ("int", "double", "bool", "tensor")},
    }

    def module_class(module: str, name: str) -> type[_Module] | None:
        if module != "__torch__" and not module.startswith("__torch__."):
            return None
        return type("Module", (_Module,), {"members": members.get(f"{module}.{name}")})

    stream = io.BytesIO(_read_small(archive, f"{root}/data.pkl"))
    reader = RestrictedUnpickler(stream, allowed, path, fallback=module_class, load_storage=load_storage)
    tensors: dict[str, torch.Tensor] = {}
    try:
        _collect(reader.load_checked(), "", tensors, path)
    except RecursionError as error:
        raise CorruptFileError(f"{path}: the modules of this archive contain each other without end") from error
    return tensors


def _collect(module: Any, prefix: str, tensors: dict[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    if not isinstance(module, _Module) or not isinstance(module.attributes, dict):
        raise CheckpointError(f"{path}: {prefix or 'the root'} is no module with attributes; cannot read its tensors")
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", tensors, path)
        elif isinstance(value, torch.Tensor) and (module.members is None or name in module.members):
            tensors[prefix + name] = value


def _class_members(archive: zipfile.ZipFile, root: str) -> dict[str, frozenset[str]]:
    """Return {qualified class name: names of its parameters and buffers} from the sources, which are only searched."""
    members: dict[str, frozenset[str]] = {}
    start = f"{root}/code/"
    for name in archive.namelist():
        if not name.startswith(start) or not name.endswith(".py"):
            continue
        module = name.removeprefix(start).removesuffix(".py").replace("/", ".")
        source = _read_small(archive, name).decode("utf-8", errors="replace")
        classes = list(_CLASS.finditer(source))
        for this, following in zip(classes, [*classes[1:], None], strict=True):
            body = source[this.end() : following.start() if following else len(source)]
            listed = " ".join(_MEMBERS.findall(body)) if this.group(2) == "Module" else ""
            members[f"{module}.{this.group(1)}"] = frozenset(re.findall(r'"([^"]*)"', listed))
    return members


def _read_small(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _MAX_TEXT_BYTES:
        raise UnsafeFileError(f"{archive.filename}: refused, {name} claims {archive.getinfo(name).file_size} bytes")
    return archive.read(name)


def _record_range(archive: zipfile.ZipFile, name: str) -> tuple[int, int]:
    """Return (offset in the file, size in bytes) of an uncompressed record."""
    try:
        info = archive.getinfo(name)
    except KeyError as error:
        raise CorruptFileError(f"{archive.filename}: the tensor data {name} is missing. {DOWNLOAD_AGAIN}") from error
    stream = archive.fp
    if info.compress_type != zipfile.ZIP_STORED or stream is None:
        raise CorruptFileError(f"{archive.filename}: {name} is compressed; torch writes tensor data uncompressed")
    stream.seek(info.header_offset)
    header = stream.read(_LOCAL_HEADER_BYTES)
    name_length, extra_length = struct.unpack("<26xHH", header)
    return info.header_offset + _LOCAL_HEADER_BYTES + name_length + extra_length, info.file_size
