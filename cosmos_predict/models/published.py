"""Every published Cosmos diffusion model by name: network, and what it is trained and sampled with. Imports no torch.

Names are `<family>_<size>_<task>`. A size fixes width, depth and heads; a task fixes input channels and controls.
`pipe_for` and `clip_for` are for a network recognised in a file, `published_model` for an experiment and `model=NAME`.
Sources: the configuration tables of Cosmos-1.0 / Predict1, Predict2 and Predict2.5.
"""

from __future__ import annotations

import dataclasses

from cosmos_predict.config.names import did_you_mean
from cosmos_predict.errors import ConfigError
from cosmos_predict.models.config import ModelConfig, ModelManagerConfig, PipeConfig
from cosmos_predict.networks.config import DiTConfig

LATENT, COND, PADDING = ("latent", 16), ("cond_mask", 1), ("padding", 1)
REASON1_CHANNELS = 100352  # 28 layers x 3584 of the Reason1 text encoder (Predict2.5)


@dataclasses.dataclass(frozen=True)
class Published:
    """One published network: its family (which fixes the parameterization), size and task."""

    family: str
    size: str
    task: str

    def config(self) -> DiTConfig:
        return _FAMILIES[self.family](self.size, self.task)


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
        channels = (*config.input_channels, ("view", 6))
        return config.replace(input_channels=channels, extra_pos_emb="sincos", controls=(views,))
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

        views, channels = ViewControl(num_views=7, dim=7), (*config.input_channels, ("view", 7))
        # Its published constructor always applies fps modulation, whatever the config file says.
        return config.replace(input_channels=channels, rope_enable_fps_modulation=True, controls=(views,))
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
    f"{family}_{size.lower()}_{task}": Published(family, size, task)
    for family, sizes in _TASKS.items()
    for size, tasks in sizes.items()
    for task in tasks
}


def published_config(name: str) -> DiTConfig:
    """Return the network configuration of the published model `name`; raises ConfigError naming the nearest ones."""
    if name not in PUBLISHED:
        raise ConfigError(f"unknown model {name!r}: {did_you_mean(name, PUBLISHED)}; all: {', '.join(PUBLISHED)}")
    return PUBLISHED[name].config()


@dataclasses.dataclass(frozen=True)
class ClipSize:
    """The clip that a model was published for, one view of it: frames, (height, width) in pixels, frames per second."""

    num_frames: int
    video_size: tuple[int, int]
    fps: float


def clip_for(family: str, task: str) -> ClipSize:
    """Return the clip of a family and task (Predict2's Video2World: that of its 720p, 16 fps weights)."""
    if family == "predict1":
        if task.endswith("action"):
            return ClipSize(2, (256, 320), 3.0)
        return ClipSize(57, (480, 848), 24.0) if task.endswith("multiview") else ClipSize(121, (704, 1280), 24.0)
    if task == "text2image":
        return ClipSize(1, (768, 1360), 16.0)
    if task == "action":
        return ClipSize(13, (480, 640), 4.0)
    return ClipSize(29, (704, 1280), 10.0) if task == "multiview" else ClipSize(93, (704, 1280), 16.0)


def pipe_for(family: str, task: str, net: DiTConfig | None = None) -> PipeConfig:
    """Return what models of a family and task are trained and sampled with. The path of the tokenizer is left empty.

    family, task: of `PUBLISHED`, or as `checkpoint.recognise` tells them from a file's tensors.
    """
    pipe = PipeConfig(net=net, family=family, sampler={"guidance": 7.0, "sigma_min": 0.002, "sigma_max": 80.0})
    if family == "predict1":
        pipe.tokenizer.name, pipe.sampler["sigma_min"] = "cosmos_cv8x8x8", 0.0002
        if task.endswith(("multiview", "action")):
            pipe.tokenizer.options = {"pixel_chunk_duration": 57 if task.endswith("multiview") else 1}
        pipe.min_num_conditional_frames, pipe.max_num_conditional_frames = 0, 1 if task.endswith("action") else 2
        pipe.views = 6 if task.endswith("multiview") else 1
    elif family == "predict2.5":
        pipe.text_encoder, pipe.sigma_conditional = "cosmos_reason1", None
        pipe.min_num_conditional_frames, pipe.conditional_frames_probs = 0, (0.5, 0.25, 0.25)
    elif task == "text2image":
        pipe.min_num_conditional_frames = pipe.max_num_conditional_frames = 0
        pipe.sampler["guidance"] = 4.0
    elif task == "multiview":
        pipe.min_num_conditional_frames, pipe.max_num_conditional_frames = 0, 1
        pipe.views = 7
        pipe.sampler |= {"sigma_min": 0.01, "sigma_max": 200.0}
    elif task == "action":
        pipe.max_num_conditional_frames = 1
    return pipe


def published_files(name: str) -> tuple[str, str]:
    """Return where the weights and the tokenizer of a published model lie after its download (`checkpoints/...`).

    The weights are `???`, a value that must be given, where none were published or their names are not fixed.
    """
    model = PUBLISHED[name]
    if model.family == "predict1":
        kind = {"text2world": "Text2World", "video2world": "Video2World"}[model.task.split("_")[0]]
        suffix = "-Sample-AV-Multiview" if model.task.endswith("multiview") else ""
        tokenizer = "checkpoints/Cosmos-Tokenize1-CV8x8x8-720p"
        return f"checkpoints/Cosmos-Predict1-{model.size}-{kind}{suffix}/model.pt", tokenizer
    if model.family == "predict2.5":
        return "???", f"checkpoints/nvidia/Cosmos-Predict2.5-{model.size}/tokenizer.pth"
    kind, weights = {
        "text2image": ("Text2Image", "model.pt"),
        "video2world": ("Video2World", "model-720p-16fps.pt"),
        "multiview": ("Multiview", "model-720p-10fps-7views-29frames.pt"),
        "action": ("Sample-Action-Conditioned", "model-480p-4fps.pt"),
    }[model.task]
    folder = f"checkpoints/nvidia/Cosmos-Predict2-{model.size}-{kind}"
    return f"{folder}/{weights}", f"{folder}/tokenizer/tokenizer.pth"


def published_model(name: str) -> ModelConfig:
    """Return what the published model `name` is trained and sampled with: network, files, given frames, loss, sampler."""
    config, model = published_config(name), PUBLISHED[name]
    pipe = pipe_for(model.family, model.task, config)
    weights, pipe.tokenizer.path = published_files(name)
    made = ModelConfig(pipe_config=pipe, model_manager_config=ModelManagerConfig(weights))
    if model.family == "predict1":
        # Video2World and the 14B raise the noise of videos by sqrt(T), the 7B's Text2World recipes do not.
        made.adjust_video_noise = model.task.startswith("video2world") or model.size == "14B"
        made.loss_scale, made.loss_add_logvar = 1.0, True
    else:
        made.loss_scale = 10.0 if model.family == "predict2" else 1.0
        made.high_sigma_ratio = 0.0 if model.task in ("text2image", "action") else 0.05
    return made
