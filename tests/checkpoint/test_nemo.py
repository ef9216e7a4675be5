"""NeMo's distributed checkpoints, written by the inverse of the key mapping, come back bit for bit."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from loguru import logger
from torch import Tensor
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo

from cosmos_predict.checkpoint.load import load_network
from cosmos_predict.checkpoint.nemo import find_checkpoint, import_checkpoint, read_checkpoint
from cosmos_predict.cli.import_nemo_checkpoint import build_parser, run
from cosmos_predict.errors import CheckpointError, CorruptFileError, UnsafeFileError
from tests.checkpoint.small import published_state, tiny_config, tiny_network

HEAD = 12  # rows of a head in the tiny network, 128 in the published ones


def interleaved(parts: list[Tensor]) -> Tensor:
    """Fuse projections per head: rows of head 0 of each part, of head 1 of each part, ..."""
    heads = [part.split(HEAD) for part in parts]
    return torch.cat([piece for group in zip(*heads, strict=True) for piece in group])


def nemo_state(state: dict[str, Tensor], stacked: bool, blocks: int = 2) -> dict[str, Tensor]:
    """Return a Predict1 state under NeMo's names and layout; stacked: layers along a leading axis."""
    out: dict[str, Tensor] = {}
    layers: list[dict[str, Tensor]] = []
    for number in range(blocks):
        prefix = f"net.blocks.block{number}.blocks."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        layer = {}
        for index, name in enumerate(("full_self_attention", "cross_attention")):
            q, k, v = (own[f"{index}.block.attn.to_{part}.0.weight"] for part in "qkv")
            if index:
                layer |= {f"{name}.linear_q.weight": q, f"{name}.linear_kv.weight": interleaved([k, v])}
            else:
                layer[f"{name}.linear_qkv.weight"] = interleaved([q, k, v])
            layer[f"{name}.q_layernorm.weight"] = own[f"{index}.block.attn.to_q.1.weight"]
            layer[f"{name}.k_layernorm.weight"] = own[f"{index}.block.attn.to_k.1.weight"]
            layer[f"{name}.linear_proj.weight"] = own[f"{index}.block.attn.to_out.0.weight"]
        for n in (1, 2):
            layer[f"mlp.linear_fc{n}.weight"] = own[f"2.block.layer{n}.weight"]
        first, second = ([own[f"{j}.adaLN_modulation.{n}.weight"] for j in range(3)] for n in (1, 2))
        layer["adaLN.adaLN_modulation.1.weight"] = torch.cat(first)
        layer["adaLN.adaLN_modulation.2.weight"] = torch.block_diag(*second)
        layers.append(layer)
    for name in layers[0]:
        if stacked:
            out[f"module.decoder.layers.{name}"] = torch.stack([layer[name] for layer in layers])
        else:
            out |= {f"module.decoder.layers.{i}.{name}": layer[name] for i, layer in enumerate(layers)}
    for key, value in state.items():
        if "blocks." not in key:
            out[f"module.{key.removeprefix('net.')}"] = value
    # What a training checkpoint holds besides.
    out["module.decoder.layers.0.mlp._extra_state"] = torch.zeros(3, dtype=torch.uint8)
    out["optimizer.state.exp_avg.module.affline_norm.weight"] = torch.zeros(24)
    return {key: value.contiguous() for key, value in out.items()}


