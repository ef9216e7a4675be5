"""What a checkpoint path is taken for: family, clip, sampler, tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cosmos_predict.checkpoint.metadata import METADATA_KEY, config_to_json
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.models.config import PipeConfig
from cosmos_predict.models.sampling import SamplerSettings
from cosmos_predict.models.world_model import WorldModel
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import build_dit
from cosmos_predict.networks.sparse_attention import PUBLISHED
from cosmos_predict.pipelines.load import load_world_model, read_checkpoint
from cosmos_predict.pipelines.video2world import Clip, generate
from tests.pipelines.small import write_run

SMALL = DiTConfig(model_channels=32, num_blocks=1, num_heads=2, adaln_lora_dim=8, crossattn_emb_channels=16)


def write_net(path: Path, config: DiTConfig, scale: float | None = None) -> Path:
    """Write a random network as a published file would hold it, its configuration in the metadata. scale: of its weights,
    the same at every call; without it as they are for training, when no block does anything."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {f"net.{name}": value for name, value in build_dit(config).state_dict().items()}
    torch.manual_seed(0)
    for value in weights.values():
        torch.nn.init.normal_(value, std=scale) if scale and value.ndim > 1 else None
    save_file(weights, path, {METADATA_KEY: config_to_json(config)})
    return path


@pytest.mark.parametrize(
    ("name", "frames", "size", "fps"),
    [
        ("model-720p-16fps", 93, (704, 1280), 16),
        ("model-480p-10fps", 61, (432, 768), 10),
        ("mine", 93, (704, 1280), 16),
    ],
)
def test_the_name_of_a_published_file_tells_the_clip(
    tmp_path: Path, name: str, frames: int, size: tuple[int, int], fps: float
) -> None:
    found = read_checkpoint(write_net(tmp_path / f"{name}.safetensors", SMALL))
    assert (found.clip.num_frames, found.clip.video_size, found.clip.fps) == (frames, size, fps)
    assert found.settings == SamplerSettings()


def test_an_image_network(tmp_path: Path) -> None:
    found = read_checkpoint(
        write_net(tmp_path / "model.safetensors", SMALL.replace(input_channels=(("latent", 16), ("padding", 1))))
    )
    assert found.clip.num_frames == 1 and found.settings.guidance == 4
    with pytest.raises(CheckpointError, match="its tokenizer is a published program and not built here; use model.saf"):
        read_checkpoint(write_net(tmp_path / "model_fast_tokenizer.safetensors", SMALL))


def test_sparse_attention_of_a_published_name_and_by_request(tmp_path: Path) -> None:
    deep = SMALL.replace(num_blocks=28)
    named = read_checkpoint(write_net(tmp_path / "model-720p-16fps-natten.safetensors", deep))
    asked = read_checkpoint(write_net(tmp_path / "mine.safetensors", deep), natten=True)
    for found in (named, asked):
        assert found.config.pipe_config.net == deep.replace(sparse_attention=PUBLISHED[28])
    assert (named.clip.num_frames, named.clip.video_size) == (93, (704, 1280))
    assert read_checkpoint(tmp_path / "mine.safetensors").config.pipe_config.net == deep
    own = write_net(tmp_path / "own-natten.safetensors", SMALL.replace(sparse_attention="S"))  # its file says it
    assert read_checkpoint(own).config.pipe_config.net == SMALL.replace(sparse_attention="S")
    with pytest.raises(ConfigError, match=r"natten\) was published for .* 28 and 36 blocks, this one has 1"):
        read_checkpoint(write_net(tmp_path / "model-720p-10fps-natten.safetensors", SMALL))


def test_predict25_base_and_post_trained(tmp_path: Path) -> None:
    config = SMALL.replace(crossattn_proj_in_channels=64)
    base = read_checkpoint(write_net(tmp_path / "pre-trained" / "a.safetensors", config))
    assert base.config.pipe_config.family == "predict2.5" and base.config.pipe_config.sigma_conditional is None
    assert (base.settings.solver, base.settings.shift, base.settings.timestep_bins) == ("unipc", 5.0, 1000)
    tuned = read_checkpoint(write_net(tmp_path / "post-trained" / "a.safetensors", config))
    assert tuned.config.pipe_config.sigma_conditional == 1e-4
    assert (tuned.settings.shift, tuned.settings.sigma_min, tuned.settings.sigma_max) == (None, 0.01, 200.0)
    assert len(tuned.settings.sigmas()) == 37  # 36 Karras values and 0


@pytest.mark.parametrize("post_trained", [False, True])
def test_predict25_tells_the_network_whole_timesteps(post_trained: bool) -> None:
    """Also with given frames, whose own level (the post-trained model's) is told exactly."""
    torch.manual_seed(0)
    config = SMALL.replace(crossattn_proj_in_channels=64)
    pipe = PipeConfig(net=config, family="predict2.5", sigma_conditional=1e-4 if post_trained else None)
    if post_trained:
        pipe.sampler = {"shift": None, "sigma_min": 0.01, "sigma_max": 200.0}
    from cosmos_predict.models.config import ModelConfig
    from cosmos_predict.tokenizers.load import build_tokenizer

    model = WorldModel(ModelConfig(pipe_config=pipe), build_dit(config), build_tokenizer("dct"))
    seen: list[torch.Tensor] = []
    model.net.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[1].clone()))
    clip = Clip(np.full((1, 32, 32, 3), 128, np.uint8), 9, (32, 32))
    settings = SamplerSettings.for_pipe(pipe, num_steps=5, guidance=0.0)
    generate(model, clip, torch.zeros(1, 4, 64), settings=settings)
    told = torch.stack([times.reshape(-1) for times in seen])  # (evaluations, T)
    sigmas = settings.sigmas()[:-1].double()
    expected = torch.floor(1000 * sigmas / (1 + sigmas) + 1e-4) / 1000
    torch.testing.assert_close(told[:, 1:].double(), expected[: len(told), None].expand(-1, 2), rtol=0, atol=1e-6)
    given = torch.full_like(told[:, 0], 1e-4 / (1 + 1e-4)) if post_trained else told[:, 1]
    torch.testing.assert_close(told[:, 0], given)


def test_a_moved_file_needs_its_config(tmp_path: Path) -> None:
    run_file = write_run(tmp_path / "run")
    moved = tmp_path / "elsewhere" / "mine.pt"
    moved.parent.mkdir()
    shutil.copy(run_file, moved)
    with pytest.raises(
        CheckpointError,
        match=r"a network of 128 channels and 1 blocks is no published size, .*: --config RUN/config.yaml",
    ):
        load_world_model(moved)
    found = load_world_model(moved, config=tmp_path / "run" / "config.yaml")
    assert found.clip.num_frames == 9 and found.path == moved
    with pytest.raises(FileNotFoundError, match="no config file"):
        load_world_model(moved, config=tmp_path / "none.yaml")


def test_missing_tokenizers_and_other_ones(tmp_path: Path) -> None:
    path = write_net(tmp_path / "model.safetensors", SMALL)
    with pytest.raises(
        ConfigError, match=r"no weights of the video tokenizer 'wan2.1' at .*tokenizer: give --tokenizer_path FILE"
    ):
        load_world_model(path)
    assert load_world_model(path, tokenizer_path="dct").model.tokenizer.latent_ch == 16
    with pytest.raises(ConfigError, match="'wan2.2' at wan2.2|video tokenizer 'wan2.1' at wan2.2"):
        load_world_model(path, tokenizer_path="wan2.2")
