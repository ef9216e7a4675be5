"""`scripts/curate.py`: from raw footage to the dataset folder that the trainer reads (`split`); `COMMAND --help` says more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cosmos_predict.cli.curate_flags import from_file, read_options, without_published
from cosmos_predict.cli.get_t5_embeddings import T5_11B, add_encoder_arguments
from cosmos_predict.cli.program import positive_int, run_program
from cosmos_predict.curate.storage import DATASET, Store
from cosmos_predict.errors import ConfigError, DataError

SHOWN, PAIRS = 5, 20  # videos without a clip; clips that repeat others
LIMITS = dict.fromkeys(("resolution_too_small", "no_motion_frames"), "--motion-filter score-only")
LIMITS |= {"motion": "--motion-global-mean-threshold and --motion-per-patch-min-256-threshold"}
LIMITS |= {"aesthetic": "--aesthetic-threshold", "qwen_semantic": "--vlm-filter-rejection-threshold"}
LIMITS |= {"too short": "--num-frames", "duplicate": "--similarity"}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(everything="--help-all" in words)
    finder = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    name = next((word for word in words if not word.startswith("-")), "")  # behind -v, too
    if (sub := _commands(parser).get(name)) is not None:
        first = words.index(name) + 1
        if file := finder.parse_known_args(words)[0].config:
            words[first:first] = from_file(file, name, sub)
        words[first:] = without_published(words[first:], parser) if name == "split" else words[first:]
    run_program(lambda args: args.command(args), parser, words)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    return next(dict(action.choices) for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def build_parser(everything: bool = False) -> argparse.ArgumentParser:
    """Return the parser; published flags keep their names. everything: help of advanced options, too."""
    parser = argparse.ArgumentParser(prog="curate.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    about = "cut the videos below a folder into captioned clips, a dataset; the same command resumes"
    usage = "curate.py split --input-video-path IN --output-clip-path OUT [--OPTION VALUE ...]"
    sub = commands.add_parser("split", help=about, description=about, usage=usage, allow_abbrev=False)
    sub.set_defaults(command=split)
    add = sub.add_argument
    add("--input-video-path", required=True, help="folder of videos and of folders of them, or s3://BUCKET/KEY")
    add("--output-clip-path", required=True, help="folder, or s3://BUCKET/KEY, for clips, records and the dataset")
    add("--config", help="YAML or JSON file of options by name; flags overrule it")
    options = read_options()
    for _, _, *more in (row for group in options.values() for row in group.values()):
        if more and everything:
            more[0].pop("advanced", None)
    for name, group in options.items():
        _add_options(sub.add_argument_group(name), group)

    def add_command(name: str, body: Callable[..., int], about: str, *names: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        sub.set_defaults(command=body)
        sub.add_argument("output", help="folder, or s3://BUCKET/KEY, that split has filled")
        sub.add_argument("--config", help="file of options as of split; what this command has not is left out")
        _add_options(sub, {name: options["run"][name] for name in (*names, "output-s3-profile-name")})
        return sub

    work = ("workers", "work-dir")
    about = "apply other limits to the recorded scores; no stage looks at a video or clip again, no clip moves"
    sub = add_command("filter", refilter, about, *work)
    _add_options(sub, {**options["filters"], **options["stages"]}, given_only=True)
    sub = add_command("caption", caption, "caption the kept clips that have no caption", *work, "model-weights-path")
    sub.add_argument("--all", action="store_true", help="caption all of them again")
    kinds = ("openai-", "api-", "input-s3-")
    _add_options(sub, {name: row for name, row in options["run"].items() if name.startswith(kinds)})
    _add_options(sub, {**options["captions"], **options["models"], **options["writing"]}, given_only=True)
    about = "embed the captions of the dataset; edited ones are made again"
    sub = add_command("embed", embed, about, "model-weights-path")
    add_encoder_arguments(sub)
    sub = add_command("dedup", dedup, "reject clips that repeat another one", *work)
    sub.add_argument("--similarity", type=float, default=0.95, help="how alike, 0..1, is a repeat (default: 0.95)")
    sub.add_argument("--embeddings", type=Path, help="folder of UUID.npy, as of CLIP, to compare in place of frames")
    sub.add_argument("--dry-run", action="store_true", help="list what repeats what, and change nothing")
    sub = add_command("shard", shard, "pack the kept clips into tar files, by resolution, shape and duration")
    sub.add_argument("--output-dataset-path", required=True, help="empty folder, or s3://BUCKET/KEY")
    sub.add_argument("--target-tar-size-mb", type=positive_int, default=500, help="of videos in a tar (default: 500)")
    sub.add_argument("--tars-per-part", type=positive_int, default=100, help="tars in a folder (default: 100)")
    sub.add_argument("--min-clips-per-tar", type=positive_int, default=1, help="leave out smaller tars (default: 1)")
    add_command("report", report, "count all records, of all shards, and write summary.json and report.html again")
    sub = commands.add_parser("check", help="load every sample of a dataset folder as the trainer does")
    sub.set_defaults(command=check)
    sub.add_argument("dataset", help="folder with videos/ and t5_xxl/, or OUT; s3://BUCKET/KEY is downloaded")
    _add_options(sub, {"output-s3-profile-name": options["run"]["output-s3-profile-name"]})
    sub.add_argument("--num-frames", type=positive_int, help="frames of a sample (default: as split had, else 93)")
    for sub in commands.choices.values():  # after the command, too
        sub.add_argument("--help-all", action="help", help="show this, with the advanced options, and exit")
        hidden = argparse.SUPPRESS
        sub.add_argument("-v", "--verbose", action="store_true", default=hidden, help="as before the command")
    return parser


def _add_options(parser: argparse._ActionsContainer, options: Mapping[str, Any], given_only: bool = False) -> None:
    """Add options as `options.yaml` describes them; given_only: those that are not given have no value, not the default."""
    for option, (default, text, *more) in options.items():
        extra = {"default": argparse.SUPPRESS if given_only else default, **(more[0] if more else {})}
        shown = "as recorded" if given_only else str(default).replace("%", "%%")
        extra["help"] = f"{text} (default: {shown})" if shown else text
        extra["help"] = argparse.SUPPRESS if extra.pop("advanced", False) else extra["help"]
        names = [f"--{name}" for name in (option, *extra.pop("aliases", ()))]
        kind = extra.pop("type", type(default).__name__)
        extra |= {"bool": {"action": "store_true"}, "list": {"action": "append"}}.get(kind, {})
        if "action" not in extra:
            extra["type"] = {"int": int, "float": float}.get(kind, str)
        parser.add_argument(*names, **extra)


def _values(args: argparse.Namespace, group: str) -> dict[str, Any]:
    """Return the values of a group's options: those given, or the default."""
    options = {name.replace("-", "_"): default for name, (default, *_) in read_options()[group].items()}
    return {name: getattr(args, name, default) for name, default in options.items()}


