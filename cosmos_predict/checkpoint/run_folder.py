"""The folder of a run: `checkpoints/PROJECT/GROUP/NAME`, its lock, its iterations, and which of them are complete.

config.yaml                                 what the run is
checkpoints/trainer/iter_000000500/         run state: weights, EMA, RNG; index.json, written last, makes it complete
checkpoints/optim/iter_000000500/           optimizer state
checkpoints/scheduler/iter_000000500/       learning-rate schedule
checkpoints/model/iter_000000500.pt         published form (layout `predict2`), and `latest_checkpoint.txt`
checkpoints/model/iter_000000500_lora/      adapters of a LoRA run: folders `reg` and `ema` (either layout)
checkpoints/iter_000000500_reg_model.pt     published form (layout `predict1`; its state lies under `state/`)
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import IO, Any

from cosmos_predict.checkpoint.nemo import find_checkpoint
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.lock import hold

STATE_PARTS = ("optim", "scheduler", "trainer")


class RunFolder:
    """Paths and life of one run's folder. `layout` is `predict2` or `predict1` (where published files lie)."""

    def __init__(self, root: str | Path, layout: str = "predict2") -> None:
        self.root = Path(root)
        self.layout = layout
        self.checkpoints = self.root / "checkpoints"
        self._lock: IO[str] | None = None

    @property
    def state_root(self) -> Path:
        return self.checkpoints / "state" if self.layout == "predict1" else self.checkpoints

    def part(self, part: str, iteration: int) -> Path:
        """Return the folder of `part` (trainer, optim, scheduler) at `iteration`."""
        return self.state_root / part / f"iter_{iteration:09d}"

    def index(self, iteration: int) -> Path:
        return self.part("trainer", iteration) / "index.json"

    def exports(self, iteration: int) -> dict[str, Path]:
        """Return the published files of `iteration`: `{"both": path}`, or `{"reg": path, "ema": path}` (predict1)."""
        name = f"iter_{iteration:09d}"
        if self.layout == "predict1":
            return {part: self.checkpoints / f"{name}_{part}_model.pt" for part in ("reg", "ema")}
        return {"both": self.checkpoints / "model" / f"{name}.pt"}

    def adapters(self, iteration: int) -> dict[str, Path]:
        """Return the published folders of a LoRA run's `iteration`: `{"reg": path, "ema": path}`."""
        folder = self.checkpoints / "model" / f"iter_{iteration:09d}_lora"
        return {"reg": folder / "reg", "ema": folder / "ema"}

    def acquire(self) -> None:
        """Hold the folder for this process, and drop the half-written files of a killed one; the lock dies with its process.

        Raises ConfigError when another run holds it, or when a run of the published trainer lies here.
        """
        if _is_published_run(self.checkpoints):
            raise ConfigError(
                f"{self.root} holds a run of the published trainer, which cannot be continued here: start from it with "
                f"checkpoint.load_path={self.root} and another job.name"
            )
        held = f"{self.root} is held by a run that is still alive; wait for it, or choose another job.name"
        self._lock = hold(self.root / ".lock", held)
        for left in (*self.root.glob(".*.tmp"), *self.checkpoints.rglob(".*.tmp")):
            shutil.rmtree(left, ignore_errors=True)

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def iterations(self) -> list[int]:
        """Return the complete iterations, ascending."""
        return sorted(filter(self.is_complete, self._begun("trainer")))

    def _begun(self, part: str) -> list[int]:
        """Return the iterations that `part` has a folder of, complete or not."""
        names = (folder.name for folder in (self.state_root / part).glob("iter_*"))
        return [int(match[1]) for name in names if (match := re.fullmatch(r"iter_(\d{9})", name))]

    def is_complete(self, iteration: int) -> bool:
        """Return whether the index is there and every file it names has its size (hashes are checked on load)."""
        try:
            files = self.read_index(iteration)["files"]
        except (OSError, ValueError, KeyError):
            return False
        return all(
            (self.state_root / name).is_file() and (self.state_root / name).stat().st_size == entry["size"]
            for name, entry in files.items()
        )

    def read_index(self, iteration: int) -> dict[str, Any]:
        return json.loads(self.index(iteration).read_text())

    def newest(self) -> int | None:
        return max(self.iterations(), default=None)

    def check_recipe(self, recipe: str, iteration: int) -> None:
        """Raise CheckpointError when the folder was written by another recipe."""
        written = self.read_index(iteration).get("recipe")
        if written != recipe:
            raise CheckpointError(
                f"{self.root} holds a run of {written!r}, this run is {recipe!r}: choose another job.name, or remove the folder"
            )

    def remove(self, iteration: int) -> None:
        """Remove an iteration; its index goes after the published files: what a killed removal leaves is removed later."""
        for path in self.exports(iteration).values():
            path.unlink(missing_ok=True)
        shutil.rmtree(self.adapters(iteration)["reg"].parent, ignore_errors=True)
        self.remove_state(iteration)

    def remove_state(self, iteration: int) -> None:
        """Remove the state of an iteration, its index first, and leave its published files."""
        self.index(iteration).unlink(missing_ok=True)
        for part in STATE_PARTS:
            shutil.rmtree(self.part(part, iteration), ignore_errors=True)

    def keep_last(self, count: int | None) -> None:
        """Keep the newest `count` complete iterations (None keeps all) and drop what killed runs left unfinished."""
        iterations = self.iterations()
        for part in STATE_PARTS:
            for begun in self._begun(part):
                if begun not in iterations and iterations and begun < iterations[-1]:
                    shutil.rmtree(self.part(part, begun), ignore_errors=True)
        for iteration in iterations[: -count if count else 0]:
            self.remove(iteration)