def write_torch_dist(folder: Path, state: dict[str, Tensor]) -> Path:
    """Write with torch.distributed.checkpoint; scalars and bytes lie among the tensors."""
    dcp.save({**state, "rng_state/shard_0_1": b"bytes"}, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    return folder


def write_shards(folder: Path, state: dict[str, Tensor]) -> Path:
    """Write as Megatron's ranks do: every layer of every half of the rows is a piece of its own, in two files."""
    folder.mkdir(parents=True)
    tensors, places = {}, {}
    with (folder / "__0_0.distcp").open("wb") as first, (folder / "__1_0.distcp").open("wb") as second:
        for name, value in state.items():
            stacked = re.match(r"module\.decoder\.layers\.[a-z]", name) is not None
            axis = 1 if stacked and value.ndim > 1 else 0
            halves = value.split(-(-value.shape[axis] // 2), axis)
            chunks = []
            for stream, half, start in zip((first, second), halves, (0, halves[0].shape[axis]), strict=False):
                for row, piece in enumerate(half.split(1) if stacked else [half]):
                    offset = [0] * value.ndim
                    offset[axis] += start
                    offset[0] += row
                    chunks.append(dcp_metadata.ChunkStorageMetadata(torch.Size(offset), piece.shape))
                    begin = stream.tell()
                    torch.save(piece.clone(), stream)
                    index = dcp_metadata.MetadataIndex(name, torch.Size(offset))
                    places[index] = _StorageInfo(Path(stream.name).name, begin, stream.tell() - begin)
            properties = dcp_metadata.TensorProperties(dtype=value.dtype)
            tensors[name] = dcp_metadata.TensorStorageMetadata(properties, value.shape, chunks)
    content = dcp_metadata.Metadata(tensors, {}, places)
    (folder / ".metadata").write_bytes(pickle.dumps(content))
    return folder


def write_zarr(folder: Path, state: dict[str, Tensor]) -> Path:
    """Write raw chunks of at most 16 rows, the last one padded, as zarr 2 stores them."""
    for name, value in state.items():
        (folder / name).mkdir(parents=True)
        chunk = (min(16, value.shape[0]), *value.shape[1:])
        kind = "bfloat16" if value.dtype == torch.bfloat16 else np.dtype(str(value.dtype)[6:]).str
        told = {"shape": value.shape, "chunks": chunk, "dtype": kind, "compressor": None, "filters": None, "order": "C"}
        (folder / name / ".zarray").write_text(json.dumps({**told, "zarr_format": 2, "fill_value": None}))
        for number, part in enumerate(value.split(chunk[0])):
            whole = torch.zeros(chunk, dtype=value.dtype)
            whole[: len(part)] = part
            file = folder / name / ".".join(map(str, (number, *[0] * (value.ndim - 1))))
            file.write_bytes(whole.view(torch.uint8).numpy().tobytes())
    return folder


WRITERS = [write_torch_dist, write_shards, write_zarr]


def network_state(task: str = "video2world", dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    state = published_state(tiny_network(f"predict1_7b_{task}"), "predict1")
    drop = ("pos_embedder.seq", "_extra_state")
    return {key: value.to(dtype) for key, value in state.items() if not any(part in key for part in drop)}


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("write", WRITERS)
def test_every_tensor_comes_back(tmp_path: Path, write: Callable[..., Path], stacked: bool) -> None:
    state = network_state()
    folder = write(tmp_path / "weights", nemo_state(state, stacked))
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)))
    file = import_checkpoint(tmp_path, tmp_path / "out")
    logger.remove(sink)
    assert find_checkpoint(tmp_path) == folder and file == tmp_path / "out" / "model.pt"
    found = torch.load(file, weights_only=True)
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, state[name]), name
    net = load_network(file, config=tiny_config("predict1_7b_video2world"))
    assert net.config.has_channel("cond_mask")
    assert any("best effort, unverified against the published files" in line for line in lines)


def test_text2world_in_another_dtype(tmp_path: Path) -> None:
    state = {key: value for key, value in network_state("text2world").items() if "logvar" not in key}
    write_zarr(tmp_path / "in", nemo_state(state, stacked=True))
    run(build_parser().parse_args([str(tmp_path / "in"), str(tmp_path / "net.pt"), "--dtype", "float32"]))
    found = torch.load(tmp_path / "net.pt", weights_only=True)
    assert all(torch.equal(value, state[name].float()) for name, value in found.items())


