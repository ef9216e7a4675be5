"""The one DiT of every published Cosmos diffusion model; they differ in key names and in the switches of `DiTConfig`.

Sources: Cosmos-Predict1 general_dit.py, Cosmos-Predict2 text2image_dit.py and video2world_dit.py, re-derived from their
description. State-dict keys are Predict2's; `cosmos_predict.checkpoint.dialects` translates the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_predict.errors import ConfigError
from cosmos_predict.io.embeddings import ENCODERS
from cosmos_predict.networks.blocks import Block, FinalLayer, PatchEmbed, RMSNorm, TimestepEmbedder
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.control import Grid, Injection, wrong_shape
from cosmos_predict.networks.rope import LearnablePositionEmbedding, SinCosPositionEmbedding, rope_angles, rope_table
from cosmos_predict.networks.sparse_attention import DENSE, SparseAttention, check_layers


class SequenceSplit(Protocol):
    """How a forward divides its tokens over processes; each computes the blocks for a part of the frames of every view."""

    def begin(self, data_type: str, frames: int, views: int) -> bool:
        """Return whether this forward, of `frames` token frames per view, is divided."""
        ...

    def split(self, x: Tensor, dim: int) -> Tensor:
        """Return this process's part of x along `dim`, whose length is views x frames x anything."""
        ...

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """Return the whole of which each process holds the part x."""
        ...


