"""Near duplicates are found block by block, as one after the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cosmos_predict.cli.curate import _tell_pairs
from cosmos_predict.curate import dedup
from cosmos_predict.curate.storage import Store
from cosmos_predict.errors import ConfigError


def one_by_one(features: list[tuple[str, np.ndarray]], threshold: float) -> dict[str, tuple[str, float]]:
    """What `repeats` says, written down clip after clip."""
    kept, found = list[tuple[str, np.ndarray]](), dict[str, tuple[str, float]]()
    for name, rows in features:
        alike = [min(float(a @ b) for a, b in zip(rows, other, strict=True)) for _, other in kept]
        if alike and max(alike) > threshold:
            found[name] = (kept[int(np.argmax(alike))][0], max(alike))
        else:
            kept.append((name, rows))
    return found


@pytest.mark.parametrize("block", [1, 7, 256])
def test_blocks_find_what_single_comparisons_find(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of repeats too: one that repeats a rejected clip alone is kept."""
    monkeypatch.setattr(dedup, "BLOCK", block)
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(90, 3, 40))
    for index in range(1, 90):
        if index % 3:
            noise = generator.choice([0.0, 0.1, 0.25, 0.3, 0.6])
            rows[index] = rows[generator.integers(index)] + noise * rows[index]
    rows = (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)
    features = [(f"clip_{index}", row) for index, row in enumerate(rows)]
    expected = one_by_one(features, 0.95)
    found = dedup.repeats(iter(features), 0.95)
    assert {name: of for name, (of, _) in found.items()} == {name: of for name, (of, _) in expected.items()}
    assert all(abs(alike - expected[name][1]) < 2e-5 for name, (_, alike) in found.items())
    assert 20 < len(found) < 60 and not dedup.repeats(iter(features), 1.0)
    assert dedup.repeats(iter([]), 0.95) == {}


def test_pairs_are_listed_up_to_twenty(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [(0.95 + number / 1000, f"b{number}.mp4 0.0..4.0 s", "a.mp4 1.0..5.0 s") for number in range(25)]
    _tell_pairs(pairs)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "25 clips repeat another one; similarity, rejected, kept:"
    assert lines[1] == "    0.9500  b0.mp4 0.0..4.0 s  a.mp4 1.0..5.0 s" and len(lines) == 22
    assert lines[-1].startswith("and 5 more, which are more alike; the report lists them")


def test_a_similarity_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--similarity 95: expected 0\.\.1, as 0\.95"):
        dedup.dedup(Store(tmp_path), {"work_dir": ""}, 95, None)