def test_keys_that_are_not_understood_or_missing(tmp_path: Path) -> None:
    state = nemo_state(network_state(), stacked=False)
    state["module.decoder.layers.1.mlp.gate.weight"] = torch.zeros(2)
    state["module.blocks.block0.weight"] = torch.zeros(3, 4)
    state.pop("module.affline_norm.weight")
    state.pop("module.decoder.layers.0.cross_attention.linear_kv.weight")
    folder = write_torch_dist(tmp_path / "in", state)
    with pytest.raises(CheckpointError) as error:
        import_checkpoint(folder, tmp_path / "out")
    text = str(error.value)
    assert "its tensors are not those of a Cosmos-1.0 network in NeMo\nnot understood: 2\n" in text
    assert "  module.decoder.layers.1.mlp.gate.weight (2,)" in text and "  module.blocks.block0.weight (3, 4)" in text
    missing = "missing: 2\n  module.affline_norm.weight\n  module.decoder.layers.0.cross_attention.linear_kv.weight"
    assert missing in text
    assert not (tmp_path / "out").exists()


def test_shapes_that_make_no_network(tmp_path: Path) -> None:
    state = nemo_state(network_state(), stacked=True)
    name = "module.decoder.layers.mlp.linear_fc1.weight"
    folder = write_torch_dist(tmp_path / "one", {**state, name: state[name][:, :, :-1].contiguous()})
    with pytest.raises(CheckpointError, match=r"wrong shape: 2\n.*blocks.0.mlp.layer1.weight  file \(96, 23\)"):
        import_checkpoint(folder, tmp_path / "out")
    name = "module.decoder.layers.full_self_attention.linear_qkv.weight"
    folder = write_torch_dist(tmp_path / "two", {**state, name: state[name][:, :-2].contiguous()})
    with pytest.raises(CheckpointError, match=r"to_q.0.weight: heads of 12 rows do not divide \(70, 24\)"):
        import_checkpoint(folder, tmp_path / "out")


