"""The text encoder of the published checkpoints: the encoder half of google-t5/t5-11b, through transformers.

Raffel et al. 2020 (arXiv:1910.10683): the original relu T5 with 1024-wide states, not T5-v1.1-XXL (4096 wide), whatever
the folder name `t5_xxl` suggests. 4.9 billion parameters: 19.5 GB in float32, 9.7 GB in bfloat16, about 5 GB in int8.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loguru import logger

from cosmos_predict.errors import CheckpointError, ConfigError, MissingDependencyError
from cosmos_predict.text_encoders.tiny import check_prompts

if TYPE_CHECKING:
    import torch
    from transformers import T5EncoderModel

T5_11B = "google-t5/t5-11b"
WIDTH = 1024
# All that the encoder needs of a repository; that of T5-11B also holds 45 GB for TensorFlow.
TOKENIZER_FILES = ("config.json", "tokenizer*", "spiece.model", "special_tokens*")
WEIGHT_FILES = ("pytorch_model*.bin*", "model*.safetensors*")

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
            hidden = self._run({"input_ids": tokens.input_ids.to(self.device), "attention_mask": valid})
            length = hidden.shape[1]
            embeddings[:, :length] = hidden.float().masked_fill(~valid[..., None], 0.0)
            mask[:, :length] = valid
        return embeddings, mask

    def _run(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Call the network; with offload on copies of its weights, so that nothing has to be copied back."""
        import torch

        if not self.offload:
            return self.model(**inputs).last_hidden_state
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        copies = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        return torch.func.functional_call(self.model, copies, kwargs=inputs).last_hidden_state


def find_t5(name_or_path: str | Path, cache_dir: str | Path | None = None) -> Path:
    """Return the folder of a T5 model, downloaded from Hugging Face where no local one is found.

    Looked at in this order: `name_or_path` itself, `cache_dir` itself, `cache_dir/name_or_path`, and (without a
    `cache_dir`) `checkpoints/name_or_path`. A download goes to `cache_dir/name_or_path`, or to Hugging Face's own cache
    (`HF_HOME`). Raises CheckpointError, FileNotFoundError, or what `io.hub.download_snapshot` raises.
    """
    name = str(name_or_path)
    given = Path(name_or_path).expanduser()
    cache = Path(cache_dir if cache_dir is not None else "checkpoints").expanduser()
    folders = [given, cache / name] if cache_dir is None else [given, cache, cache / name]
    for folder in folders:
        if (folder / "config.json").is_file() and any(folder.glob(pattern) for pattern in WEIGHT_FILES):
            return folder
    if given.is_dir():
        raise CheckpointError(f"{given} is no T5 folder: expected config.json and pytorch_model.bin or *.safetensors")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise FileNotFoundError(f"no T5 folder {name}, and no Hugging Face name (OWNER/MODEL, as {T5_11B}) either")
    from cosmos_predict.io.hub import download_snapshot

    logger.info(f"downloading {name} (google-t5/t5-11b: 45 GB)")
    target = cache / name if cache_dir is not None else None
    return download_snapshot(name, [*TOKENIZER_FILES, *WEIGHT_FILES], local_dir=target)


def _load(folder: Path, dtype_name: str) -> tuple[T5EncoderModel, Any]:
    """Load encoder (on the CPU, frozen) and tokenizer from a local folder, strictly."""
    import torch

    transformers = _transformers()
    options: dict[str, Any] = {"dtype": torch.bfloat16 if dtype_name == "int8" else getattr(torch, dtype_name)}
    if dtype_name == "int8":
        options["quantization_config"] = _eight_bit_config()

    def read(kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(folder, local_files_only=True, **options)
        except Exception as error:  # each file format has its own error classes
            raise CheckpointError(f"cannot load a T5 encoder from {folder}: {type(error).__name__}: {error}") from error

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
    return _transformers().TorchAoConfig(Int8WeightOnlyConfig())


def _transformers() -> Any:
    """Import transformers, which takes seconds, only where T5 is used."""
    try:
        import transformers
    except ImportError as error:
        advice = "pip install transformers, or use the tiny encoder"
        raise MissingDependencyError(f"the T5 text encoder needs transformers ({error}): {advice}") from error
    return transformers
