"""Tokenizers by name and from files: `load_tokenizer`, `build_tokenizer`.

Files may be Wan's `tokenizer.pth`, a folder with `encoder.jit`, `decoder.jit` and `mean_std.pt`, an `autoencoder.jit`,
safetensors under the same names, or a diffusers VAE folder. What a file holds is told from its keys and shapes.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.accounting import compare, shapes_of
from cosmos_predict.io.tensors import load_tensors
from cosmos_predict.tokenizers.base import VideoTokenizer
from cosmos_predict.tokenizers.cosmos_image import CosmosImageTokenizer
from cosmos_predict.tokenizers.cosmos_video import IGNORED_KEYS, CosmosVideoTokenizer
from cosmos_predict.tokenizers.dct import DCTTokenizer
from cosmos_predict.tokenizers.diffusers_names import cosmos_diffusers_name, wan_diffusers_name
from cosmos_predict.tokenizers.normalize import LatentNormalizer, read_mean_std
from cosmos_predict.tokenizers.wan import WanVAE

TOKENIZERS: dict[str, tuple[type[VideoTokenizer], dict[str, Any]]] = {
    "wan2.1": (WanVAE, {}),
    "cosmos_cv8x8x8": (CosmosVideoTokenizer, {"patch_size": 4, "temporal_compression": 8, "spatial_compression": 8}),
    "cosmos_cv4x8x8": (CosmosVideoTokenizer, {"patch_size": 2, "temporal_compression": 4, "spatial_compression": 8}),
    "cosmos_cv8x16x16": (CosmosVideoTokenizer, {"patch_size": 4, "temporal_compression": 8, "spatial_compression": 16}),
    "cosmos_ci8x8": (CosmosImageTokenizer, {"spatial_compression": 8}),
    "cosmos_ci16x16": (CosmosImageTokenizer, {"spatial_compression": 16}),
    "dct": (DCTTokenizer, {}),
}


def build_tokenizer(
    name: str, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None, **options: Any
) -> VideoTokenizer:
    """Build a tokenizer by name with fresh weights, in eval mode; `device="meta"` allocates none.

    options: constructor arguments that replace the published ones. Raises ConfigError for an unknown name.
    """
    if name not in TOKENIZERS:
        near = difflib.get_close_matches(name, TOKENIZERS, 3, 0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        known = ", ".join(TOKENIZERS)
        if "/" in name:
            fetch = "scripts/download_checkpoints.py fetches the published ones"
            raise ConfigError(f"no tokenizer at {name}: expected a file, a folder or one of {known}; {fetch}")
        raise ConfigError(f"unknown tokenizer {name!r}: expected a file, a folder or one of {known}{hint}")
    kind, defaults = TOKENIZERS[name]
    return _construct(kind, {**defaults, **options}, device, dtype)


def load_tokenizer(
    name_or_path: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> VideoTokenizer:
    """Load a tokenizer, frozen and in eval mode.

    name_or_path: a file or folder, or a name of `TOKENIZERS` with the weights in `checkpoint` ("dct" needs none).
    device: "meta" checks names and shapes and loads nothing (a name then needs no checkpoint).
    dtype: of the weights and the computation; float32 by default. `encode` and `decode` keep their input's dtype.
    options: constructor arguments, such as `pixel_chunk_duration`, `temporal_window`, `parts`, `normalizer`.

    Latent statistics come with the tokenizer: Wan's are constants, `mean_std.pt` is read from the same folder (a Cosmos
    tokenizer then gets chunks as long as its table). Raises ConfigError for names and options, CheckpointError for keys
    or shapes that do not match, and the errors of `io.tensors.load_tensors` for the file itself.
    """
    known = str(name_or_path) in TOKENIZERS
    if known and (name_or_path == "dct" or (checkpoint is None and str(device) == "meta")):
        return build_tokenizer(str(name_or_path), device=device, dtype=dtype, **options)
    if known and checkpoint is None:
        raise ConfigError(f"tokenizer {name_or_path!r} needs its weights: pass checkpoint=PATH, or the path alone")
    path = Path(checkpoint if known and checkpoint is not None else name_or_path)
    if not known and not path.exists():
        build_tokenizer(str(name_or_path))  # raises, naming what is known
    config = path / "config.json"
    if config.is_file():
        kind, arguments, rename = _read_diffusers_config(json.loads(config.read_text()), config)
        tensors = load_tensors(path)
    else:
        tensors, normalizer = _read_original(path)
        kind, arguments = TOKENIZERS[str(name_or_path)] if known else infer_tokenizer(tensors, path)
        arguments, rename = dict(arguments), None
        if issubclass(kind, (CosmosVideoTokenizer, CosmosImageTokenizer)):
            arguments["parts"] = [p for p in ("encoder", "decoder") if any(key.startswith(p) for key in tensors)]
            if normalizer is not None:
                arguments["normalizer"] = normalizer
    arguments.update(options)
    normalizer = arguments.get("normalizer")
    if kind is CosmosVideoTokenizer and normalizer is not None and normalizer.mean.shape[1] > 1:
        chunk = 1 + (normalizer.mean.shape[1] - 1) * arguments.get("temporal_compression", 8)
        arguments.setdefault("pixel_chunk_duration", chunk)
    tokenizer = _construct(kind, arguments, "meta", dtype)
    if rename is not None:
        ours = {rename(key): key for key in tokenizer.state_dict()}
        tensors = {ours.get(key, key): value for key, value in tensors.items()}
    load_strict(tokenizer, tensors, path, device or "cpu")
    return tokenizer.eval().requires_grad_(False)


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], source: object, device: torch.device | str) -> None:
    """Fill a module built on meta, on `device`, and account for every tensor but the `IGNORED_KEYS`.

    Raises CheckpointError listing what is missing, unexpected, or of another shape. With device "meta" only checks.
    """
    given = {key: value for key, value in tensors.items() if not re.fullmatch(IGNORED_KEYS, key)}
    if problems := compare(shapes_of(given), shapes_of(module.state_dict())):
        advice = "Check that the file is of this tokenizer and size; give constructor arguments where it differs."
        raise CheckpointError(f"{source}: does not fit {type(module).__name__}.\n{problems}\n{advice}")
    if str(device) != "meta":
        module.to_empty(device=device)
        module.load_state_dict(given)


def infer_tokenizer(tensors: Mapping[str, Tensor], source: object) -> tuple[type[VideoTokenizer], dict[str, Any]]:
    """Return class and constructor arguments of the tokenizer that `tensors` belong to, from keys and shapes.

    Raises CheckpointError for tensors of anything else, discrete tokenizers included.
    """
    if any(key.startswith("quantizer.") for key in tensors):
        raise CheckpointError(f"{source}: a discrete tokenizer (with a quantizer); only continuous ones are supported")
    if "encoder.downsamples.0.residual.0.gamma" in tensors:
        return WanVAE, _infer_wan(tensors)
    if any(key.startswith(("quant_conv.conv3d.", "post_quant_conv.conv3d.")) for key in tensors):
        return CosmosVideoTokenizer, _infer_cosmos(tensors, ".0.conv3d.weight", 3)
    if any(key.startswith(("quant_conv.", "post_quant_conv.")) for key in tensors):
        return CosmosImageTokenizer, _infer_cosmos(tensors, ".weight", 2)
    raise CheckpointError(
        f"{source}: no known tokenizer; its keys are like {', '.join(list(tensors)[:3])}. Expected the published names of "
        "the Wan 2.1 VAE or of a Cosmos continuous tokenizer"
    )


def _infer_wan(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    dim = tensors["encoder.conv1.weight"].shape[0]
    widths, temporal, blocks, index = [], [], 0, 0
    while True:
        prefix = f"encoder.downsamples.{index}."
        if f"{prefix}residual.6.weight" in tensors:
            width = tensors[f"{prefix}residual.6.weight"].shape[0]
            blocks += 1
        elif f"{prefix}resample.1.weight" in tensors:
            widths.append(width)
            temporal.append(f"{prefix}time_conv.weight" in tensors)
        else:
            break
        index += 1
    mults = [w // dim for w in (*widths, width)]
    arguments = {"dim": dim, "z_dim": tensors["conv2.weight"].shape[0], "dim_mult": mults}
    return {**arguments, "num_res_blocks": blocks // len(mults), "temperal_downsample": temporal}


def _infer_cosmos(tensors: Mapping[str, Tensor], conv: str, axes: int) -> dict[str, Any]:
    """`conv` ends the name of a convolution's first weight; `axes` are those that the patcher folds."""
    side, change = ("encoder.down", "downsample") if f"encoder.conv_in{conv}" in tensors else ("decoder.up", "upsample")
    firsts = [key for key in (f"{side}.{level}.block.0.conv1{conv}" for level in range(16)) if key in tensors]
    widths = [tensors[key].shape[0] for key in firsts]
    blocks = sum(key.startswith(f"{side}.0.block.") and key.endswith(f".conv1{conv}") for key in tensors)

    def resampled(part: str) -> int:
        return sum(f"{side}.{level}.{change}.{part}" in tensors for level in range(len(widths)))

    if side == "encoder.down":
        channels, patch = tensors[f"encoder.conv_in{conv}"].shape[:2]
        latent, z = tensors[f"quant_conv.{'conv3d.' * (axes == 3)}weight"].shape[:2]
        space, time = "conv1.conv3d.weight", "conv2.conv3d.weight"
    else:
        channels, patch, blocks = math.gcd(*widths), tensors[f"decoder.conv_out{conv}"].shape[0], blocks - 1
        z, latent = tensors[f"post_quant_conv.{'conv3d.' * (axes == 3)}weight"].shape[:2]
        space, time = "conv2.conv3d.weight", "conv1.conv3d.weight"
    patch = round((patch / 3) ** (1 / axes))
    arguments = {
        "channels": channels,
        "channels_mult": [width // channels for width in widths],
        "num_res_blocks": blocks,
        "patch_size": patch,
        "z_channels": z,
        "latent_channels": latent,
        "spatial_compression": patch * 2 ** resampled(space if axes == 3 else "conv.weight"),
    }
    return {**arguments, "temporal_compression": patch * 2 ** resampled(time)} if axes == 3 else arguments


def _read_original(path: Path) -> tuple[dict[str, Tensor], LatentNormalizer | None]:
    """Return the tensors under their original names, and the statistics of a `mean_std.pt` beside them."""
    folder = path if path.is_dir() else path.parent
    published = ("encoder.jit", "decoder.jit"), ("autoencoder.jit", "tokenizer.pth")
    halves, whole = ([path / name for name in names if (path / name).is_file()] for names in published)
    tensors: dict[str, Tensor] = {}
    for file in halves or whole or [path]:
        tensors.update(load_tensors(file))
    # A published training checkpoint has losses and EMA beside the network.
    network = {key[len("network.") :]: value for key, value in tensors.items() if key.startswith("network.")}
    statistics = folder / "mean_std.pt"
    return network or tensors, read_mean_std(statistics) if statistics.is_file() else None


def _read_diffusers_config(config: Mapping[str, Any], source: Path) -> tuple[type[VideoTokenizer], dict[str, Any], Any]:
    """Return class, constructor arguments, and the function from our names to diffusers' names."""
    name = config.get("_class_name")
    if name == "AutoencoderKLWan" and not config.get("is_residual") and not config.get("patch_size"):
        same = ("z_dim", "dim_mult", "num_res_blocks", "attn_scales", "temperal_downsample")
        arguments = {key: config[key] for key in same}
        arguments.update(dim=config["base_dim"], mean=config["latents_mean"], std=config["latents_std"])
        return WanVAE, arguments, lambda key: wan_diffusers_name(key, arguments["num_res_blocks"])
    if name == "AutoencoderKLCosmos":
        channels, *widths = config["encoder_block_out_channels"]
        latent = config["latent_channels"]
        arguments = {
            "channels": channels,
            "channels_mult": [width // channels for width in widths],
            "num_res_blocks": config["num_layers"],
            "attn_resolutions": config["attention_resolutions"],
            "resolution": config["resolution"],
            "patch_size": config["patch_size"],
            "patch_method": config["patch_type"],
            "z_channels": latent,
            "latent_channels": latent,
            "spatial_compression": config["spatial_compression_ratio"],
            "temporal_compression": config["temporal_compression_ratio"],
        }
        if config.get("latents_mean"):
            tables = (torch.tensor(config[f"latents_{k}"], device="cpu").reshape(latent, -1) for k in ("mean", "std"))
            arguments["normalizer"] = LatentNormalizer(*tables)
        return CosmosVideoTokenizer, arguments, lambda key: cosmos_diffusers_name(key, len(widths))
    raise CheckpointError(f"{source}: describes {name!r}; expected AutoencoderKLWan (Wan 2.1) or AutoencoderKLCosmos")


def _construct(
    kind: type[VideoTokenizer], arguments: dict[str, Any], device: torch.device | str | None, dtype: torch.dtype | None
) -> VideoTokenizer:
    try:
        with torch.device(device or "cpu"):
            tokenizer = kind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__}: {error}; see its constructor for the options") from error
    return tokenizer.to(dtype).eval() if dtype is not None else tokenizer.eval()
