"""Golden cases of area `tokenizer`."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_predict.tokenizers.cosmos_image import CosmosImageTokenizer
from cosmos_predict.tokenizers.cosmos_video import CosmosVideoTokenizer
from cosmos_predict.tokenizers.haar import haar_patch_2d, haar_patch_3d, haar_unpatch_3d
from cosmos_predict.tokenizers.normalize import LatentNormalizer
from cosmos_predict.tokenizers.wan import WanVAE
from tests.goldens.run_case import Case, adapter


@adapter("tokenizer", "cosmos_tokenizer")
@torch.inference_mode()
def cosmos_tokenizer(case: Case) -> dict[str, Tensor]:
    if "image" in case.inputs:
        tokenizer = CosmosImageTokenizer(**case.config).eval()
        tokenizer.load_state_dict(case.weights())
        latent = tokenizer.encode(case.inputs["image"].unsqueeze(2))
        decoded = tokenizer.decode(case.inputs["latent"].unsqueeze(2))
        reconstruction = tokenizer.decode(latent)
        return {
            "latent": latent.squeeze(2),
            "decoded": decoded.squeeze(2),
            "reconstruction": reconstruction.squeeze(2),
        }
    tokenizer = CosmosVideoTokenizer(**case.config).eval()
    tokenizer.load_state_dict(case.weights())
    latent = tokenizer.encode(case.inputs["video"])
    return {
        "latent": latent,
        "decoded": tokenizer.decode(case.inputs["latent"]),
        "reconstruction": tokenizer.decode(latent),
    }


@adapter("tokenizer", "cosmos_tokenizer_chunked")
@torch.inference_mode()
def cosmos_tokenizer_chunked(case: Case) -> dict[str, Tensor]:
    normalizer = LatentNormalizer(case.inputs["mean"], case.inputs["std"])
    tokenizer = CosmosVideoTokenizer(**case.config, normalizer=normalizer).eval()
    tokenizer.load_state_dict(case.weights())
    return {
        "latent": tokenizer.encode(case.inputs["video"]),
        "decoded": tokenizer.decode(case.inputs["latent"]),
    }


@adapter("tokenizer", "haar_patcher")
def haar_patcher(case: Case) -> dict[str, Tensor]:
    size = case.config["patch_size"]
    video = case.inputs["video"]
    return {
        "video_patches": haar_patch_3d(video, size),
        "image_patches": haar_patch_3d(video[:, :, :1], size),
        "unpatched": haar_unpatch_3d(case.inputs["patches"], size),
        "patches_2d": haar_patch_2d(video[:, :, 0], size),
    }


@adapter("tokenizer", "wan_vae")
@torch.inference_mode()
def wan_vae(case: Case) -> dict[str, Tensor]:
    vae = WanVAE(**case.config).eval()
    vae.load_state_dict(case.weights())
    latent = vae.encode(case.inputs["video"])
    return {
        "latent": latent,
        "decoded": vae.decode(case.inputs["latent"]),
        "reconstruction": vae.decode(latent),
    }
