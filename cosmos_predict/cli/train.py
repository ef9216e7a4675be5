"""The training command: `torchrun --nproc_per_node=N -m train [options] -- experiment=NAME [key=value ...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cosmos_predict.cli.program import add_verbose, configure_logging, status_of

EPILOG = """\
overrides, after --:
  experiment=NAME      a registered experiment (--list shows them)
  group=name           a choice of a group: data=synthetic, optimizer=adamw8bit, scheduler=constant, ...
  model=NAME           a published model in place of the experiment's: model=predict2_2b_video2world
  debug=true           the same experiment, small enough for a laptop (the dataset stays)
  a.b.c=value          set a value: trainer.max_iter=2000, optimizer.lr=1e-5
  +a.b=value  ~a.b     add or remove a key

examples:
  python -m train -- experiment=tiny_video2world dataloader_train.dataset.dataset_dir=datasets/mine
  torchrun --nproc_per_node=8 -m train --config cosmos_predict/config/default.py -- experiment=NAME
  WORLD_SIZE=8 python -m train --dryrun -- experiment=NAME
  python -m train --config checkpoints/PROJECT/GROUP/NAME/config.yaml -- trainer.max_iter=5000
  torchrun --nproc_per_node=8 -m train --yes --factory cosmos_diffusion_7b_text2world_finetune data.path=DIR

A run writes to checkpoints/PROJECT/GROUP/NAME ($OUTPUT_ROOT replaces `checkpoints`) and resumes what it finds there.
"""


def build_parser() -> argparse.ArgumentParser:
    lines = argparse.RawDescriptionHelpFormatter
    description = "Post-train a video world model."
    parser = argparse.ArgumentParser(prog="train", description=description, epilog=EPILOG, formatter_class=lines)
    add = parser.add_argument
    config = "a .py file with make_config(), or a run's config.yaml (default: the built-in one)"
    add("--config", metavar="FILE", help=config)
    add("--list", action="store_true", help="list the experiments and leave")
    dryrun = "print the composed config and what the run would take, read no weights, and leave"
    add("--dryrun", action="store_true", help=dryrun)
    allow = "let --config FILE.yaml name callables of this package"
    add("--allow", metavar="PACKAGE", action="append", default=[], help=allow)
    add("--factory", metavar="NAME", help="the same as experiment=NAME; NeMo's keys are taken with either")
    add("--yes", action="store_true", help="accepted: nothing is asked")
    add_verbose(parser)
    add("overrides", nargs="*", help=argparse.SUPPRESS)
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line, `--factory NAME` as the override `experiment=NAME`."""
    parser = build_parser()
    args = parser.parse_intermixed_args(argv)  # overrides may stand among options
    if args.factory:
        if any(override.startswith("experiment=") for override in args.overrides):
            parser.error(f"--factory {args.factory} and experiment=NAME say the same: give one")
        args.overrides.insert(0, f"experiment={args.factory}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    configure_logging(args.verbose)
    if args.list:
        sys.exit(status_of(list_experiments, args.verbose))
    if args.dryrun:
        sys.exit(status_of(lambda: dryrun(args), args.verbose))
    from cosmos_predict.parallel.distributed import finish_distributed

    finish_distributed(status_of(lambda: run(args), args.verbose))


def list_experiments() -> int:
    from cosmos_predict.config import registry

    rows = registry.list_experiments()
    width = max((len(name) for name, _ in rows), default=0)
    for name, summary in rows:
        print(f"{name:<{width}}  {summary}")
    return 0


def dryrun(args: argparse.Namespace) -> int:
    """Print the composed config, then sizes; builds the network on the meta device at most. One process prints."""
    from cosmos_predict.config.compose import compose
    from cosmos_predict.config.files import config_text
    from cosmos_predict.parallel.distributed import read_ranks
    from cosmos_predict.training.checks import check_supported
    from cosmos_predict.training.forecast import forecast

    report: list[str] = []
    config = compose(args.overrides, args.config, allow=args.allow, report=report)
    config.validate()
    check_supported(config)
    if read_ranks().rank == 0:
        print(config_text(config, strict=False))
        print("\n".join([*report, forecast(config)]))
    return 0


def run(args: argparse.Namespace) -> int:
    from loguru import logger

    from cosmos_predict.config.compose import compose
    from cosmos_predict.parallel.distributed import init_distributed
    from cosmos_predict.training.trainer import Trainer

    report: list[str] = []
    config = compose(args.overrides, args.config, allow=args.allow, report=report)
    config.validate()
    config.freeze()
    ranks = init_distributed()
    if ranks.rank == 0:
        for line in report:
            logger.info(line)
    else:  # what all ranks do is logged once; warnings are each rank's own
        configure_logging(args.verbose, level="WARNING")
    trainer = Trainer(config, ranks)
    trainer.train()
    return 130 if trainer.stop_signal == "SIGINT" else 0
