"""Parameter names of diffusers' AutoencoderKLWan and AutoencoderKLCosmos for our (the original checkpoints') names."""

from __future__ import annotations

import re

_WAN_RULES = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\.downsamples\.", ".down_blocks."),
)

_COSMOS_RULES = (
    (r"\.down\.(\d+)\.", r".down_blocks.\1."),
    (r"\.block\.", ".resnets."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.0\.", ".mid_block.attentions.0."),
    (r"\.mid\.attn_1\.1\.", ".mid_block.temp_attentions.0."),
    (r"\.([qkv])\.conv3d\.", r".to_\1."),
    (r"\.proj_out\.conv3d\.", ".to_out.0."),
    (r"\.0\.conv3d\.", ".conv_s."),
    (r"\.1\.conv3d\.", ".conv_t."),
    (r"nin_shortcut\.conv3d\.", "conv_shortcut."),
    (r"\.conv3d\.", "."),
)


def wan_diffusers_name(key: str, num_res_blocks: int = 2) -> str:
    """Return AutoencoderKLWan's name of a Wan VAE parameter."""
    group = num_res_blocks + 2  # a decoder level: num_res_blocks + 1 residual blocks and an upsampler

    def level(match: re.Match[str]) -> str:
        block, position = divmod(int(match[1]), group)
        place = "upsamplers.0" if position == group - 1 else f"resnets.{position}"
        return f".up_blocks.{block}.{place}."

    return re.sub(r"\.upsamples\.(\d+)\.", level, _substitute(key, _WAN_RULES))


def cosmos_diffusers_name(key: str, num_levels: int = 3) -> str:
    """Return AutoencoderKLCosmos's name of a Cosmos CV tokenizer parameter; its decoder counts levels from the other end."""
    key = re.sub(r"\.up\.(\d+)\.", lambda match: f".up_blocks.{num_levels - 1 - int(match[1])}.", key)
    return _substitute(key, _COSMOS_RULES)


def _substitute(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key
