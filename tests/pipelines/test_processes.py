"""Two real processes on one clip, started by torchrun, against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from cosmos_predict.data import video_reader
from cosmos_predict.errors import ConfigError
from cosmos_predict.pipelines.processes import Processes, check_division
from tests.pipelines.clip_program import latents
from tests.pipelines.small import write_clip, write_run

REPOSITORY = Path(__file__).parents[2]


def torchrun(*command: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run `torchrun --nproc_per_node=processes command` from the repository's root."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.slow
def test_two_processes_give_the_latents_of_one(tmp_path: Path) -> None:
    run_file = write_run(tmp_path / "run", num_frames=13)
    result = torchrun("-m", "tests.pipelines.clip_program", run_file, tmp_path)
    assert result.returncode == 0, result.stderr
    together = load_file(tmp_path / "latents.safetensors")
    for name in ("context", "branches"):
        for suffix, frames in (("", 4), ("_image", 1)):
            alone = latents(str(run_file), Processes(), frames)
            distance = (together[name + suffix] - alone).norm() / alone.norm()
            assert distance <= 1e-5, (name + suffix, float(distance))


def test_frames_that_do_not_divide_name_the_way_out() -> None:
    check_division(2, 24, 16)
    with pytest.raises(ConfigError, match=r"divide the 3 latent .* fit: 1; or divide guidance too: --cfg_parallel$"):
        check_division(2, 3, 16)
    with pytest.raises(
        ConfigError, match=r"context_parallel_size=8 .* fit: 1, 2, 4; or divide guidance too: --cfg_par"
    ):
        check_division(8, 4, 16)
    for size, frames, cfg_parallel in ((4, 3, False), (3, 4, False), (2, 3, True)):
        with pytest.raises(ConfigError, match=r"sizes that fit: [\d, ]+$"):
            check_division(size, frames, 16, cfg_parallel)


@pytest.mark.slow
def test_the_command_under_torchrun(tmp_path: Path) -> None:
    run_file, clip = write_run(tmp_path / "run", num_frames=13), write_clip(tmp_path / "clip.mp4")
    given = ["inference/video2world.py", "--dit_path", run_file, "--input_path", clip, "--prompt", "a block"]
    given += ["--num_steps", 2, "--num_chunks", 2, "--device", "cpu"]
    for name, options in (("context", ["--num_gpus", 2]), ("branches", ["--num_gpus", 2, "--cfg_parallel"])):
        result = torchrun(*given, *options, "--save_path", tmp_path / f"{name}.mp4")
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("frame(s) of 48 x 64") == 1  # one process writes
    one = subprocess.run(
        [sys.executable, *map(str, given), "--save_path", tmp_path / "one.mp4"], cwd=REPOSITORY, capture_output=True
    )
    assert one.returncode == 0, one.stderr
    alone, *others = (
        video_reader.read_frames(tmp_path / f"{name}.mp4", range(25)).astype(int)
        for name in ("one", "context", "branches")
    )
    for other in others:
        assert np.abs(other - alone).mean() < 0.1
    sidecar = json.loads((tmp_path / "context.json").read_text())
    assert sidecar["environment"]["processes"] == sidecar["arguments"]["num_gpus"] == 2
    again = torchrun(
        "inference/video2world.py", "--from_sidecar", tmp_path / "context.json", "--save_path", tmp_path / "a.mp4"
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "context.mp4").read_bytes()


@pytest.mark.slow
def test_lengths_that_do_not_divide(tmp_path: Path) -> None:
    run_file, clip = write_run(tmp_path / "run", num_frames=9), write_clip(tmp_path / "clip.mp4")  # 3 latent frames
    result = torchrun(
        "inference/video2world.py", "--dit_path", run_file, "--input_path", clip, "--num_gpus", 2, "--device", "cpu"
    )
    assert result.returncode != 0
    assert result.stderr.count("error: context_parallel_size=2 must divide the 3 latent frames") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "error: argument --seed: -1 is not a whole number"),
        (["--num_gpus", "4"], "error: --num_gpus 4, but 2 process(es) run"),
        (["--device", "gpu"], "error: --device gpu: expected cpu"),
        (["--input_path", "none.png"], "error: no input at none.png"),
        # The first process alone encodes prompts.
        (["--text_encoder", "lost/for/ever"], "error: no T5 folder lost/for/ever, and no Hugging Face name"),
    ],
)
def test_one_process_says_what_is_wrong(tmp_path: Path, options: list[str], message: str) -> None:
    run_file, clip = write_run(tmp_path / "run", num_frames=13), write_clip(tmp_path / "clip.mp4")
    given = ["inference/video2world.py", "--dit_path", run_file, "--input_path", clip, "--device", "cpu"]
    result = torchrun(*given, "--prompt", "a block", *options)
    assert result.returncode != 0
    own = [line for line in result.stderr.splitlines() if "rror:" in line and "ChildFailedError" not in line]
    assert [line for line in own if message in line] == own and len(own) == 1, result.stderr
    assert "gloo" not in result.stderr and "Connection closed" not in result.stderr


@pytest.mark.slow
def test_guidance_and_frames_divided_over_four(tmp_path: Path) -> None:
    run_file = write_run(tmp_path / "run", num_frames=13)
    result = torchrun("-m", "tests.pipelines.clip_program", run_file, tmp_path, processes=4)
    assert result.returncode == 0, result.stderr
    together = load_file(tmp_path / "latents.safetensors")
    alone = latents(str(run_file), Processes())
    assert float((together["branches"] - alone).norm() / alone.norm()) <= 1e-5
