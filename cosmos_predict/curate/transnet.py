"""TransNetV2: the probability of a shot transition at each frame of a video, from frames of 27 x 48 pixels.

Network of Soucek and Lokoc 2020 (arXiv:2008.04838) with the key names of the published PyTorch weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_predict.errors import CheckpointError
from cosmos_predict.io.accounting import compare, shapes_of
from cosmos_predict.io.tensors import load_tensors

DILATIONS = (1, 2, 4, 8)
BAND = 50  # a frame is compared with so many frames before it and behind it
WINDOW, HOP = 100, 50  # of a window's predictions, the HOP in the middle count


class TransNetV2(nn.Module):
    """The network, in eval mode. rf: filters of the first level; rl: levels; rs: blocks of a level; rd: width of the head."""

    def __init__(self, rf: int = 16, rl: int = 3, rs: int = 2, rd: int = 1024) -> None:
        super().__init__()
        widths = [4 * rf * 2**level for level in range(rl)]
        inputs = [3, *widths[:-1]]
        self.SDDCNN = nn.ModuleList(Level(*sizes, rs) for sizes in zip(inputs, widths, strict=True))
        self.frame_sim_layer, self.color_hist_layer = FrameSimilarity(sum(widths)), ColorHistograms()
        self.fc1 = nn.Linear(2 * 128 + widths[-1] * (27 >> rl) * (48 >> rl), rd)
        self.cls_layer1, self.cls_layer2 = nn.Linear(rd, 1), nn.Linear(rd, 1)  # the second was for training alone
        self.eval()

    def features(self, frames: Tensor) -> list[Tensor]:
        """Return the features (B, C, T, h, w) of each level, from uint8 RGB frames (B, T, 27, 48, 3)."""
        x, levels = frames.permute(0, 4, 1, 2, 3).float() / 255, []
        for level in self.SDDCNN:
            x = level(x)
            levels.append(x)
        return levels

    def forward(self, frames: Tensor) -> Tensor:
        """Return transition probabilities (B, T) of uint8 RGB frames (B, T, 27, 48, 3)."""
        levels = self.features(frames)
        flat = levels[-1].permute(0, 2, 3, 4, 1).flatten(2)
        joined = torch.cat([self.color_hist_layer(frames), self.frame_sim_layer(levels), flat], dim=-1)
        return self.cls_layer1(self.fc1(joined).relu()).sigmoid().squeeze(-1)


class Level(nn.Module):
    """Dilated blocks with a shortcut from behind the first to behind the last, then half the height and width."""

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList(Block(width if index else inputs, width) for index in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        first, *more = self.DDCNN
        shortcut = x = first(x)
        for block in more:
            x = block(x)
        halved = F.avg_pool2d((x + shortcut).transpose(1, 2).flatten(0, 1), 2)
        return halved.unflatten(0, (len(x), -1)).transpose(1, 2)


class Block(nn.Module):
    """Convolutions of four dilations in time side by side, each in space first, then in time; one batch norm; rectified.

    Computed with channels last, as convolutions in the plane: of each frame, then of (time, pixels), since torch's
    three-dimensional ones are slower on a CPU. The batch norm, in eval mode always, is part of the second ones.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        for dilation in DILATIONS:
            stretch, padding = (dilation, 1, 1), (dilation, 0, 0)
            space = nn.Conv3d(inputs, width // 2, (1, 3, 3), padding=(0, 1, 1), bias=False)
            time = nn.Conv3d(width // 2, width // 4, (3, 1, 1), dilation=stretch, padding=padding, bias=False)
            self.add_module(f"Conv3D_{dilation}", nn.ModuleDict({"layers": nn.Sequential(space, time)}))
        self.bn = nn.BatchNorm3d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.bn.running_mean, self.bn.running_var
        assert mean is not None and variance is not None
        scale = self.bn.weight * (variance + self.bn.eps).rsqrt()
        shift = self.bn.bias - mean * scale
        frames, parts = x.transpose(1, 2).flatten(0, 1), []
        for dilation, factor, bias in zip(DILATIONS, scale.chunk(4), shift.chunk(4), strict=True):
            space, time = (self.get_parameter(f"Conv3D_{dilation}.layers.{layer}.weight") for layer in (0, 1))
            seen = F.conv2d(frames, space[:, :, 0], padding=1)
            lines = seen.unflatten(0, (len(x), -1)).flatten(3).transpose(1, 2)  # (B, C, T, h w)
            kernel = time[..., 0] * factor[:, None, None, None]
            parts.append(F.conv2d(lines, kernel, bias, padding=(dilation, 0), dilation=(dilation, 1)))
        return torch.cat(parts, dim=1).relu_().unflatten(3, x.shape[3:])


def similarities(vectors: Tensor) -> Tensor:
    """Return the cosines (B, T, 101) of each vector of (B, T, D) with those up to 50 frames away, 0 beyond the ends."""
    vectors = F.normalize(vectors, dim=-1)
    padded = F.pad(vectors @ vectors.mT, (BAND, BAND))
    rows = torch.arange(padded.shape[1], device=padded.device)[:, None]
    return padded[:, rows, rows + torch.arange(2 * BAND + 1, device=padded.device)]


class FrameSimilarity(nn.Module):
    """How alike the frames of a neighbourhood are, by their features."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.projection, self.fc = nn.Linear(inputs, 128), nn.Linear(2 * BAND + 1, 128)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return (B, T, 128) from features (B, C, T, h, w) of each level."""
        means = torch.cat([level.transpose(1, 2).flatten(3).mean(dim=3) for level in levels], dim=2)
        return self.fc(similarities(self.projection(means))).relu()


class ColorHistograms(nn.Module):
    """How alike the frames of a neighbourhood are, by histograms of 8 x 8 x 8 colours."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * BAND + 1, 128)

    def forward(self, frames: Tensor) -> Tensor:
        """Return (B, T, 128) from uint8 RGB frames (B, T, H, W, 3)."""
        red, green, blue = (frames.long() >> 5).unbind(-1)
        bins = (red << 6 | green << 3 | blue).flatten(2)
        counts = torch.zeros(*bins.shape[:2], 512, device=frames.device)
        return self.fc(similarities(counts.scatter_add_(2, bins, torch.ones_like(bins, dtype=counts.dtype)))).relu()


def load_transnet(path: Path, device: str = "cpu") -> TransNetV2:
    """Return the network with the published weights of a `.pth` or `.safetensors` file, on a device.

    Raises CheckpointError, with a list, where keys or shapes are not exactly the network's; as `load_tensors` besides.
    """
    tensors = load_tensors(path)
    with torch.device("meta"):
        network = TransNetV2()
    if found := compare(shapes_of(tensors), shapes_of(network.state_dict())):
        raise CheckpointError(f"{path}: not the weights of TransNetV2\n{found}")
    network.load_state_dict(tensors, assign=True)
    return network.requires_grad_(False).to(device)


def transition_probabilities(network: TransNetV2, chunks: Iterable[np.ndarray]) -> np.ndarray:
    """Return transition probabilities (T,) float32 of uint8 RGB frames (n, 27, 48, 3) that come in chunks.

    Published rule: windows of 100 frames, every 50; 25 copies of the first frame before, and of the last behind as many as
    fill the last window. At most a chunk and a window are in memory.
    """
    device, found, count = network.fc1.weight.device, [np.zeros(0, np.float32)], 0
    margin, waiting = (WINDOW - HOP) // 2, np.zeros((0, 27, 48, 3), np.uint8)

    @torch.inference_mode()
    def use_windows() -> None:
        nonlocal waiting
        while len(waiting) >= WINDOW:
            window = torch.from_numpy(waiting[None, :WINDOW]).to(device)
            found.append(network(window)[0, margin : margin + HOP].cpu().numpy())
            waiting = waiting[HOP:]

    for frames in chunks:
        waiting = np.concatenate([waiting if count else frames[:1].repeat(margin, axis=0), frames])
        count += len(frames)
        use_windows()
    if count:
        waiting = np.concatenate([waiting, waiting[-1:].repeat(margin + -count % HOP, axis=0)])
        use_windows()
    return np.concatenate(found)[:count]
