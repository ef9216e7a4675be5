"""The text encoder of the published checkpoints: the encoder half of google-t5/t5-11b, through transformers.

Raffel et al. 2020 (arXiv:1910.10683): the original relu T5 with 1024-wide states, not T5-v1.1-XXL (4096 wide), whatever
the folder name `t5_xxl` suggests. 4.9 billion parameters: 19.5 GB in float32, 9.7 GB in bfloat16, about 5 GB in int8.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cosmos_predict.errors import CheckpointError, ConfigError, MissingDependencyError
from cosmos_predict.text_encoders.folders import computing_on, find_folder, import_transformers, read_part
from cosmos_predict.text_encoders.tiny import check_prompts

if TYPE_CHECKING:
    import torch
    from transformers import T5EncoderModel

T5_11B = "google-t5/t5-11b"
WIDTH = 1024
# What the encoder needs of a repository beside the weights; that of T5-11B also holds 45 GB for TensorFlow.
TOKENIZER_FILES = ("config.json", "tokenizer*", "spiece.model", "special_tokens*")

Dtype = Literal["float32", "bfloat16", "float16", "int8"]


class T5TextEncoder:
    """T5 encoder and its tokenizer. Not a module: it is frozen and belongs in no state dict.

    Args:
        name_or_path: a folder in transformers' layout, or a Hugging Face model name.
        dtype: of the weights: "float32" (default; as the published embeddings were made), "bfloat16", "float16", or
            "int8" (8-bit weights, bfloat16 arithmetic; needs torchao).
        device: where to compute; default CUDA where there is one, else the CPU.
        offload: keep the weights in CPU memory and copy them to `device` only while `encode` runs.
        cache_dir: where to look for the model and to download it to; see `find_t5`.

    Raises CheckpointError for files that are no T5 encoder of width 1024, MissingDependencyError where a package is
    not installed, ConfigError for an unknown dtype, FileNotFoundError for a path that does not exist.
    """

    name = "t5"
    width = WIDTH
    zero_padded = True

    def __init__(
        self,
        name_or_path: str | Path = T5_11B,
        dtype: Dtype | torch.dtype | None = None,
        device: torch.device | str | None = None,
        offload: bool = False,
        cache_dir: str | Path | None = None,
    ):
        import torch

        dtype_name = str(dtype or "float32").removeprefix("torch.")
        if dtype_name not in ("float32", "bfloat16", "float16", "int8"):
            raise ConfigError(f"text encoder dtype is {dtype!r}; choose float32, bfloat16, float16 or int8")
        self.device = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        self.offload = offload
        self.model, self.tokenizer = _load(find_t5(name_or_path, cache_dir), dtype_name)
        if not self.offload:
            self.model.to(self.device)  # type: ignore[arg-type]

    def encode(self, prompts: list[str], max_length: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (B, max_length, 1024) float32, zero after the last token, and mask (B, max_length) bool.

        The mask is True for tokens, the end of sequence among them; longer prompts are cut, their last token being the
        end of sequence. Computes on the length of the longest prompt: padding changes no valid row beyond rounding.
        """
        import torch

        check_prompts(prompts, max_length)
        embeddings = torch.zeros(len(prompts), max_length, WIDTH, device=self.device)
        mask = torch.zeros(len(prompts), max_length, dtype=torch.bool, device=self.device)
        if not prompts:
            return embeddings, mask
        tokens = self.tokenizer(prompts, truncation=True, max_length=max_length, padding="longest", return_tensors="pt")
        valid = tokens.attention_mask.bool().to(self.device)
        with torch.inference_mode():
            run = computing_on(self.model, self.device, self.offload)
            hidden = run(input_ids=tokens.input_ids.to(self.device), attention_mask=valid).last_hidden_state
            length = hidden.shape[1]
            embeddings[:, :length] = hidden.float().masked_fill(~valid[..., None], 0.0)
            mask[:, :length] = valid
        return embeddings, mask


def find_t5(name_or_path: str | Path, cache_dir: str | Path | None = None) -> Path:
    """Return the folder of a T5 model, downloaded where there is none; `find_folder` says where it is looked for."""
    return find_folder(name_or_path, cache_dir, "T5 (google-t5/t5-11b: 45 GB)", TOKENIZER_FILES, (T5_11B, T5_11B, None))


def _load(folder: Path, dtype_name: str) -> tuple[T5EncoderModel, Any]:
    """Load encoder (on the CPU, frozen) and tokenizer from a local folder, strictly."""
    import torch

    transformers = import_transformers("T5")
    options: dict[str, Any] = {"dtype": torch.bfloat16 if dtype_name == "int8" else getattr(torch, dtype_name)}
    if dtype_name == "int8":
        options["quantization_config"] = _eight_bit_config()

    read = functools.partial(read_part, folder=folder, what="a T5 encoder")
    config = read(transformers.AutoConfig)
    if config.model_type != "t5" or config.d_model != WIDTH:
        what = f"a {config.model_type} model of width {getattr(config, 'd_model', 'unknown')}"
        advice = f"expected a t5 model of width {WIDTH}, as {T5_11B} (T5-v1.1-XXL, 4096 wide, is another model)"
        raise CheckpointError(f"{folder} is {what}; {advice}")
    tokenizer = read(transformers.AutoTokenizer)
    model, report = read(transformers.T5EncoderModel, config=config, output_loading_info=True, **options)
    if report["missing_keys"]:  # transformers would leave them random
        missing = sorted(report["missing_keys"])
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors of the T5 encoder, among them {missing[0]}")
    return model.eval().requires_grad_(False), tokenizer


def _eight_bit_config() -> Any:
    """Return transformers' quantization config for 8-bit weights."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore[reportMissingImports]
    except ImportError:
        advice = "pip install torchao, or choose bfloat16"
        raise MissingDependencyError(f"the text encoder dtype int8 needs torchao: {advice}") from None
    return import_transformers("T5").TorchAoConfig(Int8WeightOnlyConfig())
