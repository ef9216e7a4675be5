"""NeMo's distributed checkpoints of Cosmos-1.0 networks, into a `model.pt` of Predict1. Best effort: unverified against the
published files, of which only the public converter's key names are known to us.

Two formats: `torch_dist` (`.metadata` and `__*_*.distcp`, torch.distributed.checkpoint's) and `zarr` (a folder of raw chunks
per tensor). Nothing of a file is run: `.metadata` goes through the restricted unpickler, tensors are read weights-only.

Megatron fuses a layer's projections, per head (`linear_qkv`: q, k, v of head 0, of head 1, ...), stacks the three sub-blocks'
adaLN (`adaLN_modulation.2` block-diagonal), and may store all layers as one tensor with a leading layer axis.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import math
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from cosmos_predict.checkpoint.accounting import require_match
from cosmos_predict.checkpoint.dialects import is_ignored, to_native
from cosmos_predict.checkpoint.recognise import recognise
from cosmos_predict.checkpoint.stream import Entry, write_with_bar
from cosmos_predict.errors import CheckpointError, CorruptFileError, UnsafeFileError
from cosmos_predict.io.accounting import rows, shapes_of
from cosmos_predict.io.jit_archive import DOWNLOAD_AGAIN, STORAGE_DTYPES
from cosmos_predict.io.unpickle import RestrictedUnpickler, record_globals
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import build_dit

Shape = tuple[int, ...]
Cut = Callable[[Tensor], Tensor]
_DCP, _MEGATRON = "torch.distributed.checkpoint", "megatron.core.dist_checkpointing.strategies.torch"
# What `.metadata` is made of, by the torch versions since 2.2 and Megatron.
_RECORDS = {
    f"{_DCP}.metadata": "Metadata TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata TensorProperties "
    "MetadataIndex StorageMeta _MEM_FORMAT_ENCODING",
    f"{_DCP}.filesystem": "_StorageInfo",
    "torch.distributed._shard.sharded_tensor.metadata": "TensorProperties MEM_FORMAT_ENCODING",
    _MEGATRON: "MCoreMetadata",
}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in STORAGE_DTYPES.values()}
_ZARR_DTYPES = {"<f8": "float64", "<f4": "float32", "<f2": "float16", "<i8": "int64", "<i4": "int32", "|u1": "uint8"}
# Names in a layer of NeMo -> in a block of Predict1, for what is the same tensor.
_SAME = {
    **{
        f"{theirs}.{part}_layernorm.weight": f"{ours}.block.attn.to_{part}.1.weight"
        for theirs, ours in (("full_self_attention", 0), ("cross_attention", 1))
        for part in "qk"
    },
    "full_self_attention.linear_proj.weight": "0.block.attn.to_out.0.weight",
    "cross_attention.linear_proj.weight": "1.block.attn.to_out.0.weight",
    "cross_attention.linear_q.weight": "1.block.attn.to_q.0.weight",
    "mlp.linear_fc1.weight": "2.block.layer1.weight",
    "mlp.linear_fc2.weight": "2.block.layer2.weight",
}
_FUSED = {"full_self_attention.linear_qkv.weight": (0, "qkv"), "cross_attention.linear_kv.weight": (1, "kv")}
_ADALN = ("adaLN.adaLN_modulation.1.weight", "adaLN.adaLN_modulation.2.weight")
_OUTER = [f"{name}.weight" for name in ("x_embedder.proj.1", "affline_norm", "final_layer.linear")]
_OUTER += [f"{name}{n}.weight" for name in ("t_embedder.1.linear_", "final_layer.adaLN_modulation.") for n in (1, 2)]
_LOGVAR = ("logvar.0.freqs", "logvar.0.phases", "logvar.1.weight")


@dataclasses.dataclass(frozen=True)
class Piece:
    """A block of a stored tensor: where it begins, its sizes, and a function that reads it."""

    offsets: Shape
    sizes: Shape
    load: Callable[[], Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of a distributed checkpoint, unread."""

    shape: Shape
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    def read(self) -> Tensor:
        """Return the tensor; every piece of it is read, one after the other."""
        out = torch.empty(self.shape, dtype=self.dtype)
        for piece in self.pieces:
            place = zip(piece.offsets, piece.sizes, strict=True)
            out[tuple(slice(begin, begin + size) for begin, size in place)] = piece.load()
        return out

    def row(self, number: int) -> Stored:
        """Return what it has at `number` of its first axis; the pieces that lie elsewhere are not read for it."""

        def part(piece: Piece) -> Piece:
            return Piece(piece.offsets[1:], piece.sizes[1:], lambda: piece.load()[number - piece.offsets[0]])

        held = [piece for piece in self.pieces if 0 <= number - piece.offsets[0] < piece.sizes[0]]
        return Stored(self.shape[1:], self.dtype, tuple(map(part, held)))


