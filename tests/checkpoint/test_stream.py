"""Streaming writers: files that torch and safetensors read, in memory for one tensor."""

import json
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from cosmos_predict.checkpoint.stream import Entry, entries_of, parse_size, write_tensors
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.tensors import load_tensors

STATE = {
    "a.weight": torch.randn(3, 5),
    "scalar": torch.tensor(7),
    "empty": torch.empty(0, 4),
    "half": torch.randn(7, 3).bfloat16(),
    "bool": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "transposed": torch.randn(4, 6).t(),
    "double": torch.randn(2, dtype=torch.float64),
    "fp16": torch.randn(3).half(),
}


def equal(found):
    assert set(found) == set(STATE)
    return all(
        torch.equal(found[k], v) and found[k].dtype == v.dtype and found[k].shape == v.shape for k, v in STATE.items()
    )


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_the_pt_with_weights_only_and_in_order(mmap, tmp_path):
    path = tmp_path / "model.pt"
    assert write_tensors(path, entries_of(STATE)) == [path]
    found = torch.load(path, weights_only=True, mmap=mmap)
    assert equal(found) and list(found) == list(STATE)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    if mmap:
        assert all(value.data_ptr() % 64 == 0 for value in found.values())


def test_the_same_pt_is_written_again_byte_for_byte(tmp_path):
    for name in ("a", "b"):
        write_tensors(tmp_path / name / "model.pt", entries_of(STATE))
    assert (tmp_path / "a" / "model.pt").read_bytes() == (tmp_path / "b" / "model.pt").read_bytes()


def test_safetensors_reads_the_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, entries_of(STATE), metadata={"key": "value"})
    assert equal(load_file(path))
    assert json.loads(path.read_bytes()[8:].split(b"}", 1)[0][len('{"__metadata__":') :] + b"}") == {
        "format": "pt",
        "key": "value",
    }


def test_float8_only_in_safetensors(tmp_path):
    state = {"w": torch.randn(4, 4).to(torch.float8_e4m3fn)}
    write_tensors(tmp_path / "m.safetensors", entries_of(state))
    assert torch.equal(load_file(tmp_path / "m.safetensors")["w"].float(), state["w"].float())
    with pytest.raises(
        CheckpointError, match=r"tensor 'w' has dtype torch.float8_e4m3fn, which a \.pt file cannot hold"
    ):
        write_tensors(tmp_path / "m.pt", entries_of(state))
    assert not (tmp_path / "m.pt").exists()


def test_shards_with_an_index(tmp_path):
    path = tmp_path / "model.safetensors"
    files = write_tensors(path, entries_of(STATE), max_shard_bytes=100)
    assert files[0].name == "model-00001-of-00003.safetensors" and files[-1].name == "model.safetensors.index.json"
    index = json.loads(files[-1].read_text())
    assert index["metadata"]["total_size"] == sum(v.numel() * v.itemsize for v in STATE.values())
    assert equal(load_tensors(tmp_path)) and equal(load_tensors(files[-1]))
    assert all(sum(t.numel() * t.itemsize for t in load_file(f).values()) <= 100 for f in files[1:-1])
    assert write_tensors(tmp_path / "one.safetensors", entries_of(STATE), max_shard_bytes=10**6) == [
        tmp_path / "one.safetensors"
    ]


def test_nothing_is_left_behind_when_a_tensor_fails(tmp_path):
    def fail():
        raise RuntimeError("disk on fire")

    entries = [*entries_of({"a": torch.zeros(3)}), Entry("b", (2,), torch.float32, fail)]
    for suffix in ("pt", "safetensors"):
        with pytest.raises(RuntimeError, match="disk on fire"):
            write_tensors(tmp_path / f"m.{suffix}", entries)
    wrong = [Entry("a", (2,), torch.float32, lambda: torch.zeros(3))]
    with pytest.raises(CheckpointError, match=r"tensor 'a' came as \(3,\) torch.float32, announced as \(2,\)"):
        write_tensors(tmp_path / "m.pt", wrong)
    assert list(tmp_path.iterdir()) == []


def test_refused_arguments(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown kind of file '\.bin'"):
        write_tensors(tmp_path / "m.bin", [])
    with pytest.raises(ConfigError, match="a .pt file is written in one piece"):
        write_tensors(tmp_path / "m.pt", [], max_shard_bytes=5)
    with pytest.raises(CheckpointError, match="two tensors are named 'a'"):
        write_tensors(tmp_path / "m.pt", [*entries_of({"a": torch.zeros(1)})] * 2)


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5MiB", 3 * 2**19), ("700 KB", 700_000), ("12", 12)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-3GB", "0"])
def test_sizes_that_are_none(text):
    with pytest.raises(ConfigError, match=f"size '{text}' is not a number of bytes"):
        parse_size(text)


MEASURE = """
import resource, sys, torch
from cosmos_predict.checkpoint.convert import Conversion, convert
from cosmos_predict.checkpoint.stream import Entry, write_tensors
from cosmos_predict.networks.dit import build_dit
from tests.checkpoint.small import tiny_config
from cosmos_predict.checkpoint.metadata import config_to_json, METADATA_KEY

folder, suffix = sys.argv[1:]
config = tiny_config("predict2_2b_video2world", model_channels=2048, num_blocks=3, adaln_lora_dim=64, crossattn_emb_channels=512)
net = build_dit(config, device="meta")
entries = [
    Entry(f"net.{n}", tuple(p.shape), torch.float32, lambda s=p.shape: torch.full(s, 0.5)) for n, p in net.named_parameters()
]
# The first passes grow the allocator and import what is lazy; small files through the same code.
small = [Entry("net." + n, tuple(p.shape), torch.float32, lambda p=p: torch.zeros(p.shape))
         for n, p in build_dit(tiny_config("predict2_2b_video2world"), device="meta").named_parameters()]
write_tensors(f"{folder}/warm.safetensors", small, metadata={METADATA_KEY: config_to_json(tiny_config("predict2_2b_video2world"))})
convert(f"{folder}/warm.safetensors", f"{folder}/warm_out.{suffix}", Conversion(to="diffusers"))
write_tensors(f"{folder}/in.pt", entries)
with open("/proc/self/statm") as stream:
    before = int(stream.read().split()[1]) * resource.getpagesize()
convert(f"{folder}/in.pt", f"{folder}/out.{suffix}", Conversion(to="predict1", config=config))
with open("/proc/self/status") as stream:  # ru_maxrss would count the parent's memory from before the exec
    peak = next(int(line.split()[1]) for line in stream if line.startswith("VmHWM")) * 1024
print(peak - before, max(e.nbytes for e in entries), sum(e.nbytes for e in entries))
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_conversion_needs_memory_for_its_largest_tensor(suffix, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), suffix], capture_output=True, text=True, check=True
    )
    growth, largest, total = map(int, done.stdout.split())
    # The tensor as mapped from the file and its copy, and a little for the libraries.
    assert total > 10 * largest and growth < 2.25 * largest, (growth, largest, total)
