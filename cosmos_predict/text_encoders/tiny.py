"""The offline text encoder: bytes in, T5-shaped embeddings out, no files and no transformers.

For tests, debug runs and tiny bases. The network is a two-layer T5 encoder (Raffel et al. 2020, arXiv:1910.10683: RMS
norm before each part, unscaled dot products with a bucketed relative position bias, relu feed-forward) over ByT5's byte
ids (arXiv:2105.13626), with weights that are a function of their names. It knows nothing about language; it gives
different prompts different embeddings, and the same ones everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cosmos_predict.errors import ConfigError
from cosmos_predict.text_encoders.filled_weights import filled_weight

if TYPE_CHECKING:
    import torch

WIDTH = 1024
LAYERS = 2
HEADS = 4
HEAD_WIDTH = 16
HIDDEN_WIDTH = 128
VOCABULARY = 384  # pad, end of sequence, unknown, 256 bytes, 125 unused ids: ByT5's table
END_OF_SEQUENCE = 1
FIRST_BYTE = 3
BUCKETS = 32  # of relative positions, half of them for keys after the query
EPSILON = 1e-6


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of the weights, under the names that transformers' T5EncoderModel gives them."""
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        attention = f"encoder.block.{layer}.layer.0"
        for name in "qkv":
            shapes[f"{attention}.SelfAttention.{name}.weight"] = (HEADS * HEAD_WIDTH, WIDTH)
        shapes[f"{attention}.SelfAttention.o.weight"] = (WIDTH, HEADS * HEAD_WIDTH)
        if layer == 0:  # one table for all layers
            shapes[f"{attention}.SelfAttention.relative_attention_bias.weight"] = (BUCKETS, HEADS)
        shapes[f"{attention}.layer_norm.weight"] = (WIDTH,)
        feed_forward = f"encoder.block.{layer}.layer.1"
        shapes[f"{feed_forward}.DenseReluDense.wi.weight"] = (HIDDEN_WIDTH, WIDTH)
        shapes[f"{feed_forward}.DenseReluDense.wo.weight"] = (WIDTH, HIDDEN_WIDTH)
        shapes[f"{feed_forward}.layer_norm.weight"] = (WIDTH,)
    shapes["encoder.final_layer_norm.weight"] = (WIDTH,)
    return shapes


def byte_ids(prompt: str, max_length: int) -> list[int]:
    """Return at most `max_length` ids: the UTF-8 bytes of `prompt` plus three, then the end of sequence (kept)."""
    text = prompt.encode("utf-8", errors="replace")[: max_length - 1]
    return [FIRST_BYTE + byte for byte in text] + [END_OF_SEQUENCE]


class TinyTextEncoder:
    """Byte-level encoder with the interface and output of `T5TextEncoder`, in float32.

    Not a module: its weights are constants and belong in no state dict.
    """

    name = "tiny"
    width = WIDTH
    zero_padded = True

    def __init__(self, device: torch.device | str | None = None, seed: int = 0):
        """Fill the weights (1.4 million numbers, some 20 ms) and put them on `device` (default: the CPU)."""
        import torch

        self.device = torch.device(device if device is not None else "cpu")
        arrays = {name: filled_weight(name, shape, seed) for name, shape in weight_shapes().items()}
        self.weights = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    def encode(self, prompts: list[str], max_length: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (B, max_length, 1024) float32, zero after the last token, and mask (B, max_length) bool.

        The mask is True for tokens, the end of sequence among them. Prompts of more than max_length - 1 bytes are cut.
        Each prompt is computed alone, so its embedding is bit-identical in any batch. Raises ConfigError for a
        `max_length` below 1.
        """
        import torch

        check_prompts(prompts, max_length)
        embeddings = torch.zeros(len(prompts), max_length, WIDTH, device=self.device)
        mask = torch.zeros(len(prompts), max_length, dtype=torch.bool, device=self.device)
        with torch.inference_mode():
            for row, prompt in enumerate(prompts):
                ids = torch.tensor(byte_ids(prompt, max_length), device=self.device)
                embeddings[row, : len(ids)] = self._hidden_states(ids)
                mask[row, : len(ids)] = True
        return embeddings, mask

    def _hidden_states(self, ids: torch.Tensor) -> torch.Tensor:
        """Compute the encoder for ids (L,) -> (L, 1024)."""
        import torch
        from torch.nn.functional import linear, rms_norm

        weights, length = self.weights, len(ids)
        bias_table = weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        position_bias = bias_table[position_buckets(length).to(self.device)].permute(2, 0, 1)  # (heads, query, key)
        x = weights["shared.weight"][ids]
        for layer in range(LAYERS):
            name = f"encoder.block.{layer}.layer.0"
            y = rms_norm(x, (WIDTH,), weights[f"{name}.layer_norm.weight"], EPSILON)
            qkv = (linear(y, weights[f"{name}.SelfAttention.{part}.weight"]) for part in "qkv")
            q, k, v = (part.view(length, HEADS, HEAD_WIDTH).transpose(0, 1) for part in qkv)
            mixed = torch.softmax(q @ k.transpose(1, 2) + position_bias, dim=-1) @ v
            x = x + linear(mixed.transpose(0, 1).flatten(1), weights[f"{name}.SelfAttention.o.weight"])
            name = f"encoder.block.{layer}.layer.1"
            y = rms_norm(x, (WIDTH,), weights[f"{name}.layer_norm.weight"], EPSILON)
            y = torch.relu(linear(y, weights[f"{name}.DenseReluDense.wi.weight"]))
            x = x + linear(y, weights[f"{name}.DenseReluDense.wo.weight"])
        return rms_norm(x, (WIDTH,), weights["encoder.final_layer_norm.weight"], EPSILON)


def position_buckets(length: int) -> torch.Tensor:
    """Return T5's bucket of each (query, key) pair, (L, L) int64 in [0, 32).

    Buckets 0-15 hold keys at or before the query, 16-31 keys after it. Of each half, eight hold the distances 0-7 and
    eight grow logarithmically up to 128: 8 + floor(8 log(d / 8) / log(16)), which is 8 plus the largest k with
    d^2 >= 64 * 2^k, in whole numbers that round nowhere.
    """
    import torch

    position = torch.arange(length)
    offset = position[None, :] - position[:, None]
    distance = offset.abs()
    half = BUCKETS // 2
    far = half // 2 + sum((distance**2 >= 64 * 2**k).long() for k in range(1, half // 2))
    return torch.where(distance < half // 2, distance, far) + half * (offset > 0)


def check_prompts(prompts: list[str], max_length: int) -> None:
    """Raise TypeError where `prompts` is no list of strings, ConfigError where `max_length` has no room for a token."""
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"prompts must be a list of strings, got {prompts!r:.80}")
    if max_length < 1:
        raise ConfigError(f"max_length is {max_length}; it must be at least 1 (published checkpoints use 512)")
