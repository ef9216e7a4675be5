"""Train `tiny_video2world` on clips whose motion only the caption tells, and print how well held-out clips are predicted.

    python -m tests.training.learning_program real|shuffled|frozen ROOT [SEED]

A bright square of any colour stands anywhere on a dark ground and moves left or right, slowly or fast. The first frame
says nothing about the motion: every scene comes with each of the four motions. `shuffled` gives the training clips each
other's captions, `frozen` has learning rate 0. Lines: `ITERATION MSE` on held-out scenes at a noise level that hides the
clip, and `blind MSE`, the least that a prediction can have there that depends on the given frame alone.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cosmos_predict.config.compose import compose
from cosmos_predict.config.lazy import LazyCall, configurable
from cosmos_predict.randomness import numpy_generator
from cosmos_predict.text_encoders.tiny import TinyTextEncoder
from cosmos_predict.training.trainer import Trainer

FRAMES, HEIGHT, WIDTH, SIDE = 5, 32, 96, 24
MOTIONS = list(itertools.product((-1, 1), (1.5, 3.0)))  # direction, pixels per frame
CAPTIONS = [f"{speed} to the {side}" for side, speed in itertools.product(("left", "right"), ("slowly", "fast"))]
TRAINED, HELD_OUT = 512, 64  # clips
STEPS = 400
CHANNELS = 8  # latent: what the noise fills and the network has to remove before anything else pays
STD = [0.327, 0.125, 0.03, 0.036, 0.08, 0.058, 0.03, 0.03]


@configurable
class MovingSquares(Dataset[dict[str, Any]]):
    """`clips` clips, of which each four in a row are a scene with every motion; sample n is one, each once per epoch."""

    def __init__(self, clips: int, seed: int, shuffled_captions: bool = False) -> None:
        self.clips, self.seed = clips, seed
        self.said = np.arange(clips) % len(MOTIONS)
        if shuffled_captions:
            self.said = numpy_generator(seed, 0, "captions").permutation(self.said)
        # No longer than they are: padding, which a network learns to overlook, would be most of the work.
        self.texts, self.masks = TinyTextEncoder().encode(CAPTIONS, max_length=1 + max(map(len, CAPTIONS)))

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, position = divmod(number, self.clips)
        clip = int(numpy_generator(self.seed, epoch, "order").permutation(self.clips)[position])
        return {
            "video": self.draw(clip),
            "t5_text_embeddings": self.texts[self.said[clip]],
            "t5_text_mask": self.masks[self.said[clip]].long(),
            "fps": 16.0,
            "num_frames": FRAMES,
            "image_size": torch.tensor([HEIGHT, WIDTH, HEIGHT, WIDTH]),
            "padding_mask": torch.zeros(1, HEIGHT, WIDTH),
            "sample_number": torch.tensor(number),
        }

    def draw(self, clip: int) -> Tensor:
        """Return clip number `clip`, uint8 (3, T, H, W)."""
        random = numpy_generator(self.seed, clip // len(MOTIONS), "scene")
        y, x = int(random.integers(0, HEIGHT - SIDE + 1)), int(random.integers(24, 49))
        colour = random.integers(180, 256, 3)
        direction, speed = MOTIONS[clip % len(MOTIONS)]
        frames = np.full((3, FRAMES, HEIGHT, WIDTH), 16, np.uint8)
        for time in range(FRAMES):
            left = x + round(direction * speed * time)
            frames[:, time, y : y + SIDE, left : left + SIDE] = colour[:, None, None]
        return torch.from_numpy(frames)


def trainer_of(kind: str, seed: int) -> Trainer:
    config = compose(
        [
            "experiment=tiny_video2world",
            "data=synthetic",
            f"dataloader_train.dataset.num_frames={FRAMES}",
            "dataloader_train.batch_size=8",
            "dataloader_val={_target_: cosmos_predict.data.loader.build_dataloader, batch_size: 32}",
            "model.config.high_sigma_ratio=0.5",
            "model.config.pipe_config.text_dropout=0",
            f"optimizer.lr={0.0 if kind == 'frozen' else 3e-3}",
            f"trainer.seed={seed}",
            f"trainer.max_iter={STEPS}",
            f"trainer.validation_iter={STEPS // 4}",
            "trainer.run_validation=true",
            "trainer.callbacks.validation.bands={high: 0.9}",
            "~trainer.callbacks.tensorboard",
            f"job.name={kind}_{seed}",
        ],
        report=[],
    )
    pipe = config.model.config.pipe_config  # type: ignore[union-attr]
    pipe.tokenizer.options = {"channels": CHANNELS, "std": STD}
    pipe.net.update(
        {
            "input_channels": [["latent", CHANNELS], ["cond_mask", 1], ["padding", 1]],
            "out_channels": CHANNELS,
            "model_channels": 128,
            "num_heads": 4,
            "num_blocks": 2,
            "crossattn_emb_channels": 128,
            "adaln_lora_dim": 32,
            "mlp_ratio": 3.0,
        }
    )
    config.dataloader_train.dataset = LazyCall(MovingSquares)(  # type: ignore[union-attr]
        clips=TRAINED, seed=1, shuffled_captions=kind == "shuffled"
    )
    config.dataloader_val.dataset = LazyCall(MovingSquares)(clips=HELD_OUT, seed=2)  # type: ignore[union-attr]
    config.validate()
    config.freeze()
    return Trainer(config, device="cpu")


def blind_error(trainer: Trainer) -> float:
    """Return the held-out error of the best prediction without text: the mean over the motions of a scene."""
    held_out = MovingSquares(HELD_OUT, seed=2)
    latents = trainer.model.encode(torch.stack([held_out.draw(clip) for clip in range(HELD_OUT)]))
    scenes = latents.unflatten(0, (-1, len(MOTIONS)))
    assert torch.equal(scenes[:, :, :, 0], scenes[:, :1, :, 0].expand_as(scenes[:, :, :, 0]))  # the given frame
    return float((scenes - scenes.mean(1, keepdim=True)).square().mean())


def main(kind: str, root: str, seed: int = 0) -> None:
    os.environ["OUTPUT_ROOT"] = root
    trainer = trainer_of(kind, seed)
    trainer.train()
    for line in (trainer.folder.root / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "val/high/mse" in values:
            print(values["iteration"], values["val/high/mse"])
    print("blind", blind_error(trainer))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
