"""Command lines as a user runs them: light help, lists, dry runs, and messages without tracebacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = sorted(
    str(path.relative_to(REPOSITORY))
    for folder in ("scripts", "inference")
    for path in (REPOSITORY / folder).glob("*.py")
    if path.name not in ("check_structure.py",)
)
HEAVY = ("torch", "torchvision", "transformers", "decord", "diffusers", "av")


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env={**os.environ, **(env or {})}, capture_output=True, text=True
    )


def imported(code: str, argv: list[str]) -> set[str]:
    """Run `code` as a program and return which heavy packages it imported."""
    program = f"""
import sys
sys.argv = {argv!r}
try:
{chr(10).join("    " + line for line in code.splitlines())}
except SystemExit:
    pass
print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
"""
    result = run("-c", program)
    line = next((line for line in result.stdout.splitlines() if line.startswith("HEAVY")), None)
    assert line is not None, result.stdout + result.stderr
    return set(eval(line.removeprefix("HEAVY")))


def test_import_is_light() -> None:
    assert imported("import cosmos_predict", ["x"]) == set()


@pytest.mark.parametrize("script", [*SCRIPTS, "train.py"])
def test_help_imports_no_torch(script: str) -> None:
    code = f"import runpy\nsys.path.insert(0, '.')\nrunpy.run_path({script!r}, run_name='__main__')"
    assert imported(code, [script, "--help"]) == set()


def test_list_is_light_and_complete() -> None:
    code = "import runpy\nsys.path.insert(0, '.')\nrunpy.run_path('train.py', run_name='__main__')"
    assert imported(code, ["train.py", "--list"]) & {"torchvision", "transformers", "decord"} == set()
    output = run("-m", "train", "--list").stdout
    assert "tiny_video2world" in output and "predict2_video2world_training_2b_cosmos_nemo_assets" in output


def test_dryrun_prints_config_and_sizes(tmp_path: Path) -> None:
    result = run(
        "-m",
        "train",
        "--dryrun",
        "--config",
        "cosmos_predict/config/default.py",
        "--",
        "experiment=predict2_video2world_training_2b_cosmos_nemo_assets",
        "trainer.max_iter=7",
        env={"OUTPUT_ROOT": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    assert "max_iter: 7" in result.stdout and "1,956" in result.stdout and "84,480 tokens" in result.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=tiny_video2word"], "tiny_video2world"),
        (["experiment=tiny_video2world", "trainer.max_itr=3"], "max_iter"),
        (["experiment=tiny_video2world", "data=synthetc"], "synthetic"),
        (["experiment=tiny_video2world", "dataloader_train.dataset.dataset_dir=/nowhere"], "/nowhere/videos"),
    ],
)
def test_bad_input_is_one_message_and_status_two(overrides: list[str], message: str, tmp_path: Path) -> None:
    result = run("-m", "train", "--", *overrides, env={"OUTPUT_ROOT": str(tmp_path)})
    assert result.returncode == 2
    assert "Traceback" not in result.stderr and message in result.stderr


def test_video2world_without_input_says_so(tmp_path: Path) -> None:
    result = run("inference/video2world.py", "--dit_path", "x.pt", "--input_path", str(tmp_path / "no.png"))
    assert result.returncode == 2 and "no input at" in result.stderr and "Traceback" not in result.stderr


def test_import_videos_and_contact_sheet(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    imported = run("scripts/import_videos.py", "assets/robot_arm", "--dataset_path", str(dataset))
    assert imported.returncode == 0
    assert f"next: edit the captions in {dataset}/metas" in imported.stdout
    assert f"python scripts/get_t5_embeddings.py --dataset_path {dataset}" in imported.stdout
    videos = sorted((dataset / "videos").iterdir())
    assert len(videos) == 48 and (dataset / "metas" / f"{videos[0].stem}.txt").read_text().strip()
    small = tmp_path / "small"
    assert (
        run(
            "scripts/import_videos.py", "assets/robot_arm", "--dataset_path", str(small), "--short_side", "64"
        ).returncode
        == 0
    )
    from cosmos_predict.data.video_reader import probe

    before, after = probe(videos[0]), probe(small / "videos" / videos[0].name)
    assert (after.height, after.width, after.frames) == (64, 86, before.frames)
    sheet = tmp_path / "sheet.png"
    result = run("scripts/contact_sheet.py", f"a={videos[0]}", f"b={videos[1]}", "--save_path", str(sheet))
    assert result.returncode == 0, result.stderr
    from PIL import Image

    assert Image.open(sheet).height > 2 * 96
    assert "is not a folder" in run("scripts/import_videos.py", "nowhere", "--dataset_path", str(dataset)).stderr