def find_checkpoint(path: str | Path) -> Path | None:
    """Return the folder of a distributed checkpoint: `path` itself, or `weights` or `nemo` in it; None for anything else."""
    for folder in (Path(path) / part for part in ("", "weights", "nemo", "nemo/weights") if str(path)):
        if (folder / ".metadata").is_file() or next(folder.glob("*/.zarray"), None):
            return folder
    return None


def read_checkpoint(path: str | Path) -> dict[str, Stored]:
    """Return the tensors of a distributed checkpoint by name, unread; every piece of them is there.

    Raises CheckpointError for another folder, FileNotFoundError for absent files, CorruptFileError for files cut short or
    gaps in a tensor, UnsafeFileError for a `.metadata` that names foreign code.
    """
    folder = find_checkpoint(path)
    if folder is None:
        shards = sorted(Path(path).glob("__*.distcp")) if Path(path).is_dir() else []
        what = f"{len(shards)} .distcp files and no .metadata beside them" if shards else "no such checkpoint"
        raise CheckpointError(
            f"{path}: {what}; expected a folder of NeMo weights, with .metadata and __*_*.distcp files (torch_dist) or a "
            "folder with .zarray per tensor (zarr)"
        )
    found = dict(_torch_dist(folder) if (folder / ".metadata").is_file() else _zarr(folder))
    for name, stored in found.items():
        if sum(math.prod(piece.sizes) for piece in stored.pieces) != math.prod(stored.shape):
            raise CorruptFileError(f"{folder}: parts of {name} {stored.shape} are missing. {DOWNLOAD_AGAIN}")
    return found


def _torch_dist(folder: Path) -> Iterator[tuple[str, Stored]]:
    path = folder / ".metadata"
    allowed: dict[tuple[str, str], Any] = {
        **record_globals({module: names.split() for module, names in _RECORDS.items()}),
        **{("torch", name): dtype for name, dtype in _DTYPES.items()},
        **{(module, "PosixPath"): lambda *parts: "/".join(parts) for module in ("pathlib", "pathlib._local")},
        ("torch", "Size"): tuple,
        ("torch.serialization", "_get_layout"): str,
    }
    try:
        content = RestrictedUnpickler(io.BytesIO(path.read_bytes()), allowed, path).load_checked()
        tensors = {name: told for name, told in content.state_dict_metadata.items() if hasattr(told, "chunks")}
        places = [(index, place) for index, place in content.storage_data.items() if index.fqn in tensors]
        files = {str(place.relative_path) for _, place in places}
        if foreign := [name for name in files if Path(name).name != name]:
            raise UnsafeFileError(f"{path}: refused, it names {foreign[0]!r} outside its own folder")
        if absent := sorted(name for name in files if not (folder / name).is_file()):
            raise FileNotFoundError(f"{folder}: {len(absent)} of {len(files)} shards are missing: {', '.join(absent)}")
        read, pieces = functools.lru_cache(maxsize=1)(_item), {name: [] for name in tensors}
        dtypes = {name: told.properties.state[0] for name, told in tensors.items()}
        for index, place in places:
            offset = tuple(index.offset or (0,) * len(tensors[index.fqn].size))
            sizes = next(tuple(c.sizes) for c in tensors[index.fqn].chunks if tuple(c.offsets) == offset)
            file, end = folder / place.relative_path, place.offset + place.length
            if end > file.stat().st_size:
                raise CorruptFileError(f"{file}: ends before byte {end}, where {index.fqn} does. {DOWNLOAD_AGAIN}")
            if getattr(place, "transform_descriptors", None):
                raise CheckpointError(f"{path}: {index.fqn} is stored compressed, which is not read here")
            load = functools.partial(read, file, place.offset, place.length, sizes, dtypes[index.fqn])
            pieces[index.fqn].append(Piece(offset, sizes, load))
        for name, told in tensors.items():
            yield name, Stored(tuple(told.size), dtypes[name], tuple(pieces[name]))
    except (AttributeError, TypeError, LookupError, StopIteration) as error:
        raise CorruptFileError(f"{path}: no metadata of torch.distributed.checkpoint ({error!r})") from error