def _given(args: argparse.Namespace, *groups: str) -> dict[str, Any]:
    """Return the options of groups that were given."""
    return {name: getattr(args, name) for group in groups for name in _values(args, group) if hasattr(args, name)}


def split(args: argparse.Namespace) -> int:
    """Run `split`; 1 where something failed or nothing was kept, else 0."""
    from cosmos_predict.curate import split as curation
    from cosmos_predict.curate.changes import idle_limits

    options = {name: value for group in read_options() for name, value in _values(args, group).items()}
    for line, score, enable in idle_limits(options):
        print(f"{line}; {enable} decides by {score}", file=sys.stderr)
    summary = curation.split(args.input_video_path, args.output_clip_path, options, _values(args, "run"))
    if args.dry_run:
        return 0
    output = Store(args.output_clip_path, args.output_s3_profile_name)
    after = "then" if summary["uncaptioned"] else "next"
    status, encoder = _tell(summary, output), args.text_encoder
    if (parts := args.shard.partition("/")[2]) != "1":  # whose captions are not all there, in an index of one file
        asked = f" --text_encoder {encoder}" if encoder in ("t5", "tiny") else ""
        merge = f"python scripts/curate.py report {output.root}; python scripts/curate.py embed {output.root}{asked}"
        print(f"once all {parts} shards are through: {merge}")
        return status
    weights = ["--model-weights-path", args.model_weights_path] if _t5(args.model_weights_path) else []
    if encoder == "auto":
        encoder = "t5" if weights else "none"
    captioned = any(place.endswith(".txt") for place in output.files(f"{DATASET}/metas"))
    if encoder == "none" or not captioned:
        embedding = f"{after}, the text embeddings: python scripts/curate.py embed {output.root}"
        print(embedding if captioned else f"{output.uri(DATASET)}: no captioned clip in it")
        return status
    words = ["embed", args.output_clip_path, "--text_encoder", encoder, *weights]
    failed = embed(build_parser().parse_args([*words, "--output-s3-profile-name", output.profile]))
    if output.remote:  # it would be downloaded whole
        print(f"not checked: python scripts/curate.py check {output.uri(DATASET)} downloads it and loads every sample")
        return max(status, failed)
    return max(status, failed, _check(Path(output.uri(DATASET)), output.uri(DATASET), args.num_frames))


