"""Key names of one DiT in three dialects, as one table used both ways.

A *dialect* is a bijection between our native names and the names that some software writes, on network keys without
prefix. `predict2` is native: the names of Cosmos-Predict2, and the published name of every module that Predict2 has not.
`predict1` and `diffusers` have a name for the modules of the table only; a tensor without a name is refused, never dropped.
No tensor is transposed, split or scaled between dialects. Table: spec of Predict1, comparison of key names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.accounting import rows

DIALECTS = ("predict2", "predict1", "diffusers")
T = TypeVar("T")

SAME = "="
_BLOCK_PREFIX = {"predict2": "blocks.", "predict1": "blocks.block", "diffusers": "transformer_blocks."}


def _attention(native: str, predict1: str, diffusers: str) -> list[tuple[str, str | None, str | None]]:
    """Return the rows of one attention module; published order of Predict1's pairs: projection 0, norm 1."""
    rows: list[tuple[str, str | None, str | None]] = []
    for letter in "qkv":
        rows.append((f"{native}.{letter}_proj", f"{predict1}.to_{letter}.0", f"{diffusers}.to_{letter}"))
        if letter != "v":
            rows.append((f"{native}.{letter}_norm", f"{predict1}.to_{letter}.1", f"{diffusers}.norm_{letter}"))
    rows.append((f"{native}.output_proj", f"{predict1}.to_out.0", f"{diffusers}.to_out.0"))
    return rows


# (predict2, predict1, diffusers) module paths; what follows the path, such as ".weight", is the same in all.
_BLOCK_MODULES: list[tuple[str, str | None, str | None]] = [
    *_attention("self_attn", "blocks.0.block.attn", "attn1"),
    *_attention("cross_attn", "blocks.1.block.attn", "attn2"),
    ("mlp.layer1", "blocks.2.block.layer1", "ff.net.0.proj"),
    ("mlp.layer2", "blocks.2.block.layer2", "ff.net.2"),
    *(
        (f"adaln_modulation_{part}.{n}", f"blocks.{i}.adaLN_modulation.{n}", f"norm{i + 1}.linear_{n}")
        for i, part in enumerate(("self_attn", "cross_attn", "mlp"))
        for n in (1, 2)
    ),
    ("cam_encoder", None, None),
]
_OUTER_MODULES: list[tuple[str, str | None, str | None]] = [
    ("x_embedder.proj.1", SAME, "patch_embed.proj"),
    ("extra_pos_embedder", SAME, "learnable_pos_embed"),
    ("t_embedder.1", SAME, "time_embed.t_embedder"),
    ("t_embedding_norm", "affline_norm", "time_embed.norm"),
    ("final_layer.adaln_modulation.1", "final_layer.adaLN_modulation.1", "norm_out.linear_1"),
    ("final_layer.adaln_modulation.2", "final_layer.adaLN_modulation.2", "norm_out.linear_2"),
    ("final_layer.linear", SAME, "proj_out"),
    ("crossattn_proj.0", None, SAME),
    ("action_embedder_B_D", SAME, None),
    ("action_embedder_B_3D", SAME, None),
    ("view_embeddings", SAME, None),
    # Modules that Cosmos-Predict2 itself does not have; natively they keep their Predict1 names.
    ("repeat_frame_embedding", SAME, None),
    ("traj_embeddings", SAME, None),
    ("augment_sigma_embedder.1", SAME, None),
]

# dialect -> is it a block module -> module path -> native path, and the way back.
_TO_NATIVE: dict[str, dict[bool, dict[str, str]]] = {}
_FROM_NATIVE: dict[str, dict[bool, dict[str, str]]] = {}
for _column, _dialect in enumerate(DIALECTS):
    _TO_NATIVE[_dialect], _FROM_NATIVE[_dialect] = {}, {}
    for _in_block, _rows in ((True, _BLOCK_MODULES), (False, _OUTER_MODULES)):
        _pairs = [(row[0] if row[_column] == SAME else row[_column], row[0]) for row in _rows]
        _TO_NATIVE[_dialect][_in_block] = {theirs: native for theirs, native in _pairs if theirs is not None}
        _FROM_NATIVE[_dialect][_in_block] = {native: theirs for theirs, native in _pairs if theirs is not None}

_IGNORED = re.compile(
    r"_extra_state"  # Transformer Engine residue
    r"|(^|\.)accum_(video_sample_counter|image_sample_counter|iteration|train_in_hours)$"  # training statistics
    # Constants of the rotary table, possibly rounded to bfloat16; recomputed.
    r"|(^|\.)(pos_embedder|pos_embedder_options\.n_cameras_\d+)\.(seq|dim_spatial_range|dim_temporal_range)$"
)


