"""Floating-point operations of a DiT as functions of its configuration and a latent's shape; nothing is built.

A multiply-add counts as two operations. Attention is bidirectional: forward 4 D N per token and layer (queries times
keys, weights times values), so 12 D N for a training step; a sparse layer counts the keys that its queries see alone.
Elementwise work, norms and softmax are not counted.
"""

from __future__ import annotations

import math

from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.sparse_attention import DENSE, keys_per_query


def count_tokens(config: DiTConfig, latent_shape: tuple[int, int, int]) -> int:
    """Return the tokens of a latent (T, H, W), all views together."""
    return math.prod(config.token_grid(*latent_shape))


def forward_flops(config: DiTConfig, latent_shape: tuple[int, int, int], text_tokens: int = 512, views: int = 1) -> int:
    """Return the operations of one forward for one sample: a latent (T, H, W) of N tokens, all views together.

    Per block: 2 N (4 D^2) + 4 D N K self-attention, where a query sees K keys: N, or those of its sparse layer;
    2 N (2 D^2) + 2 L (2 C D) + 4 D N L cross-attention (L text tokens of one view), 2 N (2 D M) MLP of hidden size M,
    3 modulations of 2 F (D R + 3 R D) for F token frames, and 2 N P for P parameters that controls add to a block. What
    controls compute once per frame or clip is not counted.
    """
    width, text, rank = config.model_channels, config.crossattn_emb_channels, config.adaln_lora_dim
    grid, tokens = config.token_grid(*latent_shape), count_tokens(config, latent_shape)
    layers = config.sparse_attention or DENSE * config.num_blocks
    attention = 4 * width * tokens * sum(keys_per_query(kind, grid) for kind in layers)
    projections = 8 * tokens * width**2
    cross_attention = 4 * tokens * width**2 + 4 * text_tokens * views * text * width + 4 * width * tokens * text_tokens
    mlp = 4 * tokens * width * config.mlp_channels
    modulation = 3 * 2 * grid[0] * (width * rank + 3 * rank * width)
    controls = 2 * tokens * sum(control.num_block_parameters(config) for control in config.controls)
    ends = 2 * tokens * width * config.patch_volume * (config.in_channels + config.out_channels)
    ends += 2 * grid[0] * (4 * width**2 + width * rank + 2 * rank * width)
    if config.projects_text:
        assert config.crossattn_proj_in_channels is not None
        ends += 2 * text_tokens * views * config.crossattn_proj_in_channels * text
    return config.num_blocks * (projections + cross_attention + mlp + modulation + controls) + attention + ends


def training_flops(
    config: DiTConfig, latent_shape: tuple[int, int, int], text_tokens: int = 512, views: int = 1
) -> int:
    """Return the operations of forward and backward for one sample: three forwards (recomputation not counted)."""
    return 3 * forward_flops(config, latent_shape, text_tokens, views)