def find_run_folder(path: str | Path) -> RunFolder | None:
    """Return the run folder that `path` is, or lies in (a file under its `checkpoints/`); None for any other path, and for
    a run of the published trainer.
    """
    path = Path(path).resolve()
    for folder in (path, *path.parents[:4]):
        checkpoints = folder / "checkpoints"
        if (folder / "config.yaml").is_file() and checkpoints.is_dir() and not _is_published_run(checkpoints):
            return RunFolder(folder, "predict1" if (checkpoints / "state").is_dir() else "predict2")
    return None


def state_at(path: str | Path) -> tuple[RunFolder, int]:
    """Return the run folder and the complete iteration that `path` means: the one in the name of a file, or the newest.

    Raises CheckpointError when `path` lies in no run folder, or that iteration is not complete.
    """
    folder = find_run_folder(path) if path else None
    if folder is None:
        raise CheckpointError(
            f"checkpoint.load_path={str(path)!r} lies in no run folder of this trainer, and only such a folder holds the state "
            "of optimizer and schedule; set load_training_state and only_load_scheduler_state to false to start from a file"
        )
    named = re.search(r"iter_(\d{9})", Path(path).name)
    iteration = int(named[1]) if named else folder.newest()
    if iteration is None or not folder.is_complete(iteration):
        there = ", ".join(map(str, folder.iterations())) or "none"
        raise CheckpointError(f"{path} has no complete state of iteration {iteration}; complete ones: {there}")
    return folder, iteration


def published_file(path: str | Path, ema: bool = False) -> Path:
    """Return the file that `path` means: itself, or the newest published file (of `ema` weights) of a run folder.

    A run folder of the published trainer (or its `checkpoints`) counts: the file that its `latest_checkpoint.txt` names or,
    where that was not written whole, the newest. Raises FileNotFoundError, or CheckpointError for a run folder without a
    complete iteration or published file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: give a .pt or .safetensors file, or a run folder")
    if not path.is_dir():
        return path
    if (folder := find_run_folder(path)) is None:
        if nemo := find_checkpoint(path):
            raise CheckpointError(
                f"{path} is a distributed checkpoint of NeMo: import it first, and give the file that this writes:\n"
                f"  python scripts/import_nemo_checkpoint.py {nemo} FILE.pt"
            )
        checkpoints = next((p for p in (path / "checkpoints", path) if (p / "latest_checkpoint.txt").is_file()), None)
        return path if checkpoints is None else _latest_file(checkpoints, "ema" if ema else "reg")
    iteration = folder.newest()
    if iteration is None:
        files = sorted(file for file in folder.checkpoints.iterdir() if file.suffix in (".pt", ".safetensors"))
        give = f"give {files[0]}" if files else "train it first, or give a file"
        raise CheckpointError(f"{folder.root} holds no complete iteration yet; {give}")
    if lora := folder.read_index(iteration).get("lora"):
        raise CheckpointError(
            f"{folder.root} holds LoRA adapters alone: give their base ({lora['base'] or 'random, made by the run'}) in its "
            "place and this folder as --lora_path, or merge the two (scripts/convert_checkpoint.py --lora ... --merge)"
        )
    exports = [folder.exports(complete) for complete in reversed(folder.iterations())]
    files = [of.get("both") or of["ema" if ema else "reg"] for of in exports]
    if file := next(filter(Path.is_file, files), None):
        return file
    what = f"iteration {iteration} has no published file yet ({files[0].name})"
    raise CheckpointError(f"{folder.root}: {what}: start that run again, which makes it")


def _is_published_run(checkpoints: Path) -> bool:
    """Whether the published trainer wrote here: it keeps its optimizer in files where this one has folders."""
    return any(next(checkpoints.glob(name), None) for name in ("optim/iter_*.pt", "iter_*_optim.pt"))


def _latest_file(checkpoints: Path, part: str) -> Path:
    """Return the weights of the newest iteration in a `checkpoints` folder of the published trainer, by either layout."""
    latest = Path((checkpoints / "latest_checkpoint.txt").read_text().strip()).stem
    found = {}
    for pattern in ("model/iter_*.pt", f"iter_*_{part}_model.pt", "iter_*_model.pt"):
        for file in checkpoints.glob(pattern):
            if match := re.match(r"iter_\d{9}", file.name):
                found.setdefault(match[0], file)
    if not found:
        raise CheckpointError(
            f"{checkpoints} names {latest} as its latest checkpoint, but holds no iter_*.pt of weights"
        )
    return found.get(latest) or found[max(found)]
