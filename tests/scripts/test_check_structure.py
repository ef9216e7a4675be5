"""The structure check passes on a small sound package and fails, with the reason, on each planted violation."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOUND = {
    "cosmos_predict/__init__.py": '"""Doc."""\n__version__ = "1"\n',
    "cosmos_predict/errors.py": "class E(Exception):\n    pass\n",
    "cosmos_predict/io/__init__.py": '"""Doc."""\n',
    "cosmos_predict/io/tensors.py": "from cosmos_predict.errors import E\nfrom . import other\nfrom .other import x\n",
    "cosmos_predict/io/other.py": "import numpy\nfrom cosmos_predict import __version__\nx = __version__\n",
    "cosmos_predict/networks/__init__.py": '"""Doc."""\n',
    "cosmos_predict/networks/dit.py": "from cosmos_predict.io import tensors\nimport cosmos_predict.errors\n",
    "cosmos_predict/data/__init__.py": '"""Doc."""\n',
    "cosmos_predict/data/clips.py": "",
    "experiments/tiny.py": "from cosmos_predict.networks.dit import tensors\n",
    "train.py": "import experiments.tiny\n",
}


def check(root: Path, files: dict[str, str]) -> tuple[int, str]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, str(ROOT / "scripts" / "check_structure.py"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == "", done.stderr
    return done.returncode, done.stdout


def test_a_sound_package_passes(tmp_path: Path) -> None:
    assert check(tmp_path, SOUND) == (0, "structure: 11 of 20000 lines of code, 0 problems\n")


def test_this_repository_passes() -> None:
    status, output = check(ROOT, {})
    assert status == 0, output


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("networks/a.py", "from cosmos_predict.data.clips import x", "networks/a.py:1: networks imports"),
        ("networks/a.py", "from cosmos_predict import data", "networks/a.py:1: networks imports cosmos_predict.data"),
        (
            "networks/a.py",
            "from ..data import clips",
            "networks imports cosmos_predict.data, but may import config, err",
        ),
        ("networks/a.py", "def f():\n    import cosmos_predict.data.clips", "networks/a.py:2: networks imports"),
        ("networks/a.py", "if 1:\n    from .. import data", "networks/a.py:2: networks imports cosmos_predict.data"),
        (
            "errors.py",
            "import cosmos_predict.io.tensors",
            "errors imports cosmos_predict.io.tensors, but may import nothing",
        ),
        ("io/a.py", "import tests.goldens", "io/a.py:1: imports tests.goldens; tests uses the package, never"),
        ("io/a.py", "from experiments import tiny", "io/a.py:1: imports experiments; experiments uses the package"),
        ("io/a.py", "import train", "io/a.py:1: imports train; train uses the package"),
        ("io/a.py", "import cosmos_predict.io.nothing", "imports cosmos_predict.io.nothing, which does not exist"),
        ("io/a.py", "x = 1\n" * 601, "io/a.py: 601 lines of code, at most 600"),
        ("io/__init__.py", "", "io/__init__.py: no docstring"),
        ("io/__init__.py", '"""Doc."""\nfrom . import other', "io/__init__.py:2: an __init__.py imports nothing"),
        ("__init__.py", '"""Doc."""\nfrom cosmos_predict import io', "__init__.py:2: an __init__.py imports nothing"),
        ("data/sub/a.py", "", "cosmos_predict/data/sub: no __init__.py"),
        ("extras/a.py", "", "extras has no place in the import order"),
    ],
)
def test_a_planted_violation_fails(tmp_path: Path, name: str, text: str, message: str) -> None:
    status, output = check(tmp_path, {**SOUND, f"cosmos_predict/{name}": text})
    assert status == 1 and message in output, output


def test_only_code_is_counted(tmp_path: Path) -> None:
    header = '"""Module.\n\nMore.\n"""\n\n# comment\n'
    text = header + 'x = """two\nlines"""  # both\n\n\ndef f():\n    """Doc."""\n    return (\n        1\n    )\n'
    status, output = check(tmp_path, {**SOUND, "cosmos_predict/io/a.py": text})
    assert status == 0 and "structure: 17 of" in output  # 11, and x, its second line, def, return, 1, )


def test_long_files_are_warned_of_and_the_whole_is_limited(tmp_path: Path) -> None:
    status, output = check(tmp_path, {**SOUND, "cosmos_predict/io/a.py": "x = 1\n" * 401})
    assert status == 0 and "warning: cosmos_predict/io/a.py: 401 lines of code, the aim is 400" in output
    many = {f"cosmos_predict/io/m{i}.py": "x = 1\n" * 600 for i in range(34)}
    status, output = check(tmp_path, many)
    assert status == 1 and "cosmos_predict: 20812 lines of code, fewer than 20000 allowed" in output
