"""How every command line of the project starts and ends: arguments, messages, logging, exit status.

A command is a parser and a body::

    def main(argv: Sequence[str] | None = None) -> NoReturn:
        run_program(convert, build_parser(), argv)   # convert(args: argparse.Namespace) -> int | None

Exit status: 0 done, 2 bad input, 1 failure, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from cosmos_predict.errors import CorruptFileError, CosmosPredictError

# What the user can repair in the arguments or files. ValueError covers ConfigError, DataError, CheckpointError and
# UnsafeFileError, and the built-in ValueErrors of the library, such as a number of frames that does not fit.
BAD_INPUT = (ValueError, CorruptFileError, FileNotFoundError, NotADirectoryError, IsADirectoryError)


def run_program(
    body: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Parse `argv` (default: the process's arguments), run `body(args)` and exit with its status.

    Adds `-v/--verbose` to the parser. `body` returns None or 0 for success, or another exit status.
    """
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="log more, and show the traceback when something fails"
    )
    args = parser.parse_args(argv)
    configure_logging(args.verbose)
    sys.exit(status_of(lambda: body(args), verbose=args.verbose))


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
        print(f"error: {describe(error)}", file=sys.stderr)
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


def positive_int(text: str) -> int:
    """Argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number of at least 1")
    return value