def _t5(weights: str) -> str:
    """Return the folder of T5 below that of all weights, "" where there is none."""
    folder = Path(weights) / T5_11B
    return str(folder) if (folder / "config.json").is_file() else ""


def _tell(summary: dict[str, Any], output: Store) -> int:
    """Print totals and errors; return 1 where something failed or nothing was kept, else 0."""
    from cosmos_predict.curate.changes import SCORES

    names = ("errors", "empty", "bare", "uncaptioned", "unscored")
    errors, empty, bare, uncaptioned, unscored = (summary.pop(name) for name in names)
    for name, value in summary.items():
        print(f"{name:32} {f'{value:.1f}' if isinstance(value, float) else value}")
    for where, message in errors.items():
        print(f"failed: {where}: {message}", file=sys.stderr)
    if bare:  # why, and what to change
        for where, reason in [*empty.items()][:SHOWN]:
            print(f"no clip: {where}: {reason}", file=sys.stderr)
        for reason, count in summary["num_clips_filtered_by"].items():
            advice = f"; see {LIMITS[reason]}" if reason in LIMITS else ""
            print(f"rejected: {count} clips: {reason}{advice}", file=sys.stderr)
        print("nothing is kept", file=sys.stderr)
    for name, count in unscored.items():  # the limit of what is missing rejects nothing
        known = name.partition(".")[0] in SCORES.values()  # a stage of one's own need not score every clip
        advice = "; curate.py split ... --redo all scores them again" if known else ""
        told = f"{count} of {summary['num_clips_passed']} kept clips have no {name}, or NaN: its limit lets them pass"
        print(f"{told}{advice}", file=sys.stderr)
    print(f"{'report':32} {output.uri('report.html')}")
    if uncaptioned:
        print(f"{uncaptioned} clips have no caption; next: python scripts/curate.py caption {output.root}")
    return 1 if errors or bare else 0


def _store(args: argparse.Namespace) -> Store:
    return Store(args.output, args.output_s3_profile_name)


def refilter(args: argparse.Namespace) -> int:
    """Run `filter`; 1 where nothing is kept, else 0."""
    from cosmos_predict.curate import own, revise

    given, stages = _given(args, "filters"), _values(args, "stages")
    if "stage" in args:
        given["stage"] = [own.fingerprint(stage) for stage in args.stage]
    summary = revise.refilter(_store(args), {**_values(args, "run"), **stages}, given)
    status = _tell({**summary, "uncaptioned": 0}, _store(args))  # `lacking` tells of these
    for line in revise.lacking(_store(args)):
        print(line)
    return status


def caption(args: argparse.Namespace) -> int:
    """Run `caption`; 1 where a clip could not be captioned, else 0."""
    from cosmos_predict.curate import revise

    given = _given(args, "captions", "models", "writing")
    summary, made, failed = revise.recaption(_store(args), _values(args, "run"), given, args.all)
    summary["errors"] |= failed  # some of these are recorded, too
    after = "then" if summary["uncaptioned"] else "next"
    print(f"{made} clips captioned, {len(failed)} failed; {after}: python scripts/curate.py embed {args.output}")
    return _tell(summary, _store(args))


