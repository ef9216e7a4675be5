"""Action control: numbers per frame step, through two small MLPs, into the time embedding and the adaLN-LoRA vector.

Three published forms: `first_only` (Predict1: one action, adaLN-LoRA only), `flat` (Predict2: a whole chunk, the same for
every frame) and `per_latent` (Predict2.5, the default for new runs: the actions that lead to each latent frame).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_predict.config.lazy import configurable
from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.control import Control, Grid, Injection, wrong_shape

MODES = ("first_only", "flat", "per_latent")


class ActionMLP(nn.Module):
    """`fc2(gelu(fc1(action)))` with biases; the published nets use the tanh approximation of GELU, NeMo's the exact one."""

    def __init__(self, in_features: int, hidden: int, out_features: int, gelu: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden)
        self.fc2 = nn.Linear(hidden, out_features)
        self.gelu = gelu

    def forward(self, action: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(action), approximate=self.gelu))


@configurable
@dataclasses.dataclass(frozen=True)
class ActionControl(Control):
    """Steer by actions `(B, K, action_dim)`, already scaled; batch key `action`.

    mode: `first_only` reads `action[:, 0]`; `flat` needs K = `chunk`; `per_latent` needs K = (T - 1) * `chunk`, latent
        frame t >= 1 getting actions (t-1)*chunk .. t*chunk-1, frame 0 and given frames getting nothing.
    use_time: whether the D-wide embedding is added to the time embedding (Predict1's checkpoints: no).
    zero_init: start with zero output, so that step 0 of a grown network equals its base.
    """

    mode: str = "per_latent"
    action_dim: int = 7
    chunk: int = 4
    use_time: bool = True
    hidden: int | None = None
    gelu: str = "tanh"
    zero_init: bool = True
    name = "action"
    signals = ("action",)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"action mode={self.mode!r} is not one of {', '.join(MODES)}")

    @property
    def in_features(self) -> int:
        return self.action_dim * (1 if self.mode == "first_only" else self.chunk)

    def modules(self, config: DiTConfig) -> dict[str, nn.Module]:
        width = config.model_channels
        hidden = self.hidden or 4 * width
        return {
            "action_embedder_B_D": ActionMLP(self.in_features, hidden, width, self.gelu),
            "action_embedder_B_3D": ActionMLP(self.in_features, hidden, 3 * width, self.gelu),
        }

    def init_weights(self, net: nn.Module) -> None:
        super().init_weights(net)
        if self.zero_init:
            for name in ("action_embedder_B_D", "action_embedder_B_3D"):
                for parameter in net.get_submodule(f"{name}.fc2").parameters():
                    nn.init.zeros_(parameter)

    def inject(self, net: nn.Module, signals: Mapping[str, Any], grid: Grid, injection: Injection) -> None:
        action = signals.get("action")
        if action is None:
            raise ConfigError("this network is conditioned on actions: the batch needs the key 'action'")
        if action.ndim != 3 or action.shape[0] != grid.batch or action.shape[2] != self.action_dim:
            raise wrong_shape("action", action, f"({grid.batch}, K, {self.action_dim})")
        per_frame = self._per_frame(action.to(grid.dtype), grid)
        time = net.get_submodule("action_embedder_B_D")(per_frame) if self.use_time else None
        lora = net.get_submodule("action_embedder_B_3D")(per_frame)
        if self.mode == "per_latent":
            time, lora = (None if x is None else self._place(x, signals.get("condition_mask")) for x in (time, lora))
        if time is not None:
            injection.add_time(time)
        assert lora is not None
        injection.add_lora(lora)

    def _per_frame(self, action: Tensor, grid: Grid) -> Tensor:
        """Return the MLP input `(B, 1, F)` or, per latent frame after the first, `(B, T-1, F)`."""
        if self.mode == "first_only":
            if not action.shape[1]:
                raise ConfigError("'action' has 0 steps, expected at least 1 (first_only)")
            return action[:, :1]
        expected = self.chunk if self.mode == "flat" else self.chunk * (grid.frames - 1)
        if action.shape[1] != expected:
            what = f"expected {expected} for {grid.frames} latent frames ({self.mode})"
            raise ConfigError(f"'action' has {action.shape[1]} steps, {what}")
        return action.reshape(grid.batch, 1 if self.mode == "flat" else grid.frames - 1, self.in_features)

    @staticmethod
    def _place(embedding: Tensor, condition_mask: Tensor | None) -> Tensor:
        """Prepend zeros for latent frame 0 and silence given frames: `(B, T-1, F)` -> `(B, T, F)`."""
        embedding = F.pad(embedding, (0, 0, 1, 0))
        if condition_mask is None:
            return embedding
        return embedding * (1 - condition_mask[:, 0, :, 0, 0, None].to(embedding.dtype))
