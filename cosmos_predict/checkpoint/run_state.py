"""The state of a run, the only truth for resume: weights, EMA, optimizer, schedule, RNG, sample number.

Everything is plain tensors in safetensors and numbers in JSON; nothing is pickled. Tensors lie in files named
`NAME_RRRRR-of-WWWWW.safetensors`, one per rank that holds a shard. `index.json` names every file with its size and
SHA-256 and is written last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.checkpoint.stream import entries_of, write_tensors
from cosmos_predict.errors import CheckpointError, CorruptFileError
from cosmos_predict.io.atomic import atomic_write_text
from cosmos_predict.io.tensors import load_tensors

FORMAT = 1
TRAINER, OPTIM, SCHEDULER = "trainer", "optim", "scheduler"


def save_run_state(
    folder: RunFolder,
    iteration: int,
    *,
    weights: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None,
    optimizer: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
    scheduler: Mapping[str, Any],
) -> None:
    """Write the run state of `iteration`; it counts once its index is there.

    weights, ema, optimizer: tensors by name, as they are (float32 stays float32). numbers: what the index holds beside
    the files: `recipe`, `config_hash`, `sample_number`, `global_batch_size`, ... scheduler: JSON numbers.
    """
    shard = "00000-of-00001"
    rng = {"torch_cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["torch_cuda"] = torch.cuda.get_rng_state()
    written: dict[str, dict[str, Any]] = {}
    for part, name, tensors in (
        (TRAINER, "weights", weights),
        (TRAINER, "ema", ema),
        (TRAINER, "rng", rng),
        (OPTIM, "optimizer", optimizer),
    ):
        if tensors:
            path = folder.part(part, iteration) / f"{name}_{shard}.safetensors"
            write_tensors(path, entries_of({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))
            written[str(path.relative_to(folder.state_root))] = describe(path)
    path = folder.part(SCHEDULER, iteration) / "scheduler.json"
    atomic_write_text(path, json.dumps(dict(scheduler), indent=1))
    written[str(path.relative_to(folder.state_root))] = describe(path)
    index = {"format": FORMAT, "iteration": iteration, **numbers, "files": written}
    atomic_write_text(folder.index(iteration), json.dumps(index, indent=1))


def load_run_state(
    folder: RunFolder, iteration: int
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return (index, tensors by file name such as `weights`, scheduler numbers) of a complete iteration.

    Every file is checked against its hash. Raises CorruptFileError naming the file that does not match.
    """
    index = folder.read_index(iteration)
    if index.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder.index(iteration)} has format {index.get('format')}, this version reads {FORMAT}"
        )
    tensors: dict[str, dict[str, Tensor]] = {}
    scheduler: dict[str, Any] = {}
    for name, expected in index["files"].items():
        path = folder.state_root / name
        if describe(path) != expected:
            raise CorruptFileError(
                f"{path} is not the file that {folder.index(iteration)} describes; remove that iteration to resume from an older one"
            )
        if path.suffix == ".json":
            scheduler = json.loads(path.read_text())
        else:
            tensors[path.name.partition("_")[0]] = load_tensors(path)
    return index, tensors, scheduler


def restore_rng(tensors: Mapping[str, Tensor]) -> None:
    """Put the global torch generators back where they were."""
    torch.set_rng_state(tensors["torch_cpu"])
    if "torch_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["torch_cuda"])


def describe(path: Path) -> dict[str, Any]:
    """Return `{"size", "sha256"}` of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return (tensors named `<state>.<parameter name>`, group options without parameters) of an optimizer over `model`."""
    state = optimizer.state_dict()
    names = _names_in_order(optimizer, model)
    tensors = {
        f"{key}.{names[number]}": torch.as_tensor(value)
        for number, values in state["state"].items()
        for key, value in values.items()
    }
    tensors |= {f"master.{name}": master for name, master in zip(names, state.get("masters", ()), strict=False)}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    return tensors, groups


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Give back what `optimizer_state` returned. Raises CheckpointError for other parameters or groups."""
    names = _names_in_order(optimizer, model)
    current = optimizer.state_dict()
    if len(groups) != len(current["param_groups"]):
        raise CheckpointError(
            f"the saved optimizer has {len(groups)} parameter groups, this one {len(current['param_groups'])}"
        )
    numbers = {name: number for number, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    masters: dict[str, Tensor] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        if name not in numbers:
            raise CheckpointError(f"the saved optimizer state has {name!r}, which this run does not train")
        if kind == "master":
            masters[name] = value
        else:
            state.setdefault(numbers[name], {})[kind] = value
    saved = [{**group, "params": now["params"]} for group, now in zip(groups, current["param_groups"], strict=True)]
    extra = {"masters": [masters[name] for name in names]} if masters else {}
    optimizer.load_state_dict({"state": state, "param_groups": saved, **extra})


def _names_in_order(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Return parameter names in the order of the optimizer's own numbering."""
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = getattr(optimizer, "parameters", None) or [
        p for group in optimizer.param_groups for p in group["params"]
    ]
    return [by_id[id(parameter)] for parameter in parameters]