class DiT(nn.Module):
    """A diffusion transformer over video latents `(B, C, T, H, W)`.

    Build with `build_dit` (no weights are touched before they are needed); `DiT(config)` under `torch.device("meta")`
    allocates nothing.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbed(config)
        self.t_embedder = TimestepEmbedder(config)
        self.t_embedding_norm = RMSNorm(config.model_channels)
        if config.projects_text:
            assert config.crossattn_proj_in_channels is not None
            linear = nn.Linear(config.crossattn_proj_in_channels, config.crossattn_emb_channels)
            self.crossattn_proj = nn.Sequential(linear, nn.GELU())
        self.extra_pos_embedder: LearnablePositionEmbedding | SinCosPositionEmbedding | None = None
        if config.extra_pos_emb != "none":
            learnable = config.extra_pos_emb == "learnable"
            self.extra_pos_embedder = (LearnablePositionEmbedding if learnable else SinCosPositionEmbedding)(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.final_layer = FinalLayer(config)
        for control in config.controls:
            for name, module in control.modules(config).items():
                self.add_module(name, module)
        self.sparse: list[SparseAttention] = []
        check_layers(config.sparse_attention, config.num_blocks)
        for block, kind in zip(self.blocks, config.sparse_attention or DENSE * config.num_blocks, strict=True):
            if kind != DENSE:
                attention = block.get_submodule("self_attn")
                self.sparse.append(SparseAttention(kind, attention.attention))  # type: ignore[arg-type]
                attention.attention = self.sparse[-1]  # type: ignore[assignment]
        self.sequence_split: SequenceSplit | None = None  # set from outside
        self._rope_cache: dict[tuple, tuple[Tensor, Tensor]] = {}

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        crossattn_emb: Tensor,
        *,
        fps: Tensor | float | None = None,
        padding_mask: Tensor | None = None,
        condition_mask: Tensor | None = None,
        data_type: str = "video",
        views: int = 1,
        **signals: Any,
    ) -> Tensor:
        """Return the raw network output `(B, C, T, H, W)` in float32.

        Args:
            x: network input latents `(B, C, T, H, W)`; with several views T is view-major, V times one view's frames.
            timesteps: c_noise, `(B,)`, `(B, 1)` or one per latent frame `(B, T)`.
            crossattn_emb: text `(B, L, C)`, zero rows included; with several views `(B, V * L, C)`, view-major.
            fps: frames per second, needed when `rope_enable_fps_modulation` and T > 1; equal over the batch.
            padding_mask: `(B, 1, H', W')` at any resolution, 1 = padded; absent means none.
            condition_mask: `(B, 1, T, H, W)` or broadcastable, 1 = given frame; ignored for images.
            data_type: "video" or "image" (an image has no given frames).
            views: number of views along T, each with its own text and its own time axis.
            signals: what the controls and the named input channels read, for example `action=`, `plucker=`.

        Raises ConfigError when shapes do not fit the configuration.
        """
        config = self.config
        self._check(x, timesteps, crossattn_emb, views, data_type, signals)
        batch, _, frames, height, width = x.shape
        if data_type == "image":
            condition_mask = None
        dtype = self.dtype
        grid = Grid(batch, frames, height, width, views, dtype, x.device)

        injection = Injection()
        for control in config.controls:
            control.inject(self, {**signals, "condition_mask": condition_mask}, grid, injection)
        named = {**signals, "cond_mask": condition_mask, "padding": padding_mask, **injection.channels}
        channels = self._input_channels(x, named, grid)

        token_grid = config.token_grid(grid.frames_per_view, height, width)
        rope = self._rope(token_grid, views, self._fps(fps, batch, grid.frames_per_view), x.device)
        extra = self._extra_positions(token_grid, views, channels)

        timesteps = timesteps.float().reshape(batch, -1) * config.timestep_scale
        sinusoid, lora = self.t_embedder(timesteps)
        if injection.time is not None:
            sinusoid = sinusoid + injection.time.to(dtype)
        if injection.lora is not None:
            lora = lora + injection.lora.to(dtype)
        # One row per frame even where all are equal: matrix products round differently for other numbers of rows, and a
        # network grown by a per-frame control must start with its base's exact numbers.
        rows = (batch, frames // config.patch_temporal, -1)
        embedding, lora = self.t_embedding_norm(sinusoid).expand(rows), lora.expand(rows)

        text = crossattn_emb.to(dtype)
        if config.projects_text:
            text = self.crossattn_proj(text)
        if views > 1:
            text = text.unflatten(1, (views, -1)).flatten(0, 1)

        for attention in self.sparse:
            attention.grid = token_grid
        features = {name: value.to(dtype) for name, value in injection.blocks.items()}
        split = self.sequence_split
        if split is not None and split.begin(data_type, token_grid[0], views):
            channels, rope = split.split(channels, 2), (split.split(rope[0], 0), split.split(rope[1], 0))
            embedding, lora = split.split(embedding, 1), split.split(lora, 1)
            extra = None if extra is None else split.split(extra, 1)
            features = {name: split.split(value, 1) for name, value in features.items()}
        else:
            split = None
        tokens = self.x_embedder(channels)
        del channels
        for block in self.blocks:
            tokens = block(tokens, text, embedding, lora, rope, extra, features, views)
        out = self.final_layer(tokens, embedding, lora)
        if split is not None:
            out = split.gather(out, 1)
        return self.final_layer.unpatchify(out, (token_grid[0] * views, *token_grid[1:])).float()

    @property
    def device(self) -> torch.device:
        return self.x_embedder.get_parameter("proj.1.weight").device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; its output is float32 whatever this is."""
        return self.x_embedder.get_parameter("proj.1.weight").dtype

    def _check(
        self, x: Tensor, timesteps: Tensor, text: Tensor, views: int, data_type: str, signals: Mapping[str, Any]
    ) -> None:
        config = self.config
        if x.ndim != 5:
            raise ConfigError(f"the latent has shape {tuple(x.shape)}, expected (B, C, T, H, W)")
        if data_type not in ("video", "image"):
            raise ConfigError(f"data_type={data_type!r} is not 'video' or 'image'")
        known = {name for name, _ in config.input_channels[1:]} - {"cond_mask", "padding"}
        known |= {name for control in config.controls for name in control.signals}
        if unknown := sorted(name for name, value in signals.items() if value is not None and name not in known):
            unread, read = (", ".join(map(repr, names)) for names in (unknown, sorted(known)))
            raise ConfigError(f"this network reads no signal {unread}; it reads {read or 'none'}")
        batch, channels, frames, height, width = x.shape
        if channels != config.latent_channels:
            raise ConfigError(f"the latent has {channels} channels, the network takes {config.latent_channels}")
        if height % config.patch_spatial or width % config.patch_spatial:
            raise ConfigError(f"a latent of {height} x {width} does not divide into patches of {config.patch_spatial}")
        if frames % (views * config.patch_temporal):
            patches = f" of patches of {config.patch_temporal} frames" if config.patch_temporal > 1 else ""
            raise ConfigError(f"{frames} latent frames do not divide into {views} views{patches}")
        per_frame = batch * frames if config.patch_temporal == 1 else batch
        if timesteps.ndim > 2 or timesteps.shape[:1] != (batch,) or timesteps.numel() not in (batch, per_frame):
            what = f"timesteps of shape {tuple(timesteps.shape)} fit neither (B,) nor (B, T)"
            raise ConfigError(f"{what} for B={batch}, T={frames}")
        if text.ndim != 3 or text.shape[0] != batch or text.shape[1] % views:
            raise ConfigError(f"text of shape {tuple(text.shape)} does not fit a batch of {batch} with {views} views")
        expected = config.crossattn_proj_in_channels if config.projects_text else config.crossattn_emb_channels
        if text.shape[2] != expected:
            made = ENCODERS.get(expected or 0)
            advice = f": make them with --text_encoder {made} (scripts/get_t5_embeddings.py)" if made else ""
            raise ConfigError(f"text embeddings are {text.shape[2]} wide, the network takes {expected}{advice}")
        if views > 1 and config.sparse_attention:
            raise ConfigError(f"sparse attention is for one view, this forward has {views}: set sparse_attention=''")
        grid, limits = config.token_grid(frames // views, height, width), config.largest_grid
        if any(size > limit for size, limit in zip(grid, limits, strict=True)):
            largest = f"{limits[1] * config.patch_spatial} x {limits[2] * config.patch_spatial}"
            raise ConfigError(
                f"a token grid (frames, height, width) of {grid} is larger than the network's positions {limits}; "
                f"use fewer frames or a smaller size (at most {largest} latent pixels)"
            )

    def _input_channels(self, x: Tensor, named: Mapping[str, Tensor | None], grid: Grid) -> Tensor:
        """Return the named channels in order, `(B, sum c, T, H, W)`; a named channel that nobody gives is zero."""
        parts = [x.to(grid.dtype)]
        for name, size in self.config.input_channels[1:]:
            value = named.get(name)
            if name == "padding" and value is not None:
                if value.ndim != 4 or value.shape[:2] not in ((1, 1), (grid.batch, 1)):
                    raise wrong_shape("padding_mask", value, f"({grid.batch}, 1, H, W) in pixels")
                value = F.interpolate(value.float(), size=(grid.height, grid.width), mode="nearest").unsqueeze(2)
            if value is None:
                value = x.new_zeros(1, size, 1, 1, 1)
            wanted = (grid.batch, size, grid.frames, grid.height, grid.width)
            value = value[:, :, : grid.frames] if value.ndim == 5 else value
            if value.ndim != 5 or value.shape[1] != size or not _broadcasts(value, wanted):
                raise wrong_shape(name, value, f"{wanted} (1 broadcasts, but not in place of {size} channels)")
            parts.append(value.to(grid.dtype).expand(wanted))
        return torch.cat(parts, dim=1)

    def _fps(self, fps: Tensor | float | None, batch: int, frames: int) -> float | None:
        """Return the one fps that the rotary table uses, or None where it uses plain indices."""
        if not self.config.rope_enable_fps_modulation or (fps is None and frames == 1):
            return None
        if fps is None:
            raise ConfigError("this network measures time in seconds (rope_enable_fps_modulation): give fps")
        values = torch.as_tensor(fps).flatten().tolist()
        if frames > 1 and batch > 1 and any(value != values[0] for value in values):
            raise ConfigError(f"clips of one batch must have one fps here, got {values}; batch clips of equal fps")
        return float(values[0])

    def _rope(
        self, grid: tuple[int, int, int], views: int, fps: float | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        key = (grid, views, fps, device)
        if key not in self._rope_cache:
            c = self.config
            ratios = (c.rope_h_extrapolation_ratio, c.rope_w_extrapolation_ratio, c.rope_t_extrapolation_ratio)
            with torch.inference_mode(False):  # the kept table must serve training after a forward in inference mode
                angles = rope_angles(c.head_dim, grid, ratios, fps=fps, base_fps=c.base_fps, views=views, device=device)
                self._rope_cache = {key: rope_table(angles)}
        return self._rope_cache[key]

    def _extra_positions(self, grid: tuple[int, int, int], views: int, like: Tensor) -> Tensor | None:
        if self.extra_pos_embedder is None:
            return None
        if isinstance(self.extra_pos_embedder, SinCosPositionEmbedding):
            with torch.inference_mode(False):  # it keeps its table, as `_rope` does
                table = self.extra_pos_embedder(grid, views, like.device)
            return table.to(like.dtype)
        return self.extra_pos_embedder(grid, views).to(like.dtype)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise every weight for training from scratch, as `config.initialization` says.

        `trunc_normal` (Predict2): std 1/sqrt(fan_in) cut at 3 std; `xavier` (Predict1): Xavier-uniform, time MLP N(0, 0.02).
        Both: second modulation matrices of the blocks zero, norm gains 1; controls and text projection keep their own.
        """
        xavier = self.config.initialization == "xavier"
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                weight = module.weight
                starts_zero = "adaln_modulation" in name and name.endswith(".2")
                if starts_zero and not (xavier and name.startswith("final_layer")):
                    nn.init.zeros_(weight)
                elif xavier and name.startswith("t_embedder"):
                    nn.init.normal_(weight, std=0.02)
                elif xavier:
                    nn.init.xavier_uniform_(weight)
                else:
                    std = 1 / math.sqrt(weight.shape[1])
                    nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
            elif isinstance(module, RMSNorm | LearnablePositionEmbedding):
                module.reset_parameters()
        if self.config.projects_text:
            nn.Linear.reset_parameters(self.crossattn_proj[0])  # type: ignore[arg-type]
        for control in self.config.controls:
            control.init_weights(self)


def _broadcasts(value: Tensor, shape: tuple[int, ...]) -> bool:
    return all(have in (1, want) for have, want in zip(value.shape, shape, strict=True))


def build_dit(
    config: DiTConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    init: Callable[[DiT], None] | None = DiT.init_weights,
) -> DiT:
    """Return a DiT on `device` in `dtype`, built on the meta device first, so that no weight is allocated twice.

    `init` fills the weights (None leaves them uninitialised, for a load that follows); it is skipped on "meta".
    """
    with torch.device("meta"):
        net = DiT(config).to(dtype)
    if torch.device(device).type == "meta":
        return net
    net = net.to_empty(device=device)
    if init is not None:
        init(net)
    return net
