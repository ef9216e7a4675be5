"""TorchScript archives give their state dict without TorchScript, and never run code."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from cosmos_predict.errors import CheckpointError, CorruptFileError, UnsafeFileError
from cosmos_predict.io.jit_archive import read_jit_archive
from cosmos_predict.io.tensors import TensorFile, load_tensors


class Block(nn.Module):
    plain: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(3, 2, (1, 3, 3), bias=False)
        self.register_buffer("wavelets", torch.tensor([0.7, 0.7]))
        self.plain = torch.ones(4)  # a tensor, but neither parameter nor buffer
        self.sizes = [1, 2, 3]
        self.scales = [0.5, 1.5]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3d(x) * self.wavelets.sum() + self.plain.sum()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"conv_in": nn.Sequential(Block(), nn.GELU())})
        self.quant = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)])
        self.quant[1].weight = nn.Parameter(torch.randn(4, 4).bfloat16().float())
        self.register_buffer("steps", torch.arange(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.encoder["conv_in"]:
            x = layer(x)
        for layer in self.quant:
            x = layer(x)
        return x + self.steps.sum()


@pytest.fixture(params=["trace", "script", "bfloat16"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    network = Network().eval()
    if request.param == "script":
        scripted = torch.jit.script(Block())
        network = nn.Sequential(Block(), Block())
        scripted = torch.jit.script(network)
    else:
        x = torch.zeros(1, 3, 2, 6, 6)
        if request.param == "bfloat16":
            network, x = network.bfloat16(), x.bfloat16()
        scripted = torch.jit.trace(network, x)
    path = tmp_path / "encoder.jit"
    torch.jit.save(scripted, path)
    return path, network.state_dict()


def test_same_as_the_modules_state_dict(archive: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, expected = archive
    for found in (read_jit_archive(path), load_tensors(path), torch.jit.load(path).state_dict()):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    with TensorFile(path) as file:
        name = file.keys()[0]
        assert torch.equal(file.get(name), expected[name]) and file.shape(name) == tuple(expected[name].shape)


def test_truncated(archive: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = archive
    data = path.read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptFileError, match=r"encoder\.jit"):
            load_tensors(path)
        with pytest.raises(CorruptFileError, match=r"encoder\.jit"):
            read_jit_archive(path)


def rewrite(path: Path, replacements: dict[str, bytes | None]) -> None:
    """Replace (or with None drop) records of an archive, by the end of their names."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            new = next((new for end, new in replacements.items() if name.endswith(end)), data)
            if new is not None:
                archive.writestr(name, new)


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_an_archive_that_runs_code_is_refused(
    archive: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, protocol: int
) -> None:
    path, _ = archive
    marker = tmp_path / "marker"
    rewrite(path, {"/data.pkl": pickle.dumps({"weight": RunsCode(marker)}, protocol=protocol)})
    for read in (read_jit_archive, load_tensors, TensorFile):
        with pytest.raises(UnsafeFileError, match=r"encoder\.jit: refused, the pickle asks for posix\.system"):
            read(path)
    assert not marker.exists()


def test_source_that_would_run_code_is_never_run(archive: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    path, expected = archive
    marker = tmp_path / "marker"
    with zipfile.ZipFile(path, "a") as file:
        root = file.namelist()[0].split("/")[0]
        file.writestr(f"{root}/code/evil.py", f"import os\nos.system('touch {marker}')\nclass Evil(Module):\n  pass\n")
    assert read_jit_archive(path).keys() == expected.keys()
    assert not marker.exists()


def test_a_tensor_beyond_its_data_is_refused(archive: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = archive
    rewrite(path, {"/data/0": b"\0\0"})
    with pytest.raises(CorruptFileError, match=r"encoder\.jit"):
        read_jit_archive(path)
    rewrite(path, {"/data/0": None})
    with pytest.raises(CorruptFileError, match=r"the tensor data \w+/data/0 is missing"):
        read_jit_archive(path)


def test_modules_that_contain_each_other_are_refused(archive: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = archive
    rewrite(path, {"/data.pkl": b"\x80\x02c__torch__\nM\nq\x00)\x81q\x01}X\x01\x00\x00\x00ah\x01sb."})
    with pytest.raises(CorruptFileError, match="contain each other without end"):
        read_jit_archive(path)


def test_a_frozen_archive_says_so(tmp_path: Path) -> None:
    frozen = torch.jit.freeze(torch.jit.trace(nn.Linear(2, 2).eval(), torch.ones(1, 2)))
    torch.jit.save(frozen, tmp_path / "frozen.jit")
    with pytest.raises(CheckpointError, match=r"no parameters or buffers \(was it frozen\?\)"):
        load_tensors(tmp_path / "frozen.jit")
