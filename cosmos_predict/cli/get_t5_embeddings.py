"""`scripts/get_t5_embeddings.py`: a text embedding for every caption of a dataset folder.

Reads `DATASET/metas/*.txt` and writes `DATASET/t5_xxl/<name>.pickle`, as the published script does; captions in folders
of metas/, one a camera, go to those of t5_xxl/. Files that are already there are kept, so an interrupted run is resumed
by running it again; those of edited captions are made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_predict.cli.program import HelpFormatter, command, positive_int, tell_failed
from cosmos_predict.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cosmos_predict.text_encoders.build import TextEncoder
    from cosmos_predict.text_encoders.embed_captions import Caption

T5_11B = "google-t5/t5-11b"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; published flags keep their names and defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--dataset_path", type=Path, default=Path("datasets/hdvila"), help="folder with metas/")
    table = (
        "captions to write to metas/ first: .csv or .jsonl with the columns file (or clip_id) and prompt (or caption)"
    )
    parser.add_argument("--meta_csv", type=Path, help=table)
    add_encoder_arguments(parser)
    return parser


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how captions are embedded; every script that makes embeddings has them."""
    add = parser.add_argument
    add("--max_length", type=positive_int, default=512, help="tokens kept of a caption, its end mark included")
    add("--cache_dir", type=Path, help="the model's folder, or where to look for it and to download it to")
    about = "folder or Hugging Face name; this default stands for the usual one of any --text_encoder"
    add("--pretrained_model_name_or_path", default=T5_11B, help=about)
    encoders = ("t5", "cosmos_reason1", "tiny")
    about = "cosmos_reason1: for Predict2.5, 103 MB a caption; tiny: offline, for tests and tiny models only"
    add("--text_encoder", choices=encoders, default="t5", help=about)
    add("--batch_size", type=positive_int, default=8, help="captions encoded at a time")
    kinds = ("float32", "bfloat16", "float16", "int8")
    add("--dtype", choices=kinds, help="of the weights, by default float32 for t5 and bfloat16 for cosmos_reason1")
    add("--device", help="where to compute, as cuda or cpu; by default t5 takes a GPU where there is one")
    add("--format", choices=("pickle", "safetensors"), default="pickle", help="of the files written")
    add("--overwrite", action="store_true", help="make all files again, not just those whose caption has changed")


def embed_dataset(args: argparse.Namespace, failed_before: Mapping[Path, str] | None = None) -> int:
    """Embed the captions of one dataset folder; return the exit status.

    failed_before: {file: reason} of what went wrong in making the captions, reported with the rest.
    """
    captions, failed = read_captions(args.dataset_path, f".{args.format}")
    return embed(args, captions, {**failed, **(failed_before or {})}, args.dataset_path / "t5_xxl")


def embed_with_table(args: argparse.Namespace) -> int:
    """Embed the captions of one dataset folder, with `--meta_csv` those of a table first; return the exit status."""
    if args.meta_csv is None:
        return embed_dataset(args)
    from cosmos_predict.data.captions import captions_from_csv

    written, kept, failed = captions_from_csv(args.dataset_path, args.meta_csv, getattr(args, "prompt_prefix", ""))
    print(f"{args.dataset_path / 'metas'}: {written} written, {kept} unchanged")
    return embed_dataset(args, failed)


def embed(args: argparse.Namespace, captions: Sequence[Caption], failed: dict[Path, str], folder: Path) -> int:
    """Embed captions into `folder` and report; return the exit status. failed: {file: reason} of captions left out."""
    from cosmos_predict.io.embedding_index import encoder_name
    from cosmos_predict.text_encoders.build import build_text_encoder
    from cosmos_predict.text_encoders.embed_captions import embed_captions

    source = args.text_encoder
    if source != "tiny" and args.pretrained_model_name_or_path != T5_11B:
        source = args.pretrained_model_name_or_path
        if (made_by := encoder_name(source)) != args.text_encoder:
            raise ConfigError(
                f"--pretrained_model_name_or_path {source} is a {made_by}, --text_encoder is {args.text_encoder}: give "
                f"--text_encoder {made_by}, or the folder of a {args.text_encoder}"
            )

    def build() -> TextEncoder:
        try:
            return build_text_encoder(source, dtype=args.dtype, device=args.device, cache_dir=args.cache_dir)
        except ConnectionError as error:
            raise ConnectionError(f"{error} Tests and tiny models need no download: --text_encoder tiny") from error

    options = {name: vars(args)[name] for name in ("max_length", "batch_size", "overwrite")}
    report = embed_captions(captions, args.text_encoder, build, **options)
    failed |= report.failed
    status = tell_failed(failed)
    if report.full:
        print(f"{report.full} captions fill all {args.max_length} tokens; what they say beyond is cut")
    print(f"{folder}: {report.written} written, {report.skipped} skipped (already there), {len(failed)} failed")
    return status


def read_captions(dataset: Path, suffix: str) -> tuple[list[Caption], dict[Path, str]]:
    """Return the captions of `dataset/metas/**/*.txt`, sorted, and {file: reason} of those that cannot be used.

    Raises FileNotFoundError where there is no such folder, DataError where it holds no caption file.
    """
    from cosmos_predict.text_encoders.embed_captions import Caption

    metas = dataset / "metas"
    if not metas.is_dir():
        raise FileNotFoundError(f"{metas} is no folder; expected one caption file metas/NAME.txt per video")
    # Names with a leading dot are what some systems leave beside copied files.
    paths = sorted(path for path in metas.rglob("*.txt") if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{metas} holds no .txt file; expected one caption file metas/NAME.txt per video")
    captions, failed = [], {}
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            failed[path] = f"cannot be read as UTF-8 text: {error}"
            continue
        if text:
            output = dataset / "t5_xxl" / path.relative_to(metas).with_name(f"{path.stem}{suffix}")
            captions.append(Caption(source=path, text=text, output=output))
        else:
            failed[path] = f"the caption is empty; write one, or remove the file, its video and t5_xxl/{path.stem}.*"
    return captions, failed


main = command(embed_with_table, build_parser)
