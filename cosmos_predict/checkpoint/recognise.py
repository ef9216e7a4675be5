"""What a file holds, from the names and shapes of its tensors: family, size, task and the network's configuration.

Shapes fix everything but the rotary options, the fixed sin-cos table and how actions are read. For a published network
these are known; for another network of a published size they are taken from its nearest published relative, and said;
for a size that nobody published they must come with the file (safetensors metadata, diffusers' config.json) or be given.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import torch

from cosmos_predict.checkpoint.accounting import PATCH_WEIGHT, not_a_dit
from cosmos_predict.checkpoint.dialects import detect_dialect, is_ignored, to_native, unwrap_key
from cosmos_predict.errors import CheckpointError
from cosmos_predict.io.accounting import Shape, shapes_of
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.models.published import PUBLISHED
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import build_dit

# Fields of DiTConfig that no shape shows.
UNSEEN_FIELDS = (*(f"rope_{axis}_extrapolation_ratio" for axis in "hwt"), "rope_enable_fps_modulation")
_PATCH_VOLUME = 4  # 1 x 2 x 2 in every published network


@dataclasses.dataclass(frozen=True)
class Recognised:
    """A network told from its tensors.

    name: of `models.published.PUBLISHED`, or None. family: predict1, predict2 or predict2.5. task: as in the published names.
    config: complete when `name` is set or `assumed` says whose unseen fields it took, else None and `fields` holds what
    the shapes show. dialect: the file's key names. assumed: what no tensor shows, in words.
    """

    name: str | None
    family: str
    size: str
    task: str
    dialect: str
    config: DiTConfig | None
    fields: dict[str, Any]
    assumed: tuple[str, ...] = ()

    def require_config(self, where: object = "this file") -> DiTConfig:
        """Return `config`; raises CheckpointError naming the fields that must be given."""
        if self.config is None:
            raise CheckpointError(
                f"{where}: a network of {self.fields['model_channels']} channels and {self.fields['num_blocks']} blocks is no "
                f"published size, and its tensors do not show {', '.join(UNSEEN_FIELDS)}. Give its configuration: "
                "--config RUN/config.yaml, or the run folder, which has it (config=... in Python)"
            )
        return self.config


def recognise(source: Mapping[str, Shape] | TensorFile, where: object = None) -> Recognised:
    """Tell what network the tensors of a file make up; `source` is the open file or {key: shape}, any published names.

    Raises CheckpointError, saying what the file looks like instead, when they are not those of a Cosmos network.
    """
    if isinstance(source, TensorFile):
        return recognise({key: source.shape(key) for key in source}, where or source.path)
    shapes, where = source, where or "the file"
    dialect = detect_dialect(shapes) or "predict2"
    native: dict[str, Shape] = {}
    for key, shape in shapes.items():
        part, name = unwrap_key(key)
        if not is_ignored(key) and part != "logvar":
            native.setdefault(plain_name(to_native(name, dialect) or name), tuple(shape))
    try:
        fields, assumed = _fields(native)
    except KeyError as error:
        what = not_a_dit(shapes) or f"it has no tensor {error}"
        raise CheckpointError(f"{where}: not a Cosmos diffusion network: {what}; keys: {sorted(shapes)[:3]}") from None
    family = _family(fields, native, dialect)
    outer = {name: shape for name, shape in native.items() if not re.match(r"blocks\.(?!0\.)", name)}
    for name, published in PUBLISHED.items():
        if _signature(name) == (fields["num_blocks"], outer):
            told = (published.family, published.size, published.task, dialect, published.config())
            return Recognised(name, *told, fields)
    relative, task = _relative(fields, family), task_of(fields)
    if relative is None:
        return Recognised(None, family, _billions(native), task, dialect, None, fields, assumed)
    base = PUBLISHED[relative].config()
    fixed_table = fields["extra_pos_emb"] == "none" and base.extra_pos_emb == "sincos"  # which no tensor shows
    config = base.replace(**{**fields, "extra_pos_emb": "sincos" if fixed_table else fields["extra_pos_emb"]})
    assumed = (*assumed, f"rotary options as in {relative}")
    return Recognised(None, family, PUBLISHED[relative].size, task, dialect, config, fields, assumed)


def plain_name(name: str) -> str:
    """Return the name of the tensor that a LoRA-wrapped one stands for: `x.base_layer.weight` -> `x.weight`."""
    return name.replace(".base_layer.", ".")


@functools.lru_cache(maxsize=64)
def _signature(name: str) -> tuple[int, dict[str, Shape]]:
    """Return the number of blocks of a published network, and the shapes of its outer tensors and of block 0."""
    config = PUBLISHED[name].config()
    net = build_dit(config.replace(num_blocks=1), device="meta", dtype=torch.bfloat16)
    return config.num_blocks, shapes_of(net.state_dict())


def _fields(shapes: dict[str, Shape]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the DiTConfig fields that shapes determine, and what was assumed. KeyError: a tensor every DiT has is absent."""
    for name in [name for name in shapes if ".lora_A." in name or ".lora_B." in name]:
        shapes.pop(name)
    width = shapes["t_embedding_norm.weight"][0]
    out_channels = shapes["final_layer.linear.weight"][0] // _PATCH_VOLUME
    controls, channels, assumed = _controls(shapes)
    fields = {
        "model_channels": width,
        "num_blocks": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        "num_heads": width // shapes["blocks.0.self_attn.q_norm.weight"][0],
        "out_channels": out_channels,
        "mlp_ratio": shapes["blocks.0.mlp.layer1.weight"][0] / width,
        "adaln_lora_dim": shapes["blocks.0.adaln_modulation_mlp.1.weight"][0],
        "crossattn_emb_channels": shapes["blocks.0.cross_attn.k_proj.weight"][1],
        "crossattn_proj_in_channels": shapes.get("crossattn_proj.0.weight", (0, None))[1],
        "extra_pos_emb": "learnable" if "extra_pos_embedder.pos_emb_h" in shapes else "none",
        "input_channels": _input_channels(shapes[PATCH_WEIGHT][1] // _PATCH_VOLUME, out_channels, channels),
        "controls": controls,
    }
    if "extra_pos_embedder.pos_emb_h" in shapes:
        frames, rows, columns = (shapes[f"extra_pos_embedder.pos_emb_{axis}"][0] for axis in "thw")
        fields |= {"max_frames": frames, "max_img_h": 2 * rows, "max_img_w": 2 * columns}
    return fields, assumed


def _controls(shapes: Mapping[str, Shape]) -> tuple[tuple[Any, ...], list[tuple[str, int]], tuple[str, ...]]:
    """Return the controls whose modules are there, the input channels they feed, and what was assumed about them."""
    from cosmos_predict.conditions.action import ActionControl
    from cosmos_predict.conditions.augment_sigma import AugmentSigmaControl
    from cosmos_predict.conditions.camera import CameraBlockControl
    from cosmos_predict.conditions.trajectory import TrajectoryControl
    from cosmos_predict.conditions.view import ViewControl

    controls: list[Any] = []
    channels: list[tuple[str, int]] = []
    assumed: tuple[str, ...] = ()
    if view := shapes.get("view_embeddings.weight"):
        repeat = "repeat_frame_embedding.weight" in shapes
        controls.append(ViewControl(num_views=view[0], dim=view[1], add_frame_repeat=repeat))
        channels.append(("view", view[1]))
    if trajectory := shapes.get("traj_embeddings.weight"):
        controls.append(TrajectoryControl(dim=trajectory[0], in_features=trajectory[1]))
        channels.append(("trajectory", trajectory[0]))
    if action := shapes.get("action_embedder_B_D.fc1.weight"):
        hidden, numbers = action
        if numbers % 7:
            mode, dim, chunk = "flat", numbers, 1
        else:
            # Predict1 reads one action, Predict2 a chunk of 12, Predict2.5 the 4 actions of each latent frame.
            mode, dim, chunk = {1: "first_only", 4: "per_latent"}.get(numbers // 7, "flat"), 7, numbers // 7
        hidden = None if hidden == 4 * shapes["t_embedding_norm.weight"][0] else hidden
        controls.append(ActionControl(mode, dim, chunk, use_time=mode != "first_only", hidden=hidden))
        assumed = (f"actions of {dim} numbers, read {mode!r} in chunks of {chunk}",)
    if "augment_sigma_embedder.1.linear_1.weight" in shapes:
        controls.append(AugmentSigmaControl())
    if camera := shapes.get("blocks.0.cam_encoder.weight"):
        controls.append(CameraBlockControl(features=camera[1]))
    return tuple(controls), channels, assumed


def _input_channels(total: int, latent: int, last: list[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Return the named channels in published order for a patch embedding of `total` channels; `last` follow the padding."""
    rest = total - latent - sum(size for _, size in last)
    mask, padding = ("cond_mask", 1), ("padding", 1)
    named = {0: (), 1: (padding,), 2: (mask, padding), 8: (mask, ("plucker", 6), padding)}
    if rest not in named:
        raise CheckpointError(
            f"the patch embedding takes {total} channels: latent {latent}, {dict(last)} and {rest} more that no published "
            "network has; give the configuration that names them (config=...)"
        )
    return (("latent", latent), *named[rest], *last)


def _family(fields: Mapping[str, Any], shapes: Mapping[str, Shape], dialect: str) -> str:
    if dialect == "predict1" or fields["extra_pos_emb"] == "learnable" or "repeat_frame_embedding.weight" in shapes:
        return "predict1"
    return "predict2.5" if fields["crossattn_proj_in_channels"] else "predict2"


def task_of(fields: Mapping[str, Any]) -> str:
    """Return the task, as in the published names, that `input_channels` and `controls` of a network's fields make up."""
    names = {name for name, _ in fields["input_channels"]}
    task = "video2world" if "cond_mask" in names else "text2world"
    if "view" in names:
        task += "_multiview"
    for control in fields["controls"]:
        if control.name in ("action", "camera", "trajectory"):
            task += f"_{control.name}"
    return task + ("_camera" if "plucker" in names else "")


def _relative(fields: Mapping[str, Any], family: str) -> str | None:
    """Return the published network of the same family and size whose input channels and controls are the most alike."""
    channels = set(fields["input_channels"])
    controls = {control.name for control in fields["controls"]}

    def distance(name: str) -> int:
        config = PUBLISHED[name].config()
        others = {control.name for control in config.controls}
        return len(channels ^ set(config.input_channels)) + len(controls ^ others)

    def same_size(name: str) -> bool:
        config = PUBLISHED[name].config()
        return all(getattr(config, key) == fields[key] for key in ("model_channels", "num_blocks", "num_heads"))

    relatives = [name for name, published in PUBLISHED.items() if published.family == family and same_size(name)]
    return min(relatives, key=distance, default=None)


def _billions(shapes: Mapping[str, Shape]) -> str:
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    return f"{count / 1e9:.2g}B" if count >= 1e8 else f"{count / 1e6:.2g}M"
