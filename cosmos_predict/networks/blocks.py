"""The parts of a DiT on flat tokens `(B, N, D)`: attention, MLP, modulated block, embedders, final layer.

Module names are the published state-dict keys. Modulation comes per frame, `(B, F, D)` with F = 1 or the number of
latent frames, and is broadcast over the tokens of a frame, never repeated.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_predict.networks.attention import attention_backend
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.norms import RMSNorm, RopeTable, modulate
from cosmos_predict.networks.rope import timestep_sinusoid


def gated_add(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """Return `x + gate * y` for x, y `(B, N, D)` and a per-frame gate `(B, F, D)`."""
    frames = gate.shape[1]
    return torch.addcmul(x.unflatten(1, (frames, -1)), gate.unsqueeze(2), y.unflatten(1, (frames, -1))).flatten(1, 2)


class SelfOrCrossAttention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys (per head) and optional rotary embedding.

    `attention` may be replaced from outside (context parallel wraps it); it maps `(B, N, heads, d)` q, k, v to the same layout.
    """

    def __init__(self, config: DiTConfig, context_channels: int) -> None:
        super().__init__()
        width = config.model_channels
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(context_channels, width, bias=False)
        self.v_proj = nn.Linear(context_channels, width, bias=False)
        self.output_proj = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(config.head_dim)
        self.k_norm = RMSNorm(config.head_dim)
        self.attention = attention_backend(config.attention_backend)

    def forward(self, x: Tensor, context: Tensor | None = None, rope: RopeTable | None = None) -> Tensor:
        """Attend from x `(B, N, D)` to context `(B, M, C)`, or to x itself: `(B, N, D)`."""
        # One expression, so that q, k and v are free again before the output is projected.
        return self.output_proj(self.attention(*self._project(x, x if context is None else context, rope)).flatten(2))

    def _project(self, x: Tensor, context: Tensor, rope: RopeTable | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q `(B, N, heads, d)` and k, v `(B, M, heads, d)`."""
        heads = (-1, self.head_dim)
        q = self.q_norm(self.q_proj(x).unflatten(-1, heads), rope)
        k = self.k_norm(self.k_proj(context).unflatten(-1, heads), rope)
        return q, k, self.v_proj(context).unflatten(-1, heads)


class MLP(nn.Module):
    """`layer2(gelu(layer1(x)))` with the exact (erf) GELU, no biases."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.layer1 = nn.Linear(config.model_channels, config.mlp_channels, bias=False)
        self.layer2 = nn.Linear(config.mlp_channels, config.model_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.layer2(F.gelu(self.layer1(x)))
        # Tokens are independent here: without a record for backward a part at a time is enough, in less memory, and on a
        # CPU faster, because a part's hidden layer stays in the cache.
        size = 512 if x.device.type == "cpu" else 16384
        out = torch.empty_like(x)
        for part, place in zip(x.split(size, dim=1), out.split(size, dim=1), strict=True):
            place.copy_(self.layer2(F.gelu(self.layer1(part))))
        return out


class Modulation(nn.Sequential):
    """adaLN-LoRA: `W2(W1(silu(emb))) + lora`, cut into `parts` of width D. Keys `1.weight`, `2.weight`."""

    def __init__(self, config: DiTConfig, parts: int) -> None:
        width, rank = config.model_channels, config.adaln_lora_dim
        super().__init__(nn.SiLU(), nn.Linear(width, rank, bias=False), nn.Linear(rank, parts * width, bias=False))
        self.parts = parts

    def forward(self, embedding: Tensor, lora: Tensor) -> tuple[Tensor, ...]:
        """Return `parts` tensors `(B, F, D)` from embedding `(B, F, D)` and the shared vector lora `(B, F, 3D)`."""
        out = super().forward(embedding)
        return (out + lora[..., : out.shape[-1]]).chunk(self.parts, dim=-1)


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, each modulated by its own adaLN-LoRA and gated."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.self_attn = SelfOrCrossAttention(config, config.model_channels)
        self.cross_attn = SelfOrCrossAttention(config, config.crossattn_emb_channels)
        self.mlp = MLP(config)
        self.adaln_modulation_self_attn = Modulation(config, 3)
        self.adaln_modulation_cross_attn = Modulation(config, 3)
        self.adaln_modulation_mlp = Modulation(config, 3)
        for control in config.controls:
            for name, module in control.block_modules(config).items():
                self.add_module(name, module)

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        embedding: Tensor,
        lora: Tensor,
        rope: RopeTable,
        extra: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
        views: int = 1,
    ) -> Tensor:
        """Return the tokens after this block.

        Args:
            x: tokens `(B, N, D)`, order (view, frame, row, column).
            text: `(B * views, L, C)`; with several views each sees only its own text.
            embedding: `(B, F, D)`, lora: `(B, F, 3D)`: time embedding and shared adaLN-LoRA vector.
            rope: cos and sin `(N, 1, head_dim/2)`.
            extra: `(1, N, D)`, added first (Predict1's per-block position embedding).
            features: module name -> `(B, N, F)`, projected and added to the modulated self-attention input.
        """
        if extra is not None:
            x = x + extra
        shift, scale, gate = self.adaln_modulation_self_attn(embedding, lora)
        hidden = modulate(x, shift, scale)
        for name, feature in (features or {}).items():
            hidden = hidden + self.get_submodule(name)(feature)
        x = gated_add(x, gate, self.self_attn(hidden, rope=rope))

        shift, scale, gate = self.adaln_modulation_cross_attn(embedding, lora)
        hidden = modulate(x, shift, scale)
        if views > 1:
            hidden = self.cross_attn(hidden.unflatten(1, (views, -1)).flatten(0, 1), text)
            hidden = hidden.unflatten(0, (-1, views)).flatten(1, 2)
        else:
            hidden = self.cross_attn(hidden, text)
        x = gated_add(x, gate, hidden)

        shift, scale, gate = self.adaln_modulation_mlp(embedding, lora)
        return gated_add(x, gate, self.mlp(modulate(x, shift, scale)))


class PatchEmbed(nn.Module):
    """Cut `(B, C, T, H, W)` into patches and project them: `(B, N, D)`. Column order (channel, frame, row, column)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.patch = config.patch
        linear = nn.Linear(config.in_channels * config.patch_volume, config.model_channels, bias=False)
        self.proj = nn.Sequential(nn.Identity(), linear)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, frames, height, width = x.shape
        r, m, n = self.patch
        x = x.reshape(batch, channels, frames // r, r, height // m, m, width // n, n)
        return self.proj(x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, -1, channels * r * m * n))


class FinalLayer(nn.Module):
    """Modulated LayerNorm and projection to patch values `(B, N, p*p*pt*out_channels)`, channel fastest."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.linear = nn.Linear(config.model_channels, config.patch_volume * config.out_channels, bias=False)
        self.adaln_modulation = Modulation(config, 2)

    def forward(self, x: Tensor, embedding: Tensor, lora: Tensor) -> Tensor:
        shift, scale = self.adaln_modulation(embedding, lora)
        return self.linear(modulate(x, shift, scale))

    def unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Return `(B, C, T, H, W)` from `(B, N, p*p*pt*C)` for a (T, h, w) token grid: row, column, frame, channel."""
        r, m, n = self.patch
        frames, height, width = grid
        x = x.reshape(x.shape[0], frames, height, width, m, n, r, -1)
        return x.permute(0, 7, 1, 6, 2, 4, 3, 5).reshape(x.shape[0], -1, frames * r, height * m, width * n)


class TimestepMLP(nn.Module):
    """`linear_2(silu(linear_1(s)))`: the shared adaLN-LoRA vector `(B, F, 3D)` from the sinusoid `(B, F, D)`, no biases."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.model_channels, config.model_channels, bias=False)
        self.linear_2 = nn.Linear(config.model_channels, 3 * config.model_channels, bias=False)

    def forward(self, sinusoid: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


class TimestepEmbedder(nn.Sequential):
    """Sinusoid and MLP. Keys `1.linear_{1,2}.weight`. The *embedding* of the blocks is the sinusoid, not the MLP output."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(nn.Identity(), TimestepMLP(config))
        self.dim = config.model_channels

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (sinusoid `(B, F, D)`, lora `(B, F, 3D)`) of t `(B, F)`, in the weights' dtype."""
        sinusoid = timestep_sinusoid(t, self.dim).to(self.get_parameter("1.linear_1.weight").dtype)
        return sinusoid, self[1](sinusoid)
