"""Files to generate from: run folders of small random networks, without training, and a clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.config.compose import compose
from cosmos_predict.config.files import save_config
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.data import video_reader
from cosmos_predict.networks.dit import DiT, build_dit
from cosmos_predict.training.trainer import Trainer


def train_predict1(root: Path, experiment: str, *overrides: str, data: str = "data=synthetic") -> RunFolder:
    """Train a published Predict1 experiment, its debug form, on generated clips or on `data`; return its folder."""
    given = [f"experiment={experiment}", data, "debug=true", "trainer.max_iter=2", "optimizer.lr=0.02"]
    config = compose([*given, "scheduler.warm_up_steps=[0]", f"job.root={root}", *overrides], report=[])
    config.validate()
    config.freeze()
    trainer = Trainer(config, device="cpu")
    trainer.train()
    return trainer.folder


def write_run(root: Path, *, num_frames: int = 9, channels: str = "", family: str = "predict2") -> Path:
    """Write a run folder with config.yaml and one exported file of random weights (EMA: other ones); return the file."""
    overrides = ["experiment=tiny_video2world", "data=synthetic", "debug=true"]
    overrides += [f"dataloader_train.dataset.num_frames={num_frames}", f"model.config.pipe_config.family={family}"]
    overrides += [f"model.config.pipe_config.net.input_channels={channels}"] if channels else []
    config = compose(overrides, report=[])
    (root / "checkpoints" / "model").mkdir(parents=True)
    save_config(config, root / "config.yaml")
    weights = {}
    for part, seed in (("net", 0), ("net_ema", 1)):
        torch.manual_seed(seed)
        assert config.model is not None
        net = build_dit(instantiate(config.model.config.pipe_config.net))
        DiT.init_weights(net)
        for parameter in net.parameters():  # zero layers would make a network that ignores its input
            torch.nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else None
        weights |= {f"{part}.{name}": value for name, value in net.state_dict().items()}
    file = root / "checkpoints" / "model" / "iter_000000001.pt"
    torch.save(weights, file)
    return file


def write_clip(path: Path) -> Path:
    """Write a video of 12 frames, 48 x 64: a red block that moves to the right."""
    frames = np.full((12, 48, 64, 3), 90, np.uint8)
    for index in range(12):
        frames[index, 10:30, 2 * index : 2 * index + 16] = (220, 60, 40)
    video_reader.write_video(path, frames, fps=16)
    return path
