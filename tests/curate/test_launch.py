"""The Slurm array script: each task takes its shard. And the guide's own stage runs as it is printed there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_predict.curate.records import DATASET
from tests.curate.footage import make_set
from tests.curate.running import REPOSITORY, finished, run_command


def submit(*words: str, **given: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a task of an array 3-5."""
    environment = {"SLURM_SUBMIT_DIR": str(REPOSITORY), "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "5"}
    environment |= {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_CPUS_PER_TASK": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = REPOSITORY / "scripts" / "slurm" / "curate.sbatch"
    return subprocess.run(
        ["bash", str(script), *words], env={**os.environ, **environment, **given}, capture_output=True, text=True
    )


@pytest.mark.slow
def test_array_of_shards(tmp_path: Path) -> None:
    make_set(tmp_path / "in", 4)
    output = tmp_path / "out"
    words = ["--input-video-path", str(tmp_path / "in"), "--output-clip-path", str(output), "--text-encoder", "tiny"]
    (tmp_path / "in" / "text.mp4").write_text("no video")
    counts, failures = [], []
    for task in ("3", "4", "5"):
        done = submit(*words, SLURM_ARRAY_TASK_ID=task)
        counts.append(int(re.search(r"(\d+) videos, none done before", done.stderr)[1]))  # type: ignore[index]
        failed = "failed: text.mp4" in done.stderr
        assert done.returncode == failed, done.stderr  # of the task whose video it is alone, and 0 without any video
        failures.append(failed)
        merge = f"python scripts/curate.py report {output}; python scripts/curate.py embed {output} --text_encoder tiny"
        assert f"once all 3 shards are through: {merge}\n" in done.stdout and not (output / DATASET / "t5_xxl").exists()
    assert sum(counts) == 5 and max(counts) < 5 and sum(failures) == 1, (counts, failures)
    status, out, err = run_command("report", str(tmp_path / "out"))
    assert status == 1 and "num_videos_done                  4" in out, err
    count = len([*(output / DATASET / "metas").iterdir()])
    for told in (f"{count} written, 0 skipped", f"0 written, {count} skipped"):  # each caption once
        status, out, err = run_command("embed", str(output), "--text_encoder", "tiny")
        assert status == 0 and told in out, err
    done = submit(*words, SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_TASK_MAX="7")
    assert done.returncode == 2 and "a range without gaps" in done.stderr


@pytest.mark.slow
def test_the_stage_of_the_guide(tmp_path: Path) -> None:
    guide = (REPOSITORY / "docs" / "curation.md").read_text()
    (code,) = (text for text in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL) if "class Bright" in text)
    (tmp_path / "bright.py").write_text(code)
    make_set(tmp_path / "in", 1)
    stage = ["--stage", f"{tmp_path / 'bright.py'}:Bright", "--text-encoder", "none"]
    status, _, err = finished(tmp_path / "in", tmp_path / "out", *stage)
    assert status == 0 and "bright.py is run for your own stage Bright" in err, err
    record = json.loads((tmp_path / "out" / "processed_videos" / "part0" / "film_0.mp4.json").read_text())
    scores = [clip["scores"]["brightness"] for clip in record["clips"].values()]
    assert len(scores) == 2 and all(100 < score < 160 for score in scores) and record["limits"] == {"brightness": 40.0}
    assert record["options"]["stage"][0].startswith("bright.py:Bright sha256:")
    (tmp_path / "bright.py").write_text(code.replace("40.0", "254.0"))
    status, out, err = run_command("filter", str(tmp_path / "out"), *stage[:2])
    assert status == 1 and "num_clips_filtered_by            {'bright': 2}" in out, err  # 1: nothing is kept
    assert "limit 254: 2 below" in (tmp_path / "out" / "report.html").read_text()
