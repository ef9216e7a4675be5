"""How a command line ends: the message, and the exit status."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

import pytest

from cosmos_predict.cli.program import HelpFormatter, command, describe, positive_int, run_program, status_of
from cosmos_predict.errors import (
    CheckpointError,
    ConfigError,
    CorruptFileError,
    DataError,
    MissingDependencyError,
    UnsafeFileError,
)


def failing(error: BaseException) -> Callable[[], int | None]:
    def call() -> int | None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("the message"), 2),
        (DataError("the message"), 2),
        (CheckpointError("the message"), 2),
        (UnsafeFileError("the message"), 2),
        (CorruptFileError("the message"), 2),
        (FileNotFoundError("the message"), 2),
        (ValueError("the message"), 2),
        (MissingDependencyError("the message"), 1),
        (RuntimeError("the message"), 1),
        (PermissionError("the message"), 1),
    ],
)
def test_errors_become_a_message_and_a_status(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(failing(error)) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "the message" in err and "Traceback" not in err
    assert status_of(failing(error), verbose=True) == status
    err = capsys.readouterr().err
    assert "Traceback" in err and "in call" in err and "the message" in err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError("no checkpoint at x"), "no checkpoint at x"),
        (ValueError("frames must be 4k + 1"), "frames must be 4k + 1"),
        (ValueError(), "ValueError: "),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
    ],
)
def test_bad_input_is_told_without_a_class(error: Exception, told: str) -> None:
    assert describe(error) == told


def test_a_missing_package_points_to_the_environment() -> None:
    command = (
        "import sys; sys.modules['loguru'] = None; from cosmos_predict.cli.curate import main; main(['check', 'x'])"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.returncode == 1 and "source .venv/bin/activate" in done.stderr and "Traceback" not in done.stderr


def test_system_errors_name_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(lambda: open("/nowhere/file.txt").close()) == 2
    assert capsys.readouterr().err == "error: no such file or folder: /nowhere/file.txt\n"


def test_interrupt_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_results_are_statuses() -> None:
    assert status_of(lambda: None) == 0
    assert status_of(lambda: 1) == 1


def test_run_program_parses_and_exits() -> None:
    def body(args: argparse.Namespace) -> int:
        assert args.verbose
        return args.count

    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=positive_int)
    with pytest.raises(SystemExit) as ended:
        run_program(body, parser, ["--count", "3", "-v"])
    assert ended.value.code == 3


def test_a_command_has_its_own_main_and_help_without_empty_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    def build_parser() -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
        for name, default in {"count": 0, "size": None, "name": "", "kinds": []}.items():
            parser.add_argument(f"--{name}", default=default, help=f"about {name}")
        return parser

    main = command(lambda args: args.count, build_parser)
    for argv, status in ([], 0), (["--help"], 0):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == status
    lines = capsys.readouterr().out.splitlines()
    about = [line.split("about ")[1] for line in lines if "about" in line]
    assert about == ["count (default: 0)", "size", "name", "kinds"]


@pytest.mark.parametrize("count", ["0", "-1", "some"])
def test_bad_arguments_are_2(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=positive_int)
    with pytest.raises(SystemExit) as ended:
        run_program(lambda args: 0, parser, [f"--count={count}"])
    assert ended.value.code == 2
    assert "argument --count" in capsys.readouterr().err