def _item(file: Path, offset: int, length: int, sizes: Shape, dtype: torch.dtype) -> Tensor:
    """Read one tensor out of a `.distcp` file, which is a row of what torch.save writes."""
    with file.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(length)
    try:
        tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if tensor.dtype != dtype:
            raise TypeError(f"it is {tensor.dtype}, announced as {dtype}")
        return tensor.reshape(sizes)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(f"{file}: refused, at byte {offset} is no plain tensor ({error})") from error
    except Exception as error:  # a damaged file can raise anything
        raise CorruptFileError(f"{file}: no tensor {sizes} at byte {offset} ({error}). {DOWNLOAD_AGAIN}") from error


def _zarr(folder: Path) -> Iterator[tuple[str, Stored]]:
    for header in sorted(folder.glob("*/.zarray")):
        try:
            told = json.loads(header.read_text())
            shape, chunk = (tuple(map(int, told[name])) for name in ("shape", "chunks"))
            kind, separator = str(told["dtype"]), told.get("dimension_separator", ".")
            plain = [told["compressor"], told.get("filters"), told.get("order", "C"), separator in "./"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(f"{header}: no description of a zarr array ({error!r})") from error
        if plain != [None, None, "C", True] or (dtype := _DTYPES.get(_ZARR_DTYPES.get(kind, kind))) is None:
            raise CheckpointError(
                f"{header}: only plain arrays of numbers are read (no compressor or filters, order C)"
            )
        pieces = []
        for number in itertools.product(*(range(-(-size // step)) for size, step in zip(shape, chunk, strict=True))):
            file, offsets = header.parent / separator.join(map(str, number)), tuple(map(int.__mul__, number, chunk))
            length = math.prod(chunk) * dtype.itemsize
            if not file.is_file():
                raise FileNotFoundError(f"{file}: this chunk of {header.parent.name} is missing")
            if file.stat().st_size != length:
                raise CorruptFileError(f"{file}: {file.stat().st_size} bytes, expected {length}. {DOWNLOAD_AGAIN}")
            sizes = tuple(min(step, size - begin) for step, size, begin in zip(chunk, shape, offsets, strict=True))
            pieces.append(Piece(offsets, sizes, functools.partial(_chunk, file, dtype, chunk, sizes)))
        yield header.parent.name, Stored(shape, dtype, tuple(pieces))


def _chunk(file: Path, dtype: torch.dtype, chunk: Shape, sizes: Shape) -> Tensor:
    """Map one chunk of a zarr array; those at its end are stored whole."""
    whole = torch.from_file(str(file), size=math.prod(chunk), dtype=dtype).reshape(chunk)
    return whole[tuple(slice(size) for size in sizes)]


def import_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    drop_off_diagonal: bool = False,
) -> Path:
    """Write the network of a distributed checkpoint as `target` (`.pt`, `.safetensors`, or a folder for `model.pt`), with
    Predict1's names; return the file. Memory is that of the largest tensor and of twice the largest piece (of a rank, in `.distcp` files).

    dtype: of floating tensors, None keeps theirs. drop_off_diagonal: leave out what Predict1's three adaLN projections
    cannot hold. Raises as `read_checkpoint`, and CheckpointError listing the keys that are not understood and those that
    are missing, for shapes that make no network, and for an adaLN that is not block-diagonal.
    """
    logger.warning("{}: a NeMo checkpoint: best effort, unverified against the published files", source)
    layers, outer = _sort(read_checkpoint(source), source)
    head = layers[0]["full_self_attention.q_layernorm.weight"].shape[-1]
    _check_adaln([layer[_ADALN[1]] for layer in layers], source, drop_off_diagonal)
    entries: list[Entry] = []
    read = functools.lru_cache(maxsize=1)(Stored.read)  # what is cut into three is read once, and then let go

    def add(name: str, part: Stored, cut: Cut = lambda t: t) -> None:
        try:
            shape = tuple(cut(torch.empty(part.shape, device="meta")).shape)
        except RuntimeError:
            raise CheckpointError(f"{source}: {name}: heads of {head} rows do not divide {part.shape}") from None
        kind = dtype if dtype and part.dtype.is_floating_point else part.dtype
        entries.append(Entry(name, shape, kind, lambda: cut(read(part)).to(kind)))

    for name, part in outer.items():
        add(name if name in _LOGVAR else f"net.{name}", part)
    for name, targets in _cuts(head).items():  # layer by layer within a name, which may be one stored tensor
        for number, layer in enumerate(layers):
            for place, cut in targets.items():
                add(f"net.blocks.block{number}.blocks.{place}", layer[name], cut)
    shapes = {entry.name.removeprefix("net."): entry.shape for entry in entries if entry.name not in _LOGVAR}
    found = recognise(shapes, source)
    net = build_dit(found.config or DiTConfig(**found.fields), device="meta")
    native = {to_native(name, "predict1") or name: shape for name, shape in shapes.items()}
    require_match(native, shapes_of(net.state_dict()), source)
    size = f"no published network, {len(layers)} blocks {net.config.model_channels} wide"
    logger.info("{}: {}", source, found.name or size)
    file = Path(target) if Path(target).suffix in (".pt", ".safetensors") else Path(target) / "model.pt"
    write_with_bar(file, entries)
    return file


def _sort(stored: Mapping[str, Stored], where: object) -> tuple[list[dict[str, Stored]], dict[str, Stored]]:
    """Return the tensors of every layer, and those outside layers, by names without `module.` and layer."""
    layers: dict[int, dict[str, Stored]] = {}
    outer: dict[str, Stored] = {}
    unknown = []
    known = {*_SAME, *_FUSED, *_ADALN}
    for key, tensor in stored.items():
        name = re.sub(r"^(module\.)+", "", key)
        match = re.fullmatch(r"decoder\.layers\.(?:(\d+)\.)?(.+)", name)
        if is_ignored(name) or key.startswith(("optimizer", "rng_state", "rerun_state_machine")):
            continue
        stacked = bool(match and not match[1])
        if len(tensor.shape) <= stacked:
            unknown.append(f"{key} {tensor.shape}")
        elif match and match[2] in known:
            for number in range(tensor.shape[0]) if stacked else [int(match[1])]:
                layers.setdefault(number, {})[match[2]] = tensor.row(number) if stacked else tensor
        elif not match and (name in _LOGVAR or (to_native(name, "predict1") and not name.startswith("blocks."))):
            outer[name] = tensor
        else:
            unknown.append(f"{key} {tensor.shape}")
    wanted = {*_OUTER, *(_LOGVAR if outer.keys() & {*_LOGVAR} else ())}
    missing = [f"module.{name}" for name in sorted(wanted - outer.keys())]
    for number in range(max(layers, default=0) + 1):
        absent = known - layers.get(number, {}).keys()
        missing += [f"module.decoder.layers.{number}.{name}" for name in sorted(absent)]
    if unknown or missing:
        said = [("not understood", unknown), ("missing", missing)]
        lines = [line for title, keys in said if keys for line in (f"{title}: {len(keys)}", *rows(keys, 60))]
        raise CheckpointError(
            "\n".join([f"{where}: its tensors are not those of a Cosmos-1.0 network in NeMo", *lines])
        )
    return [layers[number] for number in range(len(layers))], outer


def _cuts(head: int) -> dict[str, dict[str, Cut]]:
    """Return, per name in a layer, the names in a block that it becomes and how each is cut out. head: rows of a head."""

    def of_heads(index: int, count: int) -> Cut:
        return lambda t: t.unflatten(0, (-1, count, head))[:, index].flatten(0, 1)

    cuts: dict[str, dict[str, Cut]] = {name: {place: lambda t: t} for name, place in _SAME.items()}
    for name, (block, letters) in _FUSED.items():
        cuts[name] = {
            f"{block}.block.attn.to_{letter}.0.weight": of_heads(i, len(letters)) for i, letter in enumerate(letters)
        }
    cuts[_ADALN[0]] = {f"{j}.adaLN_modulation.1.weight": lambda t, j=j: t.chunk(3)[j] for j in range(3)}
    cuts[_ADALN[1]] = {f"{j}.adaLN_modulation.2.weight": functools.partial(_block, j=j) for j in range(3)}
    return cuts


def _block(stacked: Tensor, j: int) -> Tensor:
    """Return block j on the diagonal of three, as a view."""
    return stacked.chunk(3)[j].chunk(3, 1)[j]


def _check_adaln(tensors: list[Stored], where: object, drop: bool) -> None:
    """Raise CheckpointError, or warn if they are to be dropped, where a stacked adaLN mixes the three sub-blocks."""
    shares = []
    for number, tensor in enumerate(tensors):
        whole = tensor.read().float()
        norm = float(whole.norm())
        for j in range(3):
            _block(whole, j).zero_()
        if whole.any():
            shares.append((float(whole.norm()) / norm, number))
    if shares:
        what = (
            f"{where}: the adaLN of {len(shares)} layers mixes the three sub-blocks (off the diagonal up to "
            f"{max(shares)[0]:.2e} of the norm, in layer {max(shares)[1]}), which Predict1's three projections cannot hold"
        )
        if not drop:
            raise CheckpointError(
                f"{what}; --drop_off_diagonal leaves it out, for a network that is not quite the same"
            )
        logger.warning("{}: left out", what)
