"""Every golden case that the package computes so far, compared at the case's own tolerance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.goldens.run_case import DEFAULT_MEDIA, Case, compute

CASES = Path(__file__).parent / "cases"
# Whole areas or kinds that later work brings; nothing inside a kind is ever left out.
NOT_YET: set[tuple[str, str | None]] = set()
NEEDS_MEDIA = {("data", "video_sample"), ("data", "bridge_sample"), ("data", "multiview_sample")}


def case_folders() -> list[Path]:
    folders = []
    for description in sorted(CASES.glob("*/*/case.json")):
        case = Case.read(description.parent)
        if not {(case.area, None), (case.area, case.kind)} & NOT_YET:
            folders.append(description.parent)
    return folders


@pytest.mark.parametrize("folder", case_folders(), ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_case(folder: Path) -> None:
    case = Case.read(folder)
    if (case.area, case.kind) in NEEDS_MEDIA and not DEFAULT_MEDIA.is_dir():
        pytest.skip(f"sample clips not found at {DEFAULT_MEDIA}")
    outputs = compute(case)
    tolerance = case.spec["tolerance"]
    per_output = tolerance.get("per_output", {})
    with safe_open(str(folder / "data.safetensors"), framework="pt") as handle:
        expected = {name[4:]: handle.get_tensor(name) for name in handle.keys() if name.startswith("out.")}  # noqa: SIM118
    assert set(expected) <= set(outputs), f"missing outputs: {sorted(set(expected) - set(outputs))}"
    for name, value in expected.items():
        limits = {**{key: tolerance[key] for key in ("rtol", "atol")}, **per_output.get(name, {})}
        got = outputs[name]
        if value.numel() == 1:
            got, value = got.reshape(()), value.reshape(())
        assert got.shape == value.shape, f"{name}: {tuple(got.shape)} instead of {tuple(value.shape)}"
        torch.testing.assert_close(
            got.to(torch.float64),
            value.to(torch.float64),
            rtol=limits["rtol"],
            atol=limits["atol"],
            msg=lambda text, name=name: f"{name}: {text}",
        )
