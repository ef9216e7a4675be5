"""`scripts/download_checkpoints.py`, `download_diffusion_checkpoints.py`, `download_diffusion_nemo.py`, `download_curate_models.py`.

What they fetch, and into which folders, is the table `downloads.yaml` beside this file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from cosmos_predict.cli.program import run_program
from cosmos_predict.errors import ConfigError


def main(prog: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run the download command of this name (a key of `downloads.yaml`) and exit."""
    run_program(download, build_parser(prog), argv)


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of one of the commands; published flags keep their names and defaults."""
    table = read_table()[prog]
    types = {entry["type"]: entry.get("default", True) for entry in table if "type" in entry}
    default = [name for name, wanted in types.items() if wanted]
    sizes = sorted({size for entry in table for size in entry.get("sizes", ())}, key=lambda size: float(size[:-1]))
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"Download published weights{'' if types and not sizes else ' with their tokenizer and T5-11B (45 GB)'} "
        "into the folders that the published commands use. The same command continues what was interrupted; it checks sizes "
        "and hashes, of old files too.",
    )
    # What the flags that a command lacks would say.
    parser.set_defaults(table=table, model_sizes=sizes, model_types=None, default_types=default)
    parser.set_defaults(fps=["16"], resolution=["720"], natten=False)
    add = parser.add_argument
    if types and not sizes:
        about = "; ".join(f"{entry['type']}: {entry['about']}" for entry in {e["type"]: e for e in table}.values())
        add("--models", dest="model_types", type=_names(types), required=True, metavar="A,B", help=f"of these: {about}")
    elif types:
        add("--model_types", nargs="+", choices=list(types), help=f"default: {' '.join(default)}")
        add("--model_sizes", nargs="+", choices=sizes, default=sizes[-2:], help=f"default: {' '.join(sizes[-2:])}")
    if any("{fps}" in pattern for entry in table for pattern in entry.get("files", ())):
        add("--fps", nargs="+", choices=["4", "10", "16"], default=["16"], help="of Video2World, 10 or 16; default: 16")
        add("--resolution", nargs="+", choices=["480", "720"], default=["720"], help="of Video2World; default: 720")
        add("--natten", action="store_true", help="also Video2World's sparse-attention weights (720p)")
    add("--checkpoint_dir", type=Path, default=Path("checkpoints"), help="folder to fill; default: checkpoints")
    add("--dryrun", "--dry-run", action="store_true", help="list the files with their sizes and download nothing")
    add("--force", action="store_true", help="replace files of these names that are not the hub's")
    add("--extras", action="store_true", help="also guardrails and prompt models, which this project does not use")
    return parser


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return an argparse type: names of `known`, separated by commas."""

    def names(text: str) -> list[str]:
        given = [name.strip() for name in text.split(",") if name.strip()]
        if not given or set(given) - set(known):
            raise argparse.ArgumentTypeError(f"{text!r}; expected some of {','.join(known)}")
        return given

    return names


def read_table() -> dict[str, list[dict[str, Any]]]:
    """Return what each command fetches; `downloads.yaml` says what the keys mean."""
    import yaml

    return yaml.safe_load(Path(__file__).with_name("downloads.yaml").read_text(encoding="utf-8"))


def repositories(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield repo, folder, revision, files and ignore (patterns) of what `args` choose; choices: files for every --fps and
    --resolution.

    A type that is named and comes in one size needs no --model_sizes. Raises ConfigError where no model is left, and for a
    rate that a type was not published with.
    """
    found = False
    for entry in args.table:
        if entry.get("extra", False) and not args.extras:
            continue
        if "type" in entry and entry["type"] not in (args.model_types or args.default_types):
            continue
        if args.model_types and set(args.model_types) <= set(entry.get("without", ())):
            continue
        sizes = entry.get("sizes", [""])
        chosen = [size for size in sizes if not size or size in args.model_sizes]
        if "type" in entry and args.model_types and len(sizes) == 1:
            chosen = sizes
        patterns = [*entry.get("files", ["*"]), *(entry.get("natten", []) if args.natten else [])]
        if wrong := [fps for fps in args.fps if fps not in entry.get("fps", args.fps)]:
            own = f"it was published with {' and '.join(entry['fps'])}; other types come whole, without --fps"
            raise ConfigError(f"--fps {' '.join(wrong)} is not for --model_types {entry['type']}: {own}")
        expand = [
            pattern.format(fps=fps, resolution=resolution)
            for pattern, fps, resolution in product(patterns, args.fps, args.resolution)
        ]
        for size in chosen:
            found = found or "type" in entry or not args.default_types
            pins = entry.get("revisions")
            yield {
                "repo": entry["repo"].format(size=size),
                "folder": args.checkpoint_dir / entry.get("folder", entry["repo"]).format(size=size),
                "revision": pins.get(size) if isinstance(pins, dict) else pins,
                "files": list(dict.fromkeys(expand)),
                "choices": [p.format(fps="*", resolution="*") for p in patterns if "{" in p],
                "ignore": entry.get("ignore", []),
            }
    if not found:
        known = "; ".join(f"{entry['type']}: {', '.join(entry['sizes'])}" for entry in args.table if "sizes" in entry)
        raise ConfigError(f"nothing of this type was published in size {' or '.join(args.model_sizes)}. Sizes: {known}")


def download(args: argparse.Namespace) -> int:
    """List (`--dryrun`) or download; return 1 where a repository or file failed (the others still come), else 0.

    A file that is asked for by its whole name, and that the repository does not have, is a failure.
    """
    from cosmos_predict.io.hub import fetch_file, list_files

    plan, failed, refused = [], [], set[str]()
    for wanted in list(repositories(args)):
        try:
            patterns = [*wanted["files"], *wanted["choices"]]
            listed = list_files(wanted["repo"], patterns, wanted["ignore"], wanted["revision"])
        except (OSError, ValueError) as error:
            print(f"{wanted['repo']}: {' '.join(wanted['files'])}: not listed, sizes unknown")
            failed.append(error)
            continue
        names = [file.path for file in listed]
        for name in wanted["files"]:
            if not set("*?[") & set(name) and name not in names:
                print(f"{wanted['repo']}: {name}: not there")
                others = ", ".join(names[:12]) + ", ..." * (len(names) > 12)
                failed.append(FileNotFoundError(f"{wanted['repo']} has no {name}; to choose from: {others}"))
        plan += [(wanted["folder"], f) for f in listed if any(fnmatchcase(f.path, p) for p in wanted["files"])]
    for number, (folder, file) in enumerate(plan, start=1):
        print(f"[{number}/{len(plan)}] {folder / file.path}  {file.size / 1e9:.3f} GB", flush=True)
        if args.dryrun or file.repo_id in refused:
            continue
        try:
            new = fetch_file(file, folder, force=args.force)
            print("    downloaded and checked" if new else "    there already, checked")
        except (OSError, ValueError) as error:
            print("    failed")
            failed.append(error)
            refused |= {file.repo_id} if isinstance(error, PermissionError) else set()  # of all its files, then
    print(f"{len(plan)} files, {sum(file.size for _, file in plan) / 1e9:.1f} GB, in {args.checkpoint_dir}")
    for error in failed:
        print(f"error: {error}", file=sys.stderr)
    return 1 if failed else 0
