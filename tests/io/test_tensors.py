"""Reading named tensors from every kind of file, and refusing what is broken or unsafe."""

import io
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cosmos_predict.errors import CheckpointError, CorruptFileError, UnsafeFileError
from cosmos_predict.io.tensors import TensorFile, load_tensors, load_torch_file


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "blocks.0.weight": torch.randn(5, 7, generator=generator),
        "blocks.0.bias": torch.randn(5, generator=generator).bfloat16(),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "eight": torch.randn(3, generator=generator).to(torch.float8_e4m3fn),
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].float(), tensor.float()), name


class RunsCode:
    """Pickles to a call of os.system that would create `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path, expected = tmp_path / f"model{suffix}", some_tensors()
    save_file(expected, path) if suffix == ".safetensors" else torch.save(expected, path)
    assert_same(load_tensors(path), expected)
    assert_same(load_tensors(tmp_path), expected)  # a folder with one tensor file
    with TensorFile(path) as file:
        assert {name: (file.shape(name), file.dtype(name)) for name in file} == {
            name: (tuple(tensor.shape), tensor.dtype) for name, tensor in expected.items()
        }
        assert_same({name: file.get(name) for name in file}, expected)
        with pytest.raises(KeyError, match="no tensor 'nothing' among its 5"):
            file.get("nothing")


def test_legacy_format(tmp_path: Path) -> None:
    expected = {"weight": torch.arange(6.0).reshape(2, 3)}
    torch.save(expected, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(load_tensors(tmp_path / "old.pth"), expected)


def test_views_of_one_storage_are_copied_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"row": whole[1], "transposed": whole.T}, tmp_path / "views.pt")
    file = TensorFile(tmp_path / "views.pt")
    row = file.get("row")
    assert row.untyped_storage().nbytes() == 16
    assert torch.equal(file.get("transposed"), whole.T) and file.get("transposed").is_contiguous()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_writing_to_a_tensor_reaches_neither_the_file_nor_a_later_read(tmp_path: Path, suffix: str) -> None:
    path, expected = tmp_path / f"model{suffix}", some_tensors()
    save_file(expected, path) if suffix == ".safetensors" else torch.save(expected, path)
    before = path.read_bytes()
    file = TensorFile(path)
    file.get("blocks.0.weight").zero_()
    assert torch.equal(file.get("blocks.0.weight"), expected["blocks.0.weight"])
    load_tensors(path)["blocks.0.weight"].zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_one_tensor_at_a_time_needs_memory_for_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    expected = {f"w{i}": torch.full((1024, 1024), float(i)) for i in range(16)}  # 4 MiB each, 64 MiB in all
    save_file(expected, path) if suffix == ".safetensors" else torch.save(expected, path)
    del expected

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    with TensorFile(path) as file:
        file.get("w0")
        before = resident()
        highest = 0
        for i, name in enumerate(sorted(file, key=lambda name: int(name[1:]))):
            assert file.get(name).eq(i).all()
            highest = max(highest, resident() - before)
    assert highest < 24 * 2**20


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict"])
def test_wrappers(tmp_path: Path, wrapper: str) -> None:
    expected = {"net.weight": torch.ones(2)}
    torch.save({wrapper: expected, "iteration": 7}, tmp_path / "wrapped.pt")
    assert_same(load_tensors(tmp_path / "wrapped.pt"), expected)
    torch.save({wrapper: {"net": {}}, "iteration": 7}, tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="no named tensors.*it holds net: dict"):
        load_tensors(tmp_path / "none.pt")


def test_parameters_become_plain_tensors(tmp_path: Path) -> None:
    torch.save(dict(torch.nn.Linear(2, 2).named_parameters()), tmp_path / "parameters.pt")
    file = TensorFile(tmp_path / "parameters.pt")
    tensors = [*load_tensors(tmp_path / "parameters.pt").values(), file.get("weight")]
    assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in tensors)


def test_a_tensor_named_like_a_wrapper_is_not_entered(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "model": {"other": torch.zeros(1)}}, tmp_path / "flat.pt")
    file = TensorFile(tmp_path / "flat.pt")
    assert file.keys() == ["weight"] and file.others == {"model": "dict"}


def test_transformer_engine_extra_state(tmp_path: Path) -> None:
    content = {"w": torch.ones(2), "q_norm._extra_state": io.BytesIO(b"state"), "attn_op._extra_state": None}
    torch.save(content, tmp_path / "te.pt")
    file = TensorFile(tmp_path / "te.pt")
    assert file.keys() == ["w"]
    assert file.others == {"q_norm._extra_state": "BytesIO", "attn_op._extra_state": "NoneType"}


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    expected = some_tensors()
    save_file(expected, tmp_path / "misnamed.pt")
    assert_same(load_tensors(tmp_path / "misnamed.pt"), expected)


def test_load_torch_file_gives_any_plain_object(tmp_path: Path) -> None:
    torch.save((torch.zeros(4), torch.ones(4)), tmp_path / "mean_std.pt")
    mean, std = load_torch_file(tmp_path / "mean_std.pt")
    assert mean.sum() == 0 and std.sum() == 4
    with pytest.raises(CheckpointError, match=r"holds a tuple, expected a dict of tensors"):
        load_tensors(tmp_path / "mean_std.pt")
    torch.save(torch.ones(2), tmp_path / "single.pth")
    with pytest.raises(CheckpointError, match="single unnamed tensor"):
        load_tensors(tmp_path / "single.pth")
    save_file(some_tensors(), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a safetensors file, expected one written by torch\.save"):
        load_torch_file(tmp_path / "a.safetensors")


def save_sharded(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[:2], names[2:])):
        file = f"diffusion_pytorch_model-{i + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_sharded_folder(tmp_path: Path) -> None:
    expected = some_tensors()
    index = save_sharded(tmp_path / "transformer", expected)
    assert_same(load_tensors(tmp_path / "transformer"), expected)
    assert_same(load_tensors(index), expected)


def test_sharded_folder_with_a_missing_shard(tmp_path: Path) -> None:
    index = save_sharded(tmp_path / "m", some_tensors())
    (tmp_path / "m" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of its 2 shards are missing: diffusion_pytorch_model-00002"):
        load_tensors(index)


def test_sharded_index_that_lies(tmp_path: Path) -> None:
    index = save_sharded(tmp_path / "m", some_tensors())
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "diffusion_pytorch_model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CorruptFileError, match=r"lacks 1 tensors that its index lists, e\.g\. ghost"):
        load_tensors(index)
    content["weight_map"]["ghost"] = "../../secret.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(UnsafeFileError, match=r"names '\.\./\.\./secret\.safetensors' outside its own folder"):
        load_tensors(index)
    index.write_text("{}")
    with pytest.raises(CorruptFileError, match="no sharded index with a weight_map"):
        load_tensors(index)


def test_folders_without_one_clear_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the folder has no tensor file"):
        load_tensors(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"w": torch.ones(1)}, tmp_path / name)
    with pytest.raises(
        CheckpointError, match=r"several tensor files \(a\.safetensors, b\.safetensors\); give the path"
    ):
        load_tensors(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"absent\.pt: no such file or folder"):
        load_tensors(tmp_path / "absent.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".legacy.pt"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.99])
def test_truncated(tmp_path: Path, suffix: str, keep: float) -> None:
    path, tensors = tmp_path / f"model{suffix}", {"w": torch.randn(300, 10), "v": torch.randn(5)}
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=suffix == ".pt")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CorruptFileError) as caught:
        load_tensors(path)
    message = str(caught.value)
    assert str(path) in message and "download it again" in message
    assert "empty" in message if keep == 0 else str(int(len(data) * keep)) in message


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CorruptFileError, match="Git LFS pointer"):
        load_tensors(path)
    path.write_text("<html>sign in</html>")
    with pytest.raises(CorruptFileError, match="begin with b'<html>sign"):
        load_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(CorruptFileError, match=r"a zip file without data\.pkl"):
        load_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_runs_code_is_refused(tmp_path: Path, zipped: bool) -> None:
    path, marker = tmp_path / "model.pt", tmp_path / "marker"
    torch.save({"w": torch.ones(1), "x": RunsCode(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeFileError, match=r"asks for posix\.system.*safetensors\.torch\.save_file"):
        load_tensors(path)
    assert not marker.exists()


def test_a_file_that_needs_weights_only_false_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(1), "config": Path("x"), "_extra_state": io.BytesIO(b"")}, path)
    with pytest.raises(UnsafeFileError, match=r"asks for .*pathlib\.\w*Path"):
        load_tensors(path)
