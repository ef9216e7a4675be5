"""`scripts/curate.py`: from raw footage to a dataset folder (`split`), and whether the trainer can read it (`check`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cosmos_predict.cli.program import positive_int, run_program


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    parser, words = build_parser(), list(sys.argv[1:] if argv is None else argv)
    if "--config" in words[:-1] and "split" in words:
        place, first = words.index("--config"), words.index("split") + 1
        words[first:] = [*_flags_of(Path(words[place + 1]), parser), *words[first:place], *words[place + 2 :]]
    run_program(lambda args: args.command(args), parser, words)


def _flags_of(file: Path, parser: argparse.ArgumentParser) -> list[str]:
    """Return the options of a YAML file as flags; those of the command line come later and overrule them."""
    import yaml

    try:
        given = dict(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        parser.error(f"--config {file}: no YAML file of options by name ({error})")
    flags = {f"--{name}".replace("_", "-"): value for name, value in given.items() if value not in (False, None)}
    return [word for name, value in flags.items() for word in ([name] if value is True else [name, str(value)])]


def read_options() -> dict[str, dict[str, list[Any]]]:
    """Return the options of `split` by group: `curate/options.yaml`."""
    import yaml

    path = Path(__file__).parents[1] / "curate" / "options.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; published flags keep their names."""
    parser = argparse.ArgumentParser(prog="curate.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    about = "cut the videos below a folder into captioned clips, a dataset; the same command resumes"
    sub = commands.add_parser("split", help=about, description=about)
    sub.set_defaults(command=split)
    sub.add_argument("--input-video-path", type=Path, required=True, help="folder of videos and of folders of them")
    sub.add_argument("--output-clip-path", type=Path, required=True, help="folder for clips, records and the dataset")
    sub.add_argument("--config", help="YAML file of options by name; flags overrule it")
    for name, options in read_options().items():
        group = sub.add_argument_group(name)
        for option, (default, text, *more) in options.items():
            text = f"{text} (default: {str(default).replace('%', '%%')})"
            if isinstance(default, bool):
                group.add_argument(f"--{option}", action="store_true", help=text)
            else:
                extra = more[0] if more else {}
                group.add_argument(f"--{option}", type=type(default), default=default, help=text, **extra)
    sub = commands.add_parser("check", help="load every sample of a dataset folder as the trainer does")
    sub.set_defaults(command=check)
    sub.add_argument("dataset", type=Path, help="folder with videos/ and t5_xxl/")
    sub.add_argument("--num-frames", type=positive_int, default=93, help="frames of a sample (default: 93)")
    for sub in commands.choices.values():  # after the command, too
        sub.add_argument(
            "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="as before the command"
        )
    return parser


def split(args: argparse.Namespace) -> int:
    """Run `split`; 1 where something failed or nothing was kept, else 0."""
    from cosmos_predict.curate import split as curation
    from cosmos_predict.curate.records import DATASET

    names = {group: [name.replace("-", "_") for name in options] for group, options in read_options().items()}
    options = {name: getattr(args, name) for group in names.values() for name in group}
    summary = curation.split(args.input_video_path, args.output_clip_path, options, names["run"])
    if args.dry_run:
        return 0
    dataset, kept = args.output_clip_path / DATASET, summary.get("num_clips_passed")
    errors = summary.pop("errors")
    for name, value in summary.items():
        print(f"{name:32} {f'{value:.1f}' if isinstance(value, float) else value}")
    for where, message in errors.items():
        print(f"failed: {where}: {message}", file=sys.stderr)
    status = 1 if errors or not kept else 0
    encoder = args.text_encoder
    if encoder == "auto":
        encoder = "t5" if Path("checkpoints/google-t5/t5-11b/config.json").is_file() else "none"
    captioned = any((dataset / "metas").glob("*.txt"))
    if encoder == "none" or not captioned:
        embed = f"next, the text embeddings: python scripts/get_t5_embeddings.py --dataset_path {dataset}"
        print(embed if captioned else f"{dataset}: no captioned clip in it")
        return status
    from cosmos_predict.cli import get_t5_embeddings

    arguments = ["--dataset_path", str(dataset), "--text_encoder", encoder]
    failed = get_t5_embeddings.embed_dataset(get_t5_embeddings.build_parser().parse_args(arguments))
    return max(status, failed, check(argparse.Namespace(dataset=dataset, num_frames=args.num_frames)))


def check(args: argparse.Namespace) -> int:
    """Run `check`; 1 where a sample does not load, else 0."""
    from cosmos_predict.curate.split import check as load_all

    good, bad = load_all(args.dataset, args.num_frames)
    for name, reason in bad.items():
        print(f"unusable: {name}: {reason}", file=sys.stderr)
    print(f"{args.dataset}: {good} samples of {args.num_frames} frames load, {len(bad)} do not")
    return 1 if bad or not good else 0
