"""The shell scripts: they parse, do nothing when nothing changed, and say what is missing."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", ["scripts/setup_env.sh", "scripts/test.sh", ".ci/run"])
def test_scripts_parse_and_are_executable(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    assert (ROOT / script).stat().st_mode & 0o111 == 0o111


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project without dependencies beside this repository's setup script, in a path with a space."""
    folder = tmp_path / "my project"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup_env.sh", folder / "scripts")
    (folder / "pyproject.toml").write_text("[project]\nname = 'x'\nversion = '1'\noptional-dependencies = {dev = []}\n")
    (folder / "setup.py").write_text("from setuptools import setup\nsetup()\n")
    (folder / "constraints.txt").write_text("")
    return folder


def run(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [str(project / "scripts" / "setup_env.sh")]
    return subprocess.run(command, cwd="/", env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.mark.slow
def test_installs_once_and_again_after_a_change(project: Path) -> None:
    first = run(project)
    assert first.returncode == 0 and "installing into" in first.stderr, first.stderr
    (project / ".venv" / "kept").write_text("")
    second = run(project)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    (project / "constraints.txt").write_text("# changed\n")
    third = run(project)
    assert third.returncode == 0 and "installing into" in third.stderr and (project / ".venv" / "kept").exists()
    moved = project.rename(project.parent / "moved")  # scripts in .venv/bin point to the old place
    fourth = run(moved)
    assert fourth.returncode == 0 and "installing into" in fourth.stderr and not (moved / ".venv" / "kept").exists()


def test_says_what_to_do_without_python(project: Path) -> None:
    done = run(project, PYTHON="/no/such/python")
    assert done.returncode == 1
    assert "found no Python >= 3.11 with the venv module (PYTHON=/no/such/python)" in done.stderr
    assert not (project / ".venv").exists()
