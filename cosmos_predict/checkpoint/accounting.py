"""Strict accounting: every tensor of a file has a place in the network and every place is filled, or the load is refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from cosmos_predict.checkpoint.dialects import detect_dialect
from cosmos_predict.errors import CheckpointError

Shape = tuple[int, ...]
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


@dataclasses.dataclass(frozen=True)
class Accounting:
    """How the tensors of a file differ from what a network expects; names are native unless the file's is unknown.

    wrong_shape: (name, shape in the file, shape in the network). cause: the likely reason in words, or "".
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[tuple[str, Shape, Shape], ...]
    cause: str = ""

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        lines = []
        for title, names in (("missing from the file", self.missing), ("not in the network", self.unexpected)):
            if names:
                lines += [f"{title}: {len(names)}", *_rows(grouped(names))]
        if self.wrong_shape:
            rows = [f"{name}  file {found}, network {expected}" for name, found, expected in self.wrong_shape]
            lines += [f"wrong shape: {len(rows)}", *_rows(rows)]
        if self.cause:
            lines.append(f"likely cause: {self.cause}")
        return "\n".join(lines)


def account(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> Accounting:
    """Compare the shapes of a file (native names, prefixes and ignored entries taken off) to those of a network."""
    missing = tuple(name for name in expected if name not in found)
    unexpected = tuple(name for name in found if name not in expected)
    wrong = tuple(
        (n, tuple(found[n]), tuple(s)) for n, s in expected.items() if n in found and tuple(found[n]) != tuple(s)
    )
    cause = _cause(found, expected, missing, unexpected, wrong) if missing or unexpected or wrong else ""
    return Accounting(missing, unexpected, wrong, cause)


def require_match(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: object) -> None:
    """Raise CheckpointError with the table when the tensors of the file `where` are not exactly the network's."""
    if accounting := account(found, expected):
        raise CheckpointError(f"{where}: its tensors are not the network's.\n{accounting}")


def not_a_dit(keys: Iterable[str]) -> str:
    """Return what a file that is no Cosmos network looks like, or "" when its keys say nothing."""
    keys = list(keys)
    if keys and all(".lora_A." in key or ".lora_B." in key for key in keys):
        return "LoRA adapters alone (give the base as the network and these as its adapters, --lora_path)"
    for pattern, what in _NOT_A_DIT.items():
        if any(re.search(pattern, key) for key in keys):
            return what
    return ""


def grouped(names: Iterable[str]) -> list[str]:
    """Return names with equal ones of different blocks folded, `blocks.{0-27}.mlp.layer1.weight`, those outside blocks first."""
    groups: dict[str, list[int]] = {}
    for name in sorted(names, key=lambda name: "blocks." in name):
        numbers = re.findall(r"(?<=blocks\.)\d+|(?<=blocks\.block)\d+", name)[:1]
        pattern = re.sub(r"(?<=blocks\.)\d+|(?<=blocks\.block)\d+", "{}", name, count=1)
        groups.setdefault(pattern, []).extend(int(number) for number in numbers)
    return [pattern.replace("{}", _ranges(numbers)) if numbers else pattern for pattern, numbers in groups.items()]


def _ranges(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    text = ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
    return text if text.isdigit() else "{" + text + "}"


def _rows(rows: list[str], most: int = 16) -> list[str]:
    more = [f"  ... and {len(rows) - most} more"] if len(rows) > most else []
    return [f"  {row}" for row in rows[:most]] + more


def _cause(
    found: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    missing: tuple[str, ...],
    unexpected: tuple[str, ...],
    wrong: tuple[tuple[str, Shape, Shape], ...],
) -> str:
    """Return the likeliest reason, the most telling sign first."""
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
        return f"the file is a base without {_modules(missing)}; a bigger network starts from a base through grow_from_base"
    if missing and not unexpected:
        return "the file is incomplete: it was cut, or one shard of several"
    if unexpected and not missing:
        return f"the file has modules that this network's configuration leaves out: {_modules(unexpected)}"
    return ""


def _channel_cause(columns_found: int, columns_expected: int) -> str:
    more, base = (columns_expected - columns_found), "the file" if columns_expected > columns_found else "the network"
    channels = f"{abs(more)} patch columns ({abs(more) // 4} input channels at patch 1x2x2)"
    return (
        f"{base} takes {channels} less: another task of the same network. To start a bigger network from a base use "
        "grow_from_base (grow_patch_weight moves the columns by channel name)"
    )


def _depth(names: Iterable[str]) -> int:
    return len({match[1] for name in names if (match := re.match(r"blocks\.(\d+)\.", name))})


def _modules(names: Iterable[str]) -> str:
    """Return the modules that hold `names`, those of blocks once."""
    return ", ".join(sorted({re.sub(r"^blocks\.\d+\.", "", name).split(".")[0] for name in names}))
