"""The state of a run, the only truth for resume: weights, EMA, optimizer, schedule, RNG, sample number.

Everything is plain tensors in safetensors and numbers in JSON; nothing is pickled. Tensors lie in files named
`NAME_RRRRR-of-WWWWW.safetensors`, one per rank that holds a shard. The metadata entry `parts` of a file says of which
tensors it holds a part: name -> [shape of the whole, offset of the part]; all others are whole. `index.json` names
every file with its size and SHA-256 and is written last. Any number of ranks can read what any other number wrote.
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
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.parallel.mesh import Mesh
from cosmos_predict.parallel.shards import Part, is_sharded, own, part_of, shard_like

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
    mesh: Mesh | None = None,
) -> None:
    """Write the run state of `iteration`; it counts once its index is there. Every rank of `mesh` must call this.

    weights, ema, optimizer: tensors by name, as they are (float32 stays float32); each rank writes its own shards.
    numbers: what the index holds beside the files: `recipe`, `config_hash`, `sample_number`, `global_batch_size`, ...
    scheduler: JSON numbers. Raises CheckpointError, on every rank, when a rank cannot write; the index is then absent.
    """
    mesh = mesh or Mesh()
    if mesh.is_main:  # what a killed run left here
        folder.remove_state(iteration)
    mesh.gather(None)
    rng = {"torch_cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["torch_cuda"] = torch.cuda.get_rng_state()
    parts = (
        (TRAINER, "weights", weights),
        (TRAINER, "ema", ema),
        (TRAINER, "rng", rng),
        (OPTIM, "optimizer", optimizer),
    )
    written: dict[str, dict[str, Any]] = {}
    problem = ""
    try:
        for part, name, tensors in parts:
            path = folder.part(part, iteration) / f"{name}_{mesh.shard_rank:05d}-of-{mesh.sizes.shard:05d}.safetensors"
            if mesh.holds_first_replica and _write_own(path, tensors or {}, mesh):
                written[str(path.relative_to(folder.state_root))] = describe(path)
        if mesh.is_main:
            path = folder.part(SCHEDULER, iteration) / "scheduler.json"
            atomic_write_text(path, json.dumps(dict(scheduler), indent=1))
            written[str(path.relative_to(folder.state_root))] = describe(path)
    except OSError as error:
        problem = f"{type(error).__name__}: {error}"
    outcomes = mesh.gather((problem, written))
    if problems := [f"rank {rank}: {text}" for rank, (text, _) in enumerate(outcomes) if text]:
        raise CheckpointError(
            f"iteration {iteration} could not be saved under {folder.state_root}; {'; '.join(problems)}. "
            f"The newest complete one is {folder.newest()}; the same command resumes it"
        )
    if mesh.is_main:
        files = {name: entry for _, its in outcomes for name, entry in its.items()}
        index = {"format": FORMAT, "iteration": iteration, **numbers, "files": files}
        atomic_write_text(folder.index(iteration), json.dumps(index, indent=1))
    mesh.gather(None)


def _write_own(path: Path, tensors: Mapping[str, Tensor], mesh: Mesh) -> bool:
    """Write what this rank holds of `tensors` to `path`, whole ones on the main rank alone; return whether it holds any."""
    held, parts = {}, {}
    for name, tensor in tensors.items():
        if (part := part_of(tensor)) is not None:
            held[name] = own(tensor)
            parts[name] = [list(tensor.shape), [side.start for side in part]]
            if not held[name].numel():
                del held[name], parts[name]
        elif mesh.is_main:
            held[name] = own(tensor)
    if held:
        write_tensors(path, entries_of(held), metadata={"parts": json.dumps(parts)} if parts else None)
    return bool(held)


class SavedState:
    """A complete iteration, open for reading: `index`, `scheduler` numbers, and tensors by kind (`weights`, `ema`, ...).

    Every file is checked against its hash when this is made, each by one rank of `mesh`. Raises CorruptFileError naming
    the file that does not match, CheckpointError for another format. Usable as a context manager.
    """

    def __init__(self, folder: RunFolder, iteration: int, mesh: Mesh | None = None) -> None:
        mesh = mesh or Mesh()
        self.index = folder.read_index(iteration)
        self.scheduler: dict[str, Any] = {}
        if self.index.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder.index(iteration)} has format {self.index.get('format')}, this version reads {FORMAT}"
            )
        mine = list(self.index["files"].items())[mesh.ranks.rank :: mesh.sizes.world]
        bad = [str(folder.state_root / name) for name, entry in mine if describe(folder.state_root / name) != entry]
        if bad := [name for its in mesh.gather(bad) for name in its]:
            raise CorruptFileError(
                f"{bad[0]} is not the file that {folder.index(iteration)} describes; "
                "remove that iteration to resume from an older one"
            )
        # kind -> name -> the files that hold a part of it, with its offset there
        self._pieces: dict[str, dict[str, list[tuple[TensorFile, list[int]]]]] = {}
        self._shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        self._files: list[TensorFile] = []
        for name in self.index["files"]:
            path = folder.state_root / name
            if path.suffix == ".json":
                self.scheduler = json.loads(path.read_text())
            else:
                self._open(path)

    def _open(self, path: Path) -> None:
        file, kind = TensorFile(path), path.name.partition("_")[0]
        self._files.append(file)
        parts = json.loads(file.metadata.get("parts", "{}"))
        for name in file:
            shape, offset = parts.get(name) or (file.shape(name), [0] * len(file.shape(name)))
            self._pieces.setdefault(kind, {}).setdefault(name, []).append((file, offset))
            self._shapes[kind, name] = tuple(shape)

    def __enter__(self) -> SavedState:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def names(self, kind: str) -> list[str]:
        return list(self._pieces.get(kind, ()))

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        return self._shapes[kind, name]

    def read(self, kind: str, name: str, part: Part | None = None) -> Tensor:
        """Return a tensor, or the slice `part` of it, on the CPU, reading no more than that from the files."""
        shape, pieces = self._shapes[kind, name], self._pieces[kind][name]
        if len(pieces) == 1 and pieces[0][0].shape(name) == shape:
            return pieces[0][0].get(name, part)
        wanted = [side.indices(size)[:2] for side, size in zip(part or [slice(None)] * len(shape), shape, strict=True)]
        out = torch.empty([max(end - start, 0) for start, end in wanted], dtype=pieces[0][0].dtype(name))
        filled = 0
        for file, offset in pieces:
            there, here = [], []
            for (start, end), low, size in zip(wanted, offset, file.shape(name), strict=True):
                first, last = max(start, low), min(end, low + size)
                there.append(slice(first - low, max(last, first) - low))
                here.append(slice(first - start, max(last, first) - start))
            if all(side.stop > side.start for side in there):
                out[tuple(here)] = file.get(name, tuple(there))
                filled += out[tuple(here)].numel()
        if filled != out.numel():
            raise CheckpointError(f"{pieces[0][0].path.parent}: parts of {kind} {name!r} are missing")
        return out

    @torch.no_grad()
    def copy_into(self, kind: str, targets: Mapping[str, Tensor], where: object) -> None:
        """Fill `targets`, each rank its own part of sharded ones. Raises CheckpointError for other names or shapes."""
        if difference := sorted(targets.keys() ^ set(self.names(kind))):
            raise CheckpointError(
                f"{where} holds another network: {len(difference)} names differ, such as {difference[:3]}"
            )
        for name, target in targets.items():
            if self.shape(kind, name) != tuple(target.shape):
                raise CheckpointError(
                    f"{where}: {name} is {self.shape(kind, name)}, this run's is {tuple(target.shape)}"
                )
            own(target).copy_(self.read(kind, name, part_of(target)))


def restore_rng(state: SavedState) -> None:
    """Put the global torch generators back where they were."""
    torch.set_rng_state(state.read("rng", "torch_cpu"))
    if "torch_cuda" in state.names("rng") and torch.cuda.is_available():
        torch.cuda.set_rng_state(state.read("rng", "torch_cuda"))


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


def load_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, saved: SavedState) -> None:
    """Give back what `optimizer_state` returned, tensors of a parameter's shape sharded like it.

    Raises CheckpointError for other parameters or groups.
    """
    names, groups = _names_in_order(optimizer, model), saved.index["optimizer_groups"]
    parameters = dict(model.named_parameters())
    current = optimizer.state_dict()
    if len(groups) != len(current["param_groups"]):
        raise CheckpointError(
            f"the saved optimizer has {len(groups)} parameter groups, this one {len(current['param_groups'])}"
        )
    numbers = {name: number for number, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    masters: dict[str, Tensor] = {}
    for key in saved.names("optimizer"):
        kind, _, name = key.partition(".")
        if name not in numbers:
            raise CheckpointError(f"the saved optimizer state has {name!r}, which this run does not train")
        value = _read_like(saved, key, parameters[name])
        if kind == "master":
            masters[name] = value
        else:
            state.setdefault(numbers[name], {})[kind] = value
    # Options such as the decay are the present configuration's; what the optimizer keeps of its own lies in its state.
    options = current["param_groups"]
    extra = {"masters": [masters[name] for name in names]} if masters else {}
    optimizer.load_state_dict({"state": state, "param_groups": options, **extra})


def _read_like(saved: SavedState, key: str, parameter: Tensor) -> Tensor:
    if is_sharded(parameter) and saved.shape("optimizer", key) == tuple(parameter.shape):
        return shard_like(saved.read("optimizer", key, part_of(parameter)), parameter)
    return saved.read("optimizer", key)


def _names_in_order(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Return parameter names in the order of the optimizer's own numbering."""
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = getattr(optimizer, "parameters", None) or [
        p for group in optimizer.param_groups for p in group["params"]
    ]
    return [by_id[id(parameter)] for parameter in parameters]
