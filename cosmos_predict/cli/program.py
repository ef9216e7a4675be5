"""How every command line of the project starts and ends: arguments, messages, logging, exit status.

A command is a body and a parser::

    main = command(convert, build_parser)   # convert(args: argparse.Namespace) -> int | None

Exit status: 0 done, 2 bad input, 1 failure, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cosmos_predict.errors import ConfigError, CorruptFileError, CosmosPredictError

if TYPE_CHECKING:
    import torch

Body = Callable[[argparse.Namespace], int | None]

# What the user can repair in the arguments or files. ValueError covers ConfigError, DataError, CheckpointError and
# UnsafeFileError, and the built-in ValueErrors of the library, such as a number of frames that does not fit.
BAD_INPUT = (ValueError, CorruptFileError, FileNotFoundError, NotADirectoryError, IsADirectoryError)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the default behind each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        bare = action.default is None or action.default is False or action.default in ("", [])
        return action.help if bare else super()._get_help_string(action)


def command(body: Body, build_parser: Callable[[], argparse.ArgumentParser]) -> Callable[..., NoReturn]:
    """Return `main(argv=None)`, which runs `body` with what the parser makes of `argv` (`run_program`)."""
    return lambda argv=None: run_program(body, build_parser(), argv)


def run_program(body: Body, parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> NoReturn:
    """Parse `argv` (default: the process's arguments), run `body(args)` and exit with its status.

    Adds `-v/--verbose` to the parser. `body` returns None or 0 for success, or another exit status.
    """
    add_verbose(parser)
    args = parser.parse_args(argv)
    configure_logging(args.verbose)
    sys.exit(status_of(lambda: body(args), verbose=args.verbose))


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add `-v/--verbose`, which every command has."""
    text = "log more, and show the traceback when something fails"
    parser.add_argument("-v", "--verbose", action="store_true", help=text)


def status_of(call: Callable[[], int | None], verbose: bool = False) -> int:
    """Run `call` and return the exit status that its result or its error stands for, the error printed to stderr.

    For programs that must do something between the error and the exit, such as closing a process group.
    """
    try:
        return call() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if verbose:
            traceback.print_exc()
        sys.stderr.write(f"error: {describe(error)}\n")  # in one piece: other ranks write there, too
        if not verbose and not isinstance(error, (CosmosPredictError, *BAD_INPUT)):
            print("(-v shows the traceback)", file=sys.stderr)
        return 2 if isinstance(error, BAD_INPUT) else 1


def describe(error: BaseException) -> str:
    """Return the message of an error, with its class where that is a failure of another package."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error}: activate the environment (source .venv/bin/activate; scripts/setup_env.sh makes it), or INSTALL.md"
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"no such file or folder: {error.filename}"
    if isinstance(error, (CosmosPredictError, *BAD_INPUT)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def configure_logging(verbose: bool = False, level: str = "INFO") -> None:
    """Send loguru's messages from `level` on to stderr, a short line each; `verbose` adds debug messages and origins."""
    try:
        from loguru import logger  # lazy: --help does not need it
    except ModuleNotFoundError as error:  # the first package that a command needs
        sys.exit(f"error: {describe(error)}")

    origin = " | {name}:{line}" if verbose else ""
    logger.remove()
    logger.add(
        sys.stderr,
        level="DEBUG" if verbose else level,
        format=f"<dim>{{time:HH:mm:ss}}</dim> <level>{{level: <7}}</level>{origin} {{message}}",
        # Values of local variables in a traceback may hold tokens or whole captions.
        diagnose=False,
    )


def tell_failed(failed: Mapping[Path, str]) -> int:
    """Print why each of these files failed to stderr; return the exit status: 1 where one did, else 0."""
    for path, reason in sorted(failed.items()):
        print(f"failed: {path}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def device_of(name: str | None) -> torch.device:
    """Return the device of that name (None: a GPU where there is one). Raises ConfigError for one that is not here."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = name or ("cuda" if gpus else "cpu")
    if not (match := re.fullmatch(r"cpu|cuda(?::(\d+))?", name)):
        raise ConfigError(f"--device {name}: expected cpu, cuda, or cuda:N")
    if name != "cpu" and int(match[1] or 0) >= gpus:
        raise ConfigError(f"--device {name}: torch finds {gpus} GPU(s) with a driver here; --device cpu does without")
    return torch.device(name)


def positive_int(text: str) -> int:
    """Argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number of at least 1")
    return value


def whole_seed(text: str) -> int:
    """Argparse type: a seed of numpy's RandomState."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def finite(text: str) -> float:
    """Argparse type: a number, neither infinite nor nan."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def positive(text: str) -> float:
    """Argparse type: a finite number above 0."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value
