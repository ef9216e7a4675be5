"""Camera control in every block: folded Plücker rays, projected by `cam_encoder` and added to the self-attention input.

The other published form, six Plücker channels at latent resolution, needs no module: name an input channel `plucker`
and give the signal of that name. The geometry of both is in `cosmos_predict.conditions.plucker`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from cosmos_predict.config.lazy import configurable
from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.control import Control, Grid, Injection, wrong_shape


@configurable
@dataclasses.dataclass(frozen=True)
class CameraBlockControl(Control):
    """Add `cam_encoder(camera)` in every block; batch key `camera` `(B, V*T, h, w, features)` on the token grid.

    features: 1536 = 16 x 16 pixels x 6 Plücker numbers of a token. zero_init: new runs start as their base network.
    """

    features: int = 1536
    zero_init: bool = True
    name = "camera"
    signals = ("camera",)

    def block_modules(self, config: DiTConfig) -> dict[str, nn.Module]:
        return {"cam_encoder": nn.Linear(self.features, config.model_channels, bias=False)}

    def init_weights(self, net: nn.Module) -> None:
        for name, weight in net.named_parameters():
            if name.endswith("cam_encoder.weight"):
                std = 0.0 if self.zero_init else weight.shape[0] ** -0.5
                nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std) if std else nn.init.zeros_(weight)

    def inject(self, net: nn.Module, signals: Mapping[str, Any], grid: Grid, injection: Injection) -> None:
        camera = signals.get("camera")
        if camera is None:
            raise ConfigError("this network is conditioned on camera rays: the batch needs the key 'camera'")
        tokens = net.config.token_grid(grid.frames, grid.height, grid.width)  # type: ignore[union-attr, operator]
        expected = (grid.batch, *tokens, self.features)
        if camera.shape != expected:
            raise wrong_shape("camera", camera, f"{expected}: (B, V*T, h, w, features)")
        injection.blocks["cam_encoder"] = camera.flatten(1, 3)
