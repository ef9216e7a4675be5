"""The state of a run, the only truth for resume: weights, EMA, optimizer, schedule, RNG, sample number.

Everything is plain tensors in safetensors and numbers in JSON; nothing is pickled. Tensors lie in files named
`NAME_RRRRR-of-WWWWW.safetensors`, one per rank that holds a shard. The metadata entry `parts` of a file says of which
tensors it holds a part: name -> [shape of the whole, offset of the part]; all others are whole. `index.json` names
every file with its size and SHA-256 and is written last. Any number of ranks can read what any other number wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.checkpoint.stream import Entry, entries_of, write_tensors
from cosmos_predict.errors import CheckpointError, CorruptFileError
from cosmos_predict.io.atomic import atomic_write_text
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.parallel.mesh import Mesh
from cosmos_predict.parallel.shards import Part, holds_rows, lies_over, own, part_of, shard_like

FORMAT = 1
TRAINER, OPTIM, SCHEDULER = "trainer", "optim", "scheduler"


class StateWriter:
    """One iteration on its way to disk: made by every rank of `mesh`, written by each, finished by all together.

    weights, ema, optimizer: tensors by name, as they are (float32 stays float32); each rank writes its own shards.
    numbers: what the index holds beside the files: `recipe`, `config_hash`, `sample_number`, `global_batch_size`, ...
    scheduler: JSON numbers. copy: write from a copy in host memory (this rank's shards), so that training may go on.
    """

    def __init__(
        self,
        folder: RunFolder,
        iteration: int,
        *,
        weights: Mapping[str, Tensor],
        ema: Mapping[str, Tensor] | None,
        optimizer: Mapping[str, Tensor],
        numbers: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        mesh: Mesh | None = None,
        copy: bool = False,
    ) -> None:
        self.folder, self.iteration, self.mesh = folder, iteration, mesh or Mesh()
        self._index = {"format": FORMAT, "iteration": iteration, **numbers}
        self._written: dict[str, dict[str, Any]] = {}
        self._problem = ""
        if self.mesh.is_main:  # what a killed run left here
            folder.remove_state(iteration)
        self.mesh.gather(None)
        rng = {"torch_cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["torch_cuda"] = torch.cuda.get_rng_state()
        kinds = {"weights": weights, "ema": ema or {}, "rng": rng, "optimizer": optimizer}
        self._files: dict[Path, tuple[dict[str, Tensor], dict[str, Any]]] = {}
        for name, tensors in kinds.items() if self.mesh.holds_first_replica else ():
            place = folder.part(OPTIM if name == "optimizer" else TRAINER, iteration)
            file = f"{name}_{self.mesh.part_rank:05d}-of-{self.mesh.sizes.parts:05d}.safetensors"
            if (held := self._held(tensors, copy))[0]:
                self._files[place / file] = held
        self._scheduler = json.dumps(dict(scheduler), indent=1)

    def _held(self, tensors: Mapping[str, Tensor], copy: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what this rank writes of `tensors`, and where the parts lie: whole ones on the main rank alone, what a tensor
        group holds alike on its first.
        """
        held, parts = {}, {}
        for name, tensor in tensors.items():
            part, mine = part_of(tensor), own(tensor)
            alone = self.mesh.leads_tensor_group or lies_over(tensor, "tensor")
            if mine.numel() and alone if part is not None else self.mesh.is_main:
                held[name] = mine.to("cpu", copy=True) if copy else mine
                if part is not None:
                    parts[name] = [list(tensor.shape), [side.start for side in part]]
        return held, parts

    def write(self) -> None:
        """Write this rank's files, in any thread: nothing here talks to another rank. `finish` says what went wrong."""
        try:
            for path, (tensors, parts) in self._files.items():
                metadata = {"parts": json.dumps(parts)} if parts else None
                write_tensors(path, entries_of(tensors), metadata=metadata)
                self._note(path)
            if self.mesh.is_main:
                path = self.folder.part(SCHEDULER, self.iteration) / "scheduler.json"
                atomic_write_text(path, self._scheduler)
                self._note(path)
        except Exception as error:
            self._problem = f"{type(error).__name__}: {error}"
        self._files.clear()  # and the copies with it

    def _note(self, path: Path) -> None:
        self._written[str(path.relative_to(self.folder.state_root))] = describe(path)

    def finish(self) -> None:
        """Write the index, which makes the iteration count. Every rank calls this after its `write`.

        Raises OSError, on every rank, when a rank could not write; the index is then absent.
        """
        outcomes = self.mesh.gather((self._problem, self._written))
        problems = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(outcomes) if text]
        if self.mesh.is_main and not problems:
            self._index["files"] = {name: entry for _, its in outcomes for name, entry in its.items()}
            try:
                atomic_write_text(self.folder.index(self.iteration), json.dumps(self._index, indent=1))
            except OSError as error:
                problems = [f"{type(error).__name__}: {error}"]
        newest = None
        if self.mesh.is_main and problems:
            self.folder.remove_state(self.iteration)  # what there is of it only takes room
            newest = self.folder.newest()
        problems, newest = self.mesh.from_main((problems, newest))
        if problems:
            resumes = f"Iteration {newest} is complete: the same command resumes it"
            raise OSError(
                f"iteration {self.iteration} could not be saved under {self.folder.state_root}; {'; '.join(problems)}. "
                f"{resumes if newest else 'No earlier one is there'}"
            )


