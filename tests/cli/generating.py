"""A generation command in this process."""

from __future__ import annotations

from typing import Any

from cosmos_predict.cli.generate import generate, use_sidecar
from cosmos_predict.cli.generation import build_parser


def run(command: str, *options: Any) -> int:
    """Run `command`, as its program does after the start."""
    parser = build_parser(command)
    argv = [str(option) for option in options]
    args = parser.parse_args(argv)
    if args.from_sidecar:
        use_sidecar(parser, args)
    return generate(parser.parse_args(argv))
