"""The likely cause, in words, when the tensors of a file are not those of a network."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from cosmos_predict.checkpoint.dialects import detect_dialect
from cosmos_predict.errors import CheckpointError
from cosmos_predict.io.accounting import Accounting, Shape, compare

PATCH_WEIGHT = "x_embedder.proj.1.weight"
# Modules that no control adds.
_CORE = re.compile(
    r"x_embedder|t_embed|final_layer|crossattn_proj|extra_pos_embedder|blocks\.\d+\.(self_attn|cross_attn|mlp|adaln)"
)
_NOT_A_DIT = {
    r"^(encoder|decoder)\.(unpatcher|patcher|conv_in|downsamples|conv1|middle|down\.|mid\.)": "a video tokenizer (give it to the "
    "tokenizer's path, not the network's)",
    r"^(shared\.weight|encoder\.block\.\d+\.layer\.)": "a T5 text encoder",
    r"^(model\.)?(embed_tokens|layers\.\d+\.self_attn)": "a language model",
    r"(^|\.)(exp_avg|exp_avg_sq)$": "an optimizer state",
}


def require_match(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: object) -> None:
    """Raise CheckpointError with a table and its likely cause unless the tensors of the file `where` (native names, prefixes
    and ignored entries taken off) are exactly the network's.
    """
    if table := compare(found, expected):
        table = dataclasses.replace(table, cause=_cause(found, expected, table))
        raise CheckpointError(f"{where}: its tensors are not the network's.\n{table}")


def not_a_dit(keys: Iterable[str]) -> str:
    """Return what a file that is no Cosmos network looks like, or "" when its keys say nothing."""
    keys = list(keys)
    if keys and all(".lora_A." in key or ".lora_B." in key for key in keys):
        return "LoRA adapters alone (give the base as the network and these as its adapters, --lora_path)"
    return next((what for pattern, what in _NOT_A_DIT.items() if any(re.search(pattern, key) for key in keys)), "")


def _cause(found: Mapping[str, Shape], expected: Mapping[str, Shape], accounting: Accounting) -> str:
    """Return the likeliest reason, the most telling sign first."""
    missing, unexpected, wrong = accounting.missing, accounting.unexpected, accounting.wrong_shape
    if what := not_a_dit(found):
        return f"this is {what}"
    if any(".base_layer." in name or ".lora_A." in name for name in unexpected):
        return (
            "a LoRA file: its base weights are named base_layer and its adapters lora_A / lora_B. "
            "Convert it with scripts/convert_checkpoint.py --merge (or --lora_form peft for the adapters alone)"
        )
    if any(".base_layer." in name or ".lora_A." in name for name in missing):
        return "the network carries LoRA adapters and the file has none: load the file before injecting adapters"
    dialect = detect_dialect(found)
    if missing and unexpected and dialect not in (None, "predict2"):
        return f"the keys look like dialect {dialect!r}; translate them, or name the dialect on load"
    if len(wrong) == 1 and wrong[0][0] == PATCH_WEIGHT and wrong[0][1][0] == wrong[0][2][0]:
        return _channel_cause(wrong[0][1][1], wrong[0][2][1])
    depth_found, depth_expected = _depth(found), _depth(expected)
    if depth_found != depth_expected and depth_found:
        return f"another size: the file has {depth_found} blocks, the network {depth_expected}"
    widths = {shapes[PATCH_WEIGHT][0] for shapes in (found, expected) if PATCH_WEIGHT in shapes}
    if wrong and len(widths) == 2:
        return f"another size: the file is {found[PATCH_WEIGHT][0]} wide, the network {expected[PATCH_WEIGHT][0]}"
    if missing and not unexpected and not any(_CORE.match(name) for name in missing):
        return (
            f"the file is a base without {_modules(missing)}; a bigger network starts from a base through grow_from_base, "
            "as training does of itself with model.config.train_architecture=base (LoRA could not train new parts)"
        )
    if missing and not unexpected:
        return "the file is incomplete: it was cut, or one shard of several"
    if unexpected and not missing:
        return f"the file has modules that this network's configuration leaves out: {_modules(unexpected)}"
    return ""


def _channel_cause(columns_found: int, columns_expected: int) -> str:
    more, base = (columns_expected - columns_found), "the file" if columns_expected > columns_found else "the network"
    channels = f"{abs(more)} patch columns ({abs(more) // 4} input channels at patch 1x2x2)"
    return (
        f"{base} takes {channels} less: another task of the same network. In training name a base of this task with "
        "model.config.model_manager_config.dit_path=FILE, or train the file's own network: its experiment (--list) or "
        "model=NAME. An experiment with controls (actions, views) grows from such a base of itself; checkpoint.strict_resume="
        "false loads all that fits and starts the rest new. In Python: grow_from_base moves the columns by channel name"
    )


def _depth(names: Iterable[str]) -> int:
    return len({match[1] for name in names if (match := re.match(r"blocks\.(\d+)\.", name))})


def _modules(names: Iterable[str]) -> str:
    """Return the modules that hold `names`, those of blocks once."""
    return ", ".join(sorted({re.sub(r"^blocks\.\d+\.", "", name).split(".")[0] for name in names}))