def save_run_state(folder: RunFolder, iteration: int, **state: Any) -> None:
    """Write the run state of `iteration` at once; arguments and errors as for `StateWriter`."""
    writer = StateWriter(folder, iteration, **state)
    writer.write()
    writer.finish()


class SavedState:
    """A complete iteration, open for reading: `index`, `scheduler` numbers, and tensors by kind (`weights`, `ema`, ...).

    Every file is checked against its hash when this is made, each by one rank of `mesh`, unless `check` is False. Raises
    CorruptFileError naming the file that does not match, CheckpointError for another format. Usable as a context manager.
    """

    def __init__(self, folder: RunFolder, iteration: int, mesh: Mesh | None = None, check: bool = True) -> None:
        mesh = mesh or Mesh()
        self.index = folder.read_index(iteration)
        self.scheduler: dict[str, Any] = {}
        if self.index.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder.index(iteration)} has format {self.index.get('format')}, this version reads {FORMAT}"
            )
        mine = list(self.index["files"].items())[mesh.ranks.rank :: mesh.sizes.world] if check else []
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

    def entries(self, kind: str) -> dict[str, Entry]:
        """Return the tensors of a kind by name, each read when it is asked for."""
        return {
            name: Entry(name, self.shape(kind, name), pieces[0][0].dtype(name), lambda n=name: self.read(kind, n))
            for name, pieces in self._pieces.get(kind, {}).items()
        }

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
    def copy_into(self, kind: str, targets: Mapping[str, Tensor], where: object, strict: bool = True) -> set[str]:
        """Fill `targets`, each rank its own part of sharded ones; return the names, of either side, that did not fit.

        Raises CheckpointError for other names or shapes if `strict`.
        """
        unknown = targets.keys() ^ set(self.names(kind))
        if strict and unknown:
            raise CheckpointError(
                f"{where} holds another network: {len(unknown)} names differ, such as {sorted(unknown)[:3]}; "
                "checkpoint.strict_resume=false takes what fits"
            )
        for name, target in targets.items():
            if name in unknown:
                continue
            if self.shape(kind, name) == tuple(target.shape):
                own(target).copy_(self.read(kind, name, part_of(target)))
            elif strict:
                raise CheckpointError(
                    f"{where}: {name} is {self.shape(kind, name)}, this run's is {tuple(target.shape)}; "
                    "checkpoint.strict_resume=false takes what fits"
                )
            else:
                unknown.add(name)
        return unknown


def restore_rng(state: SavedState) -> None:
    """Put the global torch generators back where they were."""
    torch.set_rng_state(state.read("rng", "torch_cpu"))
    if "torch_cuda" in state.names("rng") and torch.cuda.is_available():
        torch.cuda.set_rng_state(state.read("rng", "torch_cuda"))


def describe(path: Path) -> dict[str, Any]:
    """Return `{"size", "sha256"}` of a file."""
    with path.open("rb") as stream:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


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
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    saved: SavedState,
    skip: Container[str] = (),
    masters: bool = True,
) -> None:
    """Give back what `optimizer_state` returned, tensors of a parameter's shape sharded like it.

    skip: names of parameters that start anew. masters: take the saved float32 masters; else, and where none are saved, they
    are made from the present weights. Raises CheckpointError for other parameters or groups.
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
    has_masters, exact = "masters" in current, dict[str, Tensor]()
    for key in saved.names("optimizer"):
        kind, _, name = key.partition(".")
        if name in skip or (kind == "master" and not (masters and has_masters)):
            continue
        if name not in numbers:
            raise CheckpointError(f"the saved optimizer state has {name!r}, which this run does not train")
        value = _read_like(saved, key, parameters[name])
        if kind == "master":
            exact[name] = value
        else:
            state.setdefault(numbers[name], {})[kind] = value
    foreign = {kind for kinds in state.values() for kind in kinds} - {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    if foreign and isinstance(optimizer, torch.optim.AdamW):
        raise CheckpointError(
            f"the saved optimizer state has {', '.join(sorted(foreign))}, which {type(optimizer).__name__} cannot read: keep "
            "that optimizer, or begin the moments anew: checkpoint.keys_not_to_resume=[optim]"
        )
    # Options such as the decay are the present configuration's; what the optimizer keeps of its own lies in its state.
    extra = {}
    if has_masters:
        extra["masters"] = [exact[n] if n in exact else parameters[n].detach().float() for n in names]
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"], **extra})


def _read_like(saved: SavedState, key: str, parameter: Tensor) -> Tensor:
    """Return an optimizer's tensor, of one that is sharded like `parameter` no more than this rank's part or its rows."""
    part, shape = part_of(parameter), saved.shape("optimizer", key)
    if part is None or shape[:1] != parameter.shape[:1]:
        return saved.read("optimizer", key)
    if shape == parameter.shape:
        return shard_like(saved.read("optimizer", key, part), parameter)
    rows = part[0] if holds_rows(parameter) else slice(None)  # of a value for each block of a row
    return saved.read("optimizer", key, (rows, *[slice(None)] * (len(shape) - 1)))


def _names_in_order(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Return parameter names in the order of the optimizer's own numbering."""
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = getattr(optimizer, "parameters", None) or [
        p for group in optimizer.param_groups for p in group["params"]
    ]
    return [by_id[id(parameter)] for parameter in parameters]