def embed(args: argparse.Namespace) -> int:
    """Run `embed`; 1 where a caption could not be embedded, else 0."""
    from cosmos_predict.cli.get_t5_embeddings import embed_dataset
    from cosmos_predict.curate.records import Records
    from cosmos_predict.curate.storage import scratch_folder

    if (args.text_encoder, args.pretrained_model_name_or_path, args.cache_dir) == ("t5", T5_11B, None):
        if not (folder := _t5(args.model_weights_path)) and args.model_weights_path != "checkpoints":
            command = "python scripts/download_curate_models.py --models t5_xxl --checkpoint_dir"
            where = args.model_weights_path
            raise ConfigError(f"--model-weights-path {where}: no {T5_11B} in it; {command} {where} fetches it")
        args.pretrained_model_name_or_path = folder or T5_11B
    shared = Records(_store(args), {}).share()
    with shared, scratch_folder() as scratch, _store(args).local(DATASET, scratch, "videos") as dataset:
        return embed_dataset(argparse.Namespace(**{**vars(args), "dataset_path": dataset}))


def dedup(args: argparse.Namespace) -> int:
    """Run `dedup`; 1 where nothing is kept, else 0."""
    from cosmos_predict.curate.dedup import dedup as reject_repeats

    run = _values(args, "run")
    summary, pairs = reject_repeats(_store(args), run, args.similarity, args.embeddings, args.dry_run)
    _tell_pairs(pairs)
    return 0 if args.dry_run else _tell(summary, _store(args))


def _tell_pairs(pairs: Sequence[tuple[float, str, str]]) -> None:
    """Print clips that repeat another one, the least alike first: where the limit is drawn."""
    print(f"{len(pairs)} clips repeat another one{'; similarity, rejected, kept:' if pairs else ''}")
    for alike, clip, other in pairs[:PAIRS]:
        print(f"{alike:10.4f}  {clip}  {other}")
    if len(pairs) > PAIRS:
        print(f"and {len(pairs) - PAIRS} more, which are more alike; the report lists them, unless this was --dry-run")


def shard(args: argparse.Namespace) -> int:
    """Run `shard`; 1 where no clip could be packed, else 0."""
    from cosmos_predict.curate.pack import pack

    target = Store(args.output_dataset_path, args.output_s3_profile_name)
    counts = pack(_store(args), target, args.target_tar_size_mb, args.tars_per_part, args.min_clips_per_tar)
    for reason, count in counts.items():
        print(f"{count:8} clips {reason}")
    return 0 if counts["packed"] else 1


def report(args: argparse.Namespace) -> int:
    """Run `report`; 1 where something failed or nothing was kept, else 0."""
    from cosmos_predict.curate.records import Records
    from cosmos_predict.curate.report import conclude

    records = Records(_store(args), {})
    if not records.videos():
        raise DataError(f"{records.output.root}: no video there that curate.py split has done")
    return _tell(conclude(records), _store(args))


def check(args: argparse.Namespace) -> int:
    """Run `check`; 1 where a sample does not load, else 0."""
    from cosmos_predict.curate.storage import scratch_folder

    dataset = Store(args.dataset, args.output_s3_profile_name)
    if dataset.remote and not dataset.files("videos"):
        dataset = Store(dataset.uri(DATASET), args.output_s3_profile_name)
    if dataset.remote and not (dataset.files("videos") and dataset.files("t5_xxl")):
        expected = "expected a dataset, or the folder above it, with videos/ and t5_xxl/ (curate.py embed makes those)"
        raise DataError(f"{args.dataset}: {expected}")
    with scratch_folder() as scratch, dataset.local("", scratch) as folder:
        return _check(folder, dataset.root, args.num_frames or _recorded_frames(dataset))


def _recorded_frames(dataset: Store) -> int:
    """Return --num-frames of the `split` that made a dataset: by a record of the folder, or of the one above it."""
    from cosmos_predict.curate.records import Records

    for root in (dataset.root, dataset.root.rpartition("/")[0] or "/"):
        records = Records(Store(root, dataset.profile), {})
        for record in map(records.read, records.videos()[:1]):
            return int(record["options"].get("num_frames", 93))
    return 93


def _check(folder: Path, name: str, num_frames: int) -> int:
    from cosmos_predict.curate.split import check as load_all

    good, bad = load_all(folder, num_frames)
    for sample, reason in bad.items():
        print(f"unusable: {sample}: {reason}", file=sys.stderr)
    print(f"{name}: {good} samples of {num_frames} frames load, {len(bad)} do not")
    return 1 if bad or not good else 0
