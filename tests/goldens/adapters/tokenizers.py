"""Golden cases of area `tokenizer`."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_predict.tokenizers.wan import WanVAE
from tests.goldens.run_case import Case, adapter


@adapter("tokenizer", "wan_vae")
def wan_vae(case: Case) -> dict[str, Tensor]:
    vae = WanVAE(**case.config).eval()
    vae.load_state_dict(case.weights())
    with torch.inference_mode():
        latent = vae.encode(case.inputs["video"])
        return {
            "latent": latent,
            "decoded": vae.decode(case.inputs["latent"]),
            "reconstruction": vae.decode(latent),
        }
