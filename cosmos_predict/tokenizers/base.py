"""What every tokenizer offers: `encode`, `decode` and the sizes that fit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cosmos_predict.errors import ConfigError
from cosmos_predict.tokenizers.normalize import LatentNormalizer


class VideoTokenizer(nn.Module):
    """A causal video tokenizer: pixels (B, 3, T, H, W) in [-1, 1] to latents (B, C, t, h, w) and back.

    Latents are normalised for the diffusion model (`normalizer`). The first frame has a latent of its own: T = 1 + f k
    frames are t = 1 + k latents, f = `temporal_compression_factor`. Subclasses compute in `compute_dtype`.
    """

    spatial_compression_factor: int
    temporal_compression_factor: int
    latent_ch: int
    normalizer: LatentNormalizer | None = None

    def encode(self, video: Tensor) -> Tensor:
        """Encode a video (or images, T = 1).

        video: (B, 3, T, H, W), float in [-1, 1], or uint8 (mapped by x / 127.5 - 1).
        Returns (B, latent_ch, t, H / s, W / s), normalised, in the video's dtype (float32 for uint8).
        Raises ConfigError (a ValueError) for a T, H or W that does not fit, naming the nearest sizes that do.
        """
        self._check(video, "video", 3)
        frames = self.get_latent_num_frames(video.shape[2])
        latent = self._encode_with(self._encode, video)
        assert latent.shape[2] == frames
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents (B, latent_ch, t, h, w) as `encode` makes them; returns (B, 3, T, H, W), not clamped, same dtype.

        Raises ConfigError (a ValueError) for a t that does not fit.
        """
        return self._decode_with(self._decode, latent)

    def get_latent_num_frames(self, num_pixel_frames: int) -> int:
        """Return t for T pixel frames; raises ConfigError (a ValueError) naming the nearest T that fit."""
        factor = self.temporal_compression_factor
        if num_pixel_frames < 1 or (num_pixel_frames - 1) % factor:
            below = 1 + max(0, (num_pixel_frames - 1) // factor) * factor
            near = sorted({below, below + factor} if num_pixel_frames > 0 else {1})
            text = f"T = {num_pixel_frames} frames: expected 1 + {factor} k, such as {_either(near)}"
            raise ConfigError(f"{text}; give another number of frames")
        return 1 + (num_pixel_frames - 1) // factor

    def get_pixel_num_frames(self, num_latent_frames: int) -> int:
        """Return T for t latent frames; raises ConfigError (a ValueError) for t < 1."""
        if num_latent_frames < 1:
            raise ConfigError(f"t = {num_latent_frames} latent frames: expected at least 1")
        return 1 + (num_latent_frames - 1) * self.temporal_compression_factor

    @property
    def latent_chunk_duration(self) -> int | None:
        """Latent frames after which the normaliser's table starts again; None: never."""
        return None

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the weights; float32 without weights."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    def _check(self, x: Tensor, name: str, channels: int) -> None:
        if x.ndim != 5 or x.shape[1] != channels:
            raise ConfigError(f"{name} of shape {tuple(x.shape)}: expected (B, {channels}, T, H, W)")
        if not x.is_floating_point() and not (x.dtype == torch.uint8 and name == "video"):
            raise ConfigError(f"{name} of dtype {x.dtype}: expected a float dtype" + " or uint8" * (name == "video"))

    def _encode_with(self, run: Callable[[Tensor], Tensor], video: Tensor) -> Tensor:
        """Return `run` of a video whose T fits, from its pixels in `compute_dtype` to normalised latents in its dtype."""
        for name, size in zip("HW", video.shape[3:], strict=True):
            step = self.spatial_compression_factor
            if size % step or not size:
                near = sorted({max(step, size // step * step), size // step * step + step})
                raise ConfigError(f"video {name} = {size}: expected a multiple of {step}, such as {_either(near)}")
        dtype = video.dtype
        if dtype == torch.uint8:
            dtype = torch.float32
            video = video.to(dtype) / 127.5 - 1
        latent = _at_least_float32(run(video.to(self.compute_dtype)))
        if self.normalizer is not None:
            latent = self.normalizer.normalize(latent, self.latent_chunk_duration)
        return latent.to(dtype)

    def _decode_with(self, run: Callable[[Tensor], Tensor], latent: Tensor) -> Tensor:
        """Return `run` of latents, which are checked, denormalised and in `compute_dtype`, in their dtype."""
        self._check(latent, "latent", self.latent_ch)
        self.get_pixel_num_frames(latent.shape[2])
        raw = latent
        if self.normalizer is not None:
            raw = self.normalizer.denormalize(_at_least_float32(latent), self.latent_chunk_duration)
        return run(raw.to(self.compute_dtype)).to(latent.dtype)

    def _encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) to unnormalised latents (B, C, t, h, w); sizes are valid, dtype is `compute_dtype`."""
        raise NotImplementedError

    def _decode(self, latent: Tensor) -> Tensor:
        """Unnormalised latents (B, C, t, h, w) to (B, 3, T, H, W)."""
        raise NotImplementedError


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _either(sizes: list[int]) -> str:
    return " or ".join(str(size) for size in sizes)