class Name(NamedTuple):
    """A key of a file taken apart: which weights it belongs to (`reg`, `ema`, or `logvar`), and its name there."""

    part: str
    name: str


def is_ignored(key: str) -> bool:
    """Return whether `key` is on the documented list of entries that no network needs."""
    return _IGNORED.search(unwrap_key(key).name) is not None


def unwrap_key(key: str) -> Name:
    """Take the prefix `net.` or `net_ema.` off a file's key, and undo the `-` for `.` of Predict1's unsharded EMA trackers.

    Keys without prefix count as `net.`. The log-variance head lies outside `net.`; its names stay `logvar.*`.
    """
    if "." not in key and "-" in key:
        key = key.replace("-", ".")
    for prefix, part in (("net_ema.", "ema"), ("net.", "reg")):
        if key.startswith(prefix):
            return Name(part, key.removeprefix(prefix))
    return Name("logvar" if key.startswith("logvar.") else "reg", key)


def to_native(key: str, dialect: str) -> str | None:
    """Return the native name of a network key (no prefix) of `dialect`, or None where it is no name of that dialect."""
    _check(dialect)
    return key if dialect == "predict2" else _rename(key, _TO_NATIVE[dialect], dialect, "predict2")


def from_native(key: str, dialect: str) -> str | None:
    """Return the name in `dialect` of a native network key (no prefix), or None where the dialect has none."""
    _check(dialect)
    return key if dialect == "predict2" else _rename(key, _FROM_NATIVE[dialect], "predict2", dialect)


def detect_dialect(keys: Iterable[str]) -> str | None:
    """Return the dialect that knows the most of `keys` (prefixes allowed), or None where none of them knows a block."""
    names = [unwrap_key(key).name for key in keys if not is_ignored(key)]
    counts = {}
    for dialect in DIALECTS:
        native = [_rename(name, _TO_NATIVE[dialect], dialect, "predict2") for name in names]
        if any(name is not None and name.startswith("blocks.") for name in native):
            counts[dialect] = sum(name is not None for name in native)
    return max(counts, key=lambda dialect: counts[dialect]) if counts else None


def translate(state: Mapping[str, T], source: str, target: str) -> dict[str, T]:
    """Return `state` (network keys without prefix; any values) with its keys of dialect `source` renamed to `target`.

    Raises CheckpointError listing every tensor that is no name of `source` or has none in `target`.
    """
    names = translated_names(state, source, target)
    return {names[key]: value for key, value in state.items()}


def translated_names(keys: Iterable[str], source: str, target: str) -> dict[str, str]:
    """Return {name in `source`: name in `target`} for network keys without prefix; raises like `translate`."""
    keys = list(keys)
    native = {key: to_native(key, source) for key in keys}
    if foreign := [key for key, name in native.items() if name is None]:
        found = detect_dialect(keys)
        hint = f"; the keys look like dialect {found!r}" if found not in (None, source) else ""
        raise CheckpointError(f"{_count(foreign)} not named as in dialect {source!r}{hint}:\n{_listing(foreign)}")
    names = {key: from_native(name, target) for key, name in native.items() if name is not None}
    if nameless := [native[key] or key for key, name in names.items() if name is None]:
        raise CheckpointError(
            f"dialect {target!r} has no name for {_count(nameless)} (native names below), and a tensor is never "
            f"dropped; save in dialect 'predict2', which names everything:\n{_listing(nameless)}"
        )
    return {key: name for key, name in names.items() if name is not None}


def _rename(key: str, table: Mapping[bool, Mapping[str, str]], source: str, target: str) -> str | None:
    """Rename the longest known module path at the start of `key`."""
    prefix, rest, in_block = "", key, False
    if match := re.match(re.escape(_BLOCK_PREFIX[source]) + r"(\d+)\.", key):
        prefix, rest, in_block = f"{_BLOCK_PREFIX[target]}{match[1]}.", key[match.end() :], True
    segments = rest.split(".")
    for length in range(len(segments), 0, -1):
        if (module := table[in_block].get(".".join(segments[:length]))) is not None:
            return prefix + ".".join([module, *segments[length:]])
    return None


def _check(dialect: str) -> None:
    if dialect not in DIALECTS:
        raise ConfigError(f"dialect {dialect!r} is unknown; choose one of {', '.join(DIALECTS)}")


def _count(names: list[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _listing(names: list[str]) -> str:
    return "\n".join(rows(names, 12))
