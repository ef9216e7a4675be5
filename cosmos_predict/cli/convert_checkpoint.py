"""`scripts/convert_checkpoint.py`: published checkpoint files into other published forms.

Converts a checkpoint of a Cosmos diffusion network: key names, kind of file, weights, dtype, LoRA form. Streams tensor
by tensor: a 14B file needs memory for its largest tensor.
"""

from __future__ import annotations

import argparse

from cosmos_predict.checkpoint.dialects import DIALECTS
from cosmos_predict.cli.program import command

_EPILOG = """examples:
  a Predict1 file for diffusers:    INPUT.pt OUT_FOLDER --to diffusers --dtype bfloat16
  the EMA weights alone:            model/iter_000001000.pt ema.safetensors --weights ema
  a LoRA merged into its base:      BASE.pt merged.pt --lora ADAPTER_FOLDER --merge
  adapters out of a whole file:     iter_000001000.pt ADAPTER_FOLDER --lora_form peft
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; imports no torch."""
    lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=_EPILOG, formatter_class=lines)
    add = parser.add_argument
    add("input", help=".pt or .safetensors file, sharded folder, diffusers transformer folder, or adapter folder")
    add("output", help="a .pt or .safetensors file, or a folder")
    add("--to", choices=DIALECTS, default="predict2", help="key names to write (default: %(default)s)")
    add("--from", dest="source", choices=("auto", *DIALECTS), default="auto", help="key names of the input")
    add("--weights", choices=("reg", "ema"), default="reg", help="which weights of a file that has both")
    kinds = ("keep", "bfloat16", "float16", "float32")
    add("--dtype", choices=kinds, default="keep", help="of floating tensors")
    add("--shard_size", help="cut .safetensors output into files of at most this size, such as 5GB")
    add("--lora", nargs="+", default=[], metavar="ADAPTER", help="adapter folders or files for the input")
    add("--merge", action="store_true", help="add the adapters to the weights")
    add("--lora_form", choices=("peft", "infile", "diffusers"), help="write adapters in this form instead")
    add("--model", help="a published model whose configuration the input has, where its tensors do not tell")
    return parser


def run(args: argparse.Namespace) -> None:
    """Convert as the arguments say and print the files written."""
    from cosmos_predict.checkpoint.convert import DTYPES, Conversion, convert
    from cosmos_predict.checkpoint.stream import parse_size
    from cosmos_predict.models.published import published_config

    how = Conversion(
        to=args.to,
        source=None if args.source == "auto" else args.source,
        weights=args.weights,
        dtype=DTYPES[args.dtype],
        max_shard_bytes=parse_size(args.shard_size) if args.shard_size else None,
        lora=args.lora,
        merge=args.merge,
        lora_form=args.lora_form,
        config=published_config(args.model) if args.model else None,
    )
    for file in convert(args.input, args.output, how, progress=True):
        print(file)


main = command(run, build_parser)
