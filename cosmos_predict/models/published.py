"""Every published Cosmos diffusion network by name. Imports no torch.

Names are `<family>_<size>_<task>`. A size fixes width, depth and heads; a task fixes input channels and controls.
Sources: the configuration tables of Cosmos-1.0 / Predict1, Predict2 and Predict2.5.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable

from omegaconf import DictConfig

from cosmos_predict.config.lazy import LazyCall
from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.config import DiTConfig

LATENT, COND, PADDING = ("latent", 16), ("cond_mask", 1), ("padding", 1)
REASON1_CHANNELS = 100352  # 28 layers x 3584 of the Reason1 text encoder (Predict2.5)


@dataclasses.dataclass(frozen=True)
class Published:
    """One published network: its family (which fixes the parameterization), size, task and a function that makes its config."""

    family: str
    size: str
    task: str
    config: Callable[[], DiTConfig]


def _predict1(size: str, task: str) -> DiTConfig:
    width, blocks, heads, ratio = {"7B": (4096, 28, 32, 1.0), "14B": (5120, 36, 40, 2.0)}[size]
    config = DiTConfig(
        model_channels=width,
        num_blocks=blocks,
        num_heads=heads,
        input_channels=(LATENT, PADDING) if task.startswith("text2world") else (LATENT, COND, PADDING),
        rope_h_extrapolation_ratio=ratio,
        rope_w_extrapolation_ratio=ratio,
        rope_t_extrapolation_ratio=2.0,
        rope_enable_fps_modulation=True,
        extra_pos_emb="learnable",
        initialization="xavier",
    )
    if task.endswith("multiview"):
        from cosmos_predict.conditions.view import ViewControl

        views = ViewControl(num_views=6, dim=6, add_frame_repeat=True)
        return config.replace(
            input_channels=(*config.input_channels, ("view", 6)), extra_pos_emb="sincos", controls=(views,)
        )
    if task.endswith("action"):
        from cosmos_predict.conditions.action import ActionControl

        # The published recipe drops the extra position embedding and never uses the D-wide action embedding.
        return config.replace(extra_pos_emb="none", controls=(ActionControl(mode="first_only", use_time=False),))
    return config


def _predict2(size: str, task: str) -> DiTConfig:
    width, blocks, heads = {"0.6B": (1280, 20, 20), "2B": (2048, 28, 16), "14B": (5120, 36, 40)}[size]
    spatial, time = {"text2image": (4.0, 1.0), "multiview": (3.0, 8 / 24)}.get(
        task, (2.0, 20 / 24) if size == "14B" else (3.0, 1.0)
    )
    config = DiTConfig(
        model_channels=width,
        num_blocks=blocks,
        num_heads=heads,
        input_channels=(LATENT, PADDING) if task == "text2image" else (LATENT, COND, PADDING),
        rope_h_extrapolation_ratio=spatial,
        rope_w_extrapolation_ratio=spatial,
        rope_t_extrapolation_ratio=time,
    )
    if task == "multiview":
        from cosmos_predict.conditions.view import ViewControl

        # Its published constructor always applies fps modulation, whatever the config file says.
        channels = (*config.input_channels, ("view", 7))
        return config.replace(
            input_channels=channels, rope_enable_fps_modulation=True, controls=(ViewControl(num_views=7, dim=7),)
        )
    if task == "action":
        from cosmos_predict.conditions.action import ActionControl

        return config.replace(controls=(ActionControl(mode="flat", action_dim=7, chunk=12),))
    return config


def _predict25(size: str, task: str) -> DiTConfig:
    return _predict2(size, "video2world").replace(
        rope_h_extrapolation_ratio=3.0,
        rope_w_extrapolation_ratio=3.0,
        rope_t_extrapolation_ratio=1.0,
        crossattn_proj_in_channels=REASON1_CHANNELS,
    )


_FAMILIES = {"predict1": _predict1, "predict2": _predict2, "predict2.5": _predict25}
_TASKS = {
    "predict1": {
        "7B": ("text2world", "video2world", "text2world_multiview", "video2world_multiview", "video2world_action"),
        "14B": ("text2world", "video2world"),
    },
    "predict2": {
        "0.6B": ("text2image",),
        "2B": ("text2image", "video2world", "multiview", "action"),
        "14B": ("text2image", "video2world"),
    },
    "predict2.5": {"2B": ("base",), "14B": ("base",)},
}

PUBLISHED: dict[str, Published] = {
    f"{family}_{size.lower()}_{task}": Published(
        family, size, task, lambda f=family, s=size, t=task: _FAMILIES[f](s, t)
    )
    for family, sizes in _TASKS.items()
    for size, tasks in sizes.items()
    for task in tasks
}


def published_config(name: str) -> DiTConfig:
    """Return the network configuration of the published model `name`; raises ConfigError naming the nearest ones."""
    if name not in PUBLISHED:
        near = difflib.get_close_matches(name, PUBLISHED, n=3, cutoff=0.3)
        raise ConfigError(f"unknown model {name!r}; nearest: {', '.join(near) or 'none'}; all: {', '.join(PUBLISHED)}")
    return PUBLISHED[name].config()


def published_net(name: str) -> DictConfig:
    """Return the network of `published_config(name)` as a config node, for experiments and `model=NAME`."""
    config = published_config(name)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    fields["input_channels"] = [list(channel) for channel in config.input_channels]
    fields["controls"] = [_control_node(control) for control in config.controls]
    return LazyCall(DiTConfig)(**fields)


def _control_node(control: object) -> DictConfig:
    kind = type(control)
    values = {field.name: getattr(control, field.name) for field in dataclasses.fields(control)}  # type: ignore[arg-type]
    return LazyCall(f"{kind.__module__}.{kind.__name__}")(
        **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    )
