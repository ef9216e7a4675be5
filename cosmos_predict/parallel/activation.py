"""What a block keeps for backward, and regional compilation. Both act block by block, from outside, before sharding.

`full` keeps a block's input and computes the block again in backward. `selective` also keeps what attention returns, its
output and log-sum-exp, which cost most to compute again and little to keep.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import DiT

POLICIES = ("none", "full", "selective")
# Operators that return attention's output and log-sum-exp, by name: not all of them exist in every build.
ATTENTION_OPS = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "flash_attn::_flash_attn_forward",
    "flash_attn_3::fwd",
)
# What a block keeps for backward, in values per token and unit of width: measured, with an MLP of ratio 4. Without
# checkpointing; with it the input, and under `selective` the results of both attentions.
KEPT = {"none": 26.3, "full": 1.0, "selective": 3.0}
# What of that each rank of a tensor group keeps whole, by whether it has a part of the stream only.
WHOLE = {False: {"none": 9.1, "full": 1.0, "selective": 1.0}, True: {"none": 3.1, "full": 0.0, "selective": 0.0}}


def activation_bytes(
    config: DiTConfig,
    tokens: int,
    policy: str = "none",
    every: int = 1,
    itemsize: int = 4,
    tensor: int = 1,
    sequence: bool = False,
) -> int:
    """Return about what the blocks of a network keep for backward of one sample of `tokens`, on one rank.

    With checkpointing this counts the block that is being computed again too. itemsize: of the compute dtype. tensor,
    sequence: over how many ranks tensor parallelism divides heads and MLP, and whether the stream of tokens too.
    """
    lean = 0 if policy == "none" else -(-config.num_blocks // every)
    rest = config.num_blocks - lean + bool(lean)
    per_block = tokens * config.model_channels * itemsize
    kept = {name: (KEPT[name] - whole) / tensor + whole for name, whole in WHOLE[sequence].items()}
    return int((lean * kept[policy] + rest * kept["none"]) * per_block)


def apply_activation_checkpointing(net: DiT, policy: str = "none", every: int = 1) -> None:
    """Make every `every`-th block of `net` keep less, as `policy` says. Raises ConfigError for another policy."""
    if policy not in POLICIES:
        raise ConfigError(f"activation checkpointing {policy!r} is not one of {', '.join(POLICIES)}")
    if policy == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # blocks draw no random numbers
    if policy == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_attention)
    for block in net.blocks[::every]:
        # Replacing the method, not the module, leaves every name as it is.
        block.forward = _checkpointed(block.forward, options)


def _checkpointed(forward: Callable[..., Tensor], options: Mapping[str, Any]) -> Callable[..., Tensor]:
    def run(*args: Any) -> Tensor:  # a function of Python, which the compiler can enter
        return cast(Tensor, checkpoint(forward, *args, **options))

    return run


def _keep_attention(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    keep = op.name().partition(".")[0] in ATTENTION_OPS
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(net: DiT, backend: str = "inductor") -> None:
    """Compile the blocks of `net`, all the same code, so that one compilation serves all. After checkpointing."""
    for block in net.blocks:
        block.compile(backend=backend)