def test_adaln_that_is_not_block_diagonal(tmp_path: Path) -> None:
    state = nemo_state(network_state(), stacked=True)
    plain = import_checkpoint(write_torch_dist(tmp_path / "plain", state), tmp_path / "plain.pt")
    state["module.decoder.layers.adaLN.adaLN_modulation.2.weight"][1, 0, -1] = 0.5
    folder = write_torch_dist(tmp_path / "mixed", state)
    with pytest.raises(CheckpointError, match=r"the adaLN of 1 layers mixes .* of the norm, in layer 1\).*--drop_off"):
        import_checkpoint(folder, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
    dropped = import_checkpoint(folder, tmp_path / "dropped.pt", drop_off_diagonal=True)
    one, other = (torch.load(path, weights_only=True) for path in (plain, dropped))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no such checkpoint; expected a folder of NeMo weights, with .metadata and"
    ):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "none")
    write_torch_dist(tmp_path / "in", nemo_state(network_state(), stacked=True))
    (tmp_path / "in" / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="1 .distcp files and no .metadata beside them"):
        read_checkpoint(tmp_path / "in")
    other = write_torch_dist(tmp_path / "other", {"model.layers.0.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"not understood: 1\n  model.layers.0.weight \(2,\)\nmissing: "):
        import_checkpoint(other, tmp_path / "out")


def test_missing_and_damaged_shards(tmp_path: Path) -> None:
    whole = write_shards(tmp_path / "whole", nemo_state(network_state(), stacked=True))

    def copy(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    folder = copy("missing")
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 shards are missing: __1_0.distcp"):
        read_checkpoint(folder)
    shard = copy("short") / "__1_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match="__1_0.distcp: ends before byte"):
        read_checkpoint(shard.parent)
    shard = copy("damaged") / "__0_0.distcp"
    shard.write_bytes(b"x" * shard.stat().st_size)
    with pytest.raises((CorruptFileError, UnsafeFileError), match="__0_0.distcp: "):
        import_checkpoint(shard.parent, tmp_path / "out")
    content = pickle.loads((whole / ".metadata").read_bytes())
    lost = next(index for index in content.storage_data if "linear_fc1" in index.fqn)
    del content.storage_data[lost]
    (copy("gap") / ".metadata").write_bytes(pickle.dumps(content))
    with pytest.raises(CorruptFileError, match=rf"parts of {lost.fqn} \(2, 96, 24\) are missing"):
        read_checkpoint(tmp_path / "gap")
    content.storage_data[lost] = _StorageInfo("../outside", 0, 1)
    (copy("outside") / ".metadata").write_bytes(pickle.dumps(content))
    with pytest.raises(UnsafeFileError, match=r"it names '../outside' outside its own folder"):
        read_checkpoint(tmp_path / "outside")


def test_zarr_that_cannot_be_read(tmp_path: Path) -> None:
    whole = write_zarr(tmp_path / "in", nemo_state(network_state(), stacked=True))
    array = whole / "module.affline_norm.weight"
    told = json.loads((array / ".zarray").read_text())
    (array / ".zarray").write_text(json.dumps({**told, "compressor": {"id": "blosc"}}))
    with pytest.raises(CheckpointError, match="only plain arrays of numbers are read"):
        read_checkpoint(whole)
    (array / ".zarray").write_text("{}")
    with pytest.raises(CorruptFileError, match="no description of a zarr array"):
        read_checkpoint(whole)
    (array / ".zarray").write_text(json.dumps(told))
    (array / "1").write_bytes(b"short")
    with pytest.raises(CorruptFileError, match="1: 5 bytes, expected 32"):
        read_checkpoint(whole)
    (array / "1").unlink()
    with pytest.raises(FileNotFoundError, match="this chunk of module.affline_norm.weight is missing"):
        read_checkpoint(whole)


def test_metadata_of_megatron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own class with a field more, and the path of the folder, are read without importing it."""
    name = "megatron.core.dist_checkpointing.strategies.torch"
    module = types.ModuleType(name)
    kind = dataclasses.make_dataclass("MCoreMetadata", [("mcore_data", dict, None)], bases=(dcp_metadata.Metadata,))
    kind.__module__ = name
    module.MCoreMetadata = kind  # type: ignore[attr-defined]
    parts = name.split(".")
    parents = [".".join(parts[:count]) for count in range(1, len(parts))]
    for parent in parents:
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    folder = write_shards(tmp_path / "weights", nemo_state(network_state(), stacked=True))
    plain = pickle.loads((folder / ".metadata").read_bytes())
    told = dcp_metadata.StorageMeta(checkpoint_id=tmp_path, save_id="1")
    extra = {"mcore_data": {"a": {"nd_reformulated_orig_global_shape": (1, 2)}}}
    content = kind(plain.state_dict_metadata, {}, plain.storage_data, told, **extra)
    (folder / ".metadata").write_bytes(pickle.dumps(content))
    for each in (name, *parents):
        monkeypatch.delitem(sys.modules, each)
    assert len(read_checkpoint(folder)) == len(plain.state_dict_metadata)


class Harmful:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("harm"),)


@pytest.mark.parametrize("content", [Harmful(), {"a": Harmful()}, [1, 2], {"state_dict_metadata": 3}])
def test_metadata_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(content))
    with pytest.raises((UnsafeFileError, CorruptFileError), match=r"\.metadata: (refused|no metadata of torch)"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.slow
def test_the_program(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/import_nemo_checkpoint.py", str(tmp_path), str(tmp_path / "model.pt")]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (
        result.returncode == 2 and "error: " in result.stderr and "expected a folder of NeMo weights" in result.stderr
    )
    result = subprocess.run([*command[:2], "--help"], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert "unverified against the published files" in " ".join(result.stdout.split())
