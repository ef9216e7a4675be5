"""The text encoder of Predict2.5 (Predict2 may use it too): what every layer of Cosmos-Reason1's language model makes of a prompt.

Cosmos-Reason1-7B is a Qwen2.5-VL (arXiv:2502.13923): 28 layers, 3584 wide, so 100352 numbers a token. Without its vision
tower, which is never read, it has 7.1 billion parameters: 14 GB in bfloat16, 28 GB in float32.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from cosmos_predict.errors import CheckpointError, ConfigError, MissingDependencyError
from cosmos_predict.text_encoders.folders import computing_on, find_folder, import_transformers, read_part
from cosmos_predict.text_encoders.tiny import check_prompts

if TYPE_CHECKING:
    import torch

REASON1 = "nvidia/Cosmos-Reason1.1-7B"  # its place below checkpoints/; the hub keeps 1.0 and 1.1 in one repository
PUBLISHED = (REASON1, "nvidia/Cosmos-Reason1-7B", "3210bec0495fdc7a8d3dbb8d58da5711eab4b423")
FILES = ("config.json", "chat_template*", "tokenizer*", "vocab.json", "merges.txt", "special_tokens*", "added_tokens*")
SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."  # the checkpoints depend on it
# The language model's tensors, under the names that published folders and versions of transformers give them.
_PREFIX = re.compile(r"^(model\.language_model\.|language_model\.model\.|language_model\.|model\.)")


class Reason1TextEncoder:
    """A Qwen2.5-VL language model and its tokenizer. Not a module: it is frozen and belongs in no state dict.

    Args:
        name_or_path: a folder in transformers' layout with safetensors, or a Hugging Face model name.
        dtype: of the weights: "bfloat16" (default; as the published embeddings were made) or "float32".
        device, offload, cache_dir: as for `T5TextEncoder`; `find_folder` says where the model is looked for.

    `width` is layers x hidden size: 100352. Raises CheckpointError for files that are no Qwen2.5-VL or lack a chat template,
    ConfigError for another dtype, MissingDependencyError without transformers, FileNotFoundError for a path that does not
    exist.
    """

    name = "cosmos_reason1"
    zero_padded = False

    def __init__(
        self,
        name_or_path: str | Path = REASON1,
        dtype: str | torch.dtype | None = None,
        device: torch.device | str | None = None,
        offload: bool = False,
        cache_dir: str | Path | None = None,
    ):
        import torch

        name = str(dtype or "bfloat16").removeprefix("torch.")
        if name not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype of the text encoder cosmos_reason1 is {dtype!r}; choose bfloat16 or float32")
        self.device = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        self.offload = offload
        folder = find_folder(name_or_path, cache_dir, "Cosmos-Reason1 (17 GB)", FILES, PUBLISHED)
        home = torch.device("cpu") if offload else self.device
        self.model, self.tokenizer, self.template = _load(folder, home, getattr(torch, name))
        self.width = self.model.config.num_hidden_layers * self.model.config.hidden_size

    def encode(self, prompts: list[str], max_length: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (B, max_length, width) float32 and mask (B, max_length) bool, all True: every row counts.

        A prompt becomes the user's part of a chat; its ids are padded, without a mask, or cut to `max_length`, and each
        layer's output (the last one's after the final norm) is normalised to mean 0 and deviation 1 over its width. One
        prompt is computed at a time: 0.2 GB of embedding each. Published: `max_length` 512.
        """
        import torch

        check_prompts(prompts, max_length)
        embeddings = torch.empty(len(prompts), max_length, self.width, device=self.device)
        with torch.inference_mode():
            run = computing_on(self.model, self.device, self.offload)
            for row, prompt in enumerate(prompts):
                ids = self._ids(prompt)
                if len(ids) > max_length:
                    logger.warning("a prompt of {} tokens is cut to {}: {:.60}...", len(ids), max_length, prompt)
                padded = torch.full((1, max_length), self.tokenizer.pad_token_id, device=self.device)
                padded[0, : len(ids)] = torch.tensor(ids[:max_length])
                states = run(input_ids=padded, use_cache=False, output_hidden_states=True).hidden_states
                for layer, part in zip(states[1:], embeddings[row].chunk(len(states) - 1, dim=-1), strict=True):
                    values = layer[0].float()
                    part.copy_((values - values.mean(-1, keepdim=True)) / (values.std(-1, keepdim=True) + 1e-8))
        return embeddings, torch.ones(len(prompts), max_length, dtype=torch.bool, device=self.device)

    def _ids(self, prompt: str) -> list[int]:
        parts = {"system": SYSTEM, "user": prompt}
        chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in parts.items()]
        text = self.tokenizer.apply_chat_template(chat, chat_template=self.template, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def _load(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Return language model (on `device`, frozen), tokenizer and chat template of a folder."""
    import torch

    from cosmos_predict.io.tensors import TensorFile

    transformers = import_transformers("cosmos_reason1")
    try:
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel
    except ImportError as error:
        what = f"the cosmos_reason1 text encoder needs Qwen2.5-VL's language model of transformers ({error})"
        raise MissingDependencyError(f"{what}: pip install -U transformers") from error
    config = read_part(transformers.AutoConfig, folder, "a Qwen2.5-VL")
    if not config.model_type.startswith("qwen2_5_vl"):
        raise CheckpointError(f"{folder} is a {config.model_type} model; expected a qwen2_5_vl, as {PUBLISHED[1]}")
    config = getattr(config, "text_config", config)
    tokenizer = read_part(transformers.AutoTokenizer, folder, "a tokenizer")
    template, file = tokenizer.chat_template, folder / "chat_template.json"  # where processors used to keep it
    if template is None and file.is_file():
        template = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
    for what, value in (("chat template", template), ("token for padding", tokenizer.pad_token_id)):
        if value is None:
            advice = f"download tokenizer* and chat_template* of {PUBLISHED[1]} again"
            raise CheckpointError(f"the tokenizer in {folder} has no {what}, which prompts go through: {advice}")
    with torch.device("meta"):
        model = Qwen2_5_VLTextModel(config)
    model.rotary_emb = type(model.rotary_emb)(config).to(device)  # its tables are in no file
    with TensorFile(folder) as tensors:
        stored = {_PREFIX.sub("", name): name for name in tensors}
        wanted = dict(model.named_parameters())
        wrong = {n for n, p in wanted.items() if n not in stored or tensors.shape(stored[n]) != tuple(p.shape)}
        if wrong:
            what = f"{len(wrong)} tensors of the language model or has them in another shape, among them {min(wrong)}"
            raise CheckpointError(f"{folder} lacks {what}: download it again")
        for name in wanted:
            module, _, leaf = name.rpartition(".")
            value = tensors.get(stored[name]).to(device, dtype)
            setattr(model.get_submodule(module), leaf, torch.nn.Parameter(value, requires_grad=False))
    return model.eval(), tokenizer, template
