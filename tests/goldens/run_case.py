"""Compute golden cases with the project's own code.

    python -m tests.goldens.run_case --out OUT_DIR [--media MEDIA_DIR] CASE_DIR [CASE_DIR ...]

A case folder holds `case.json` (what to compute) and `data.safetensors` (`in.*` inputs, `out.*` expected outputs).
Only the inputs are read. Outputs go to `OUT_DIR/<area>/<case>.safetensors` under their `out.` names, one line per case
is printed, and the exit status is 1 if any case could not be computed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.goldens import fill

Adapter = Callable[["Case"], Mapping[str, Any]]
ADAPTERS: dict[tuple[str, str], Adapter] = {}
DEFAULT_MEDIA = Path(__file__).resolve().parents[3] / "shared" / "media"


def adapter(area: str, kind: str) -> Callable[[Adapter], Adapter]:
    """Register the decorated function as the one that computes cases of (`area`, `kind`)."""

    def register(function: Adapter) -> Adapter:
        ADAPTERS[area, kind] = function
        return function

    return register


@dataclass
class Case:
    """One golden case: its description, its input tensors (names without `in.`), and where sample clips are."""

    folder: Path
    spec: dict[str, Any]
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    media: Path = DEFAULT_MEDIA

    @classmethod
    def read(cls, folder: Path, media: Path = DEFAULT_MEDIA) -> Case:
        spec = json.loads((folder / "case.json").read_text())
        inputs = {}
        data = folder / "data.safetensors"
        if data.exists():
            with safe_open(str(data), framework="pt") as handle:
                inputs = {name[3:]: handle.get_tensor(name) for name in handle.keys() if name.startswith("in.")}  # noqa: SIM118
        return cls(folder, spec, inputs, media)

    @property
    def area(self) -> str:
        return self.spec["area"]

    @property
    def name(self) -> str:
        return self.spec["case"]

    @property
    def kind(self) -> str:
        return self.spec["kind"]

    @property
    def config(self) -> dict[str, Any]:
        return self.spec.get("config", {})

    @property
    def call(self) -> dict[str, Any]:
        return self.spec.get("call", {})

    @property
    def seed(self) -> int:
        return int(self.spec.get("seed", 0))

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the case's filled state dict under the published key names."""
        variances = self.spec.get("keys_running_var", {})
        state = {}
        for key, shape in {**self.spec.get("keys", {}), **variances}.items():
            values = fill.fill_array(key, shape, self.seed)
            state[key] = torch.from_numpy(1 + np.abs(values) if key in variances else values)
        return state

    def filled_input(self, name: str, shape: list[int]) -> torch.Tensor:
        """Return the standard-normal input `name` of cases that say `input: filled`."""
        return torch.from_numpy(fill.input_array(name, shape, self.seed))


def load_adapters() -> None:
    """Import every adapter module, so that `ADAPTERS` is complete."""
    from tests.goldens import adapters

    for module in pkgutil.iter_modules(adapters.__path__):
        importlib.import_module(f"{adapters.__name__}.{module.name}")


def compute(case: Case) -> dict[str, torch.Tensor]:
    """Return the case's outputs, names without `out.`; raises KeyError for a kind without adapter."""
    load_adapters()
    if (case.area, case.kind) not in ADAPTERS:
        raise KeyError(f"no adapter for area {case.area!r}, kind {case.kind!r}")
    outputs = ADAPTERS[case.area, case.kind](case)
    return {name: torch.as_tensor(value).detach().cpu().contiguous() for name, value in outputs.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.goldens.run_case", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for <area>/<case>.safetensors")
    parser.add_argument("--media", type=Path, default=DEFAULT_MEDIA, help="folder of the sample clips")
    parser.add_argument("cases", type=Path, nargs="+", metavar="CASE_DIR")
    arguments = parser.parse_args(argv)
    # The module may run as __main__; adapters register with the imported one.
    runner = importlib.import_module("tests.goldens.run_case")
    failed = 0
    for folder in arguments.cases:
        try:
            case = runner.Case.read(folder, arguments.media)
            outputs = runner.compute(case)
            target = arguments.out / case.area / f"{case.name}.safetensors"
            target.parent.mkdir(parents=True, exist_ok=True)
            save_file({f"out.{name}": value.clone() for name, value in outputs.items()}, str(target))
            print(f"ok    {case.area}/{case.name}: {len(outputs)} outputs")
        except Exception as error:  # one broken case must not hide the others
            failed += 1
            print(f"FAIL  {folder}: {type(error).__name__}: {error}")
            traceback.print_exc(file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
