"""Where the time of a generated clip goes: text, encoding the given frames, DiT, decoding, writing, and all the rest.

    python benchmarks/bench_generate.py                                   # CPU, a small DiT of about half a second a forward
    python benchmarks/bench_generate.py --device cuda --preset 2b_480p    # 2B, random weights, 432x768, 93 frames, 35 steps
    python benchmarks/bench_generate.py --device cuda --preset 2b_720p    # 704x1280

Weights are random: time does not depend on them. Every repeat makes one clip from one given frame through
`pipelines.video2world.generate` with guidance, in bfloat16 on a GPU and float32 on a CPU, after a warm-up of two solver
steps; stages are timed where the pipeline calls them, with the device synchronised before and after. `text` is the tiny
encoder, not T5-11B; `other` is the whole less the stages: solver, noise, moving frames. `overhead` is (total - dit) / total,
what lies outside the DiT's forwards; `overhead_outside_models` leaves out what the tokenizer and the file take as well.
Prints medians and writes `benchmarks/results/bench_generate_<device>.json`, after every repeat.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosmos_predict.data.video_reader import write_video
from cosmos_predict.io.atomic import atomic_write_text
from cosmos_predict.models.build import build_world_model
from cosmos_predict.models.config import ModelConfig, PipeConfig, TokenizerConfig
from cosmos_predict.models.published import published_model
from cosmos_predict.models.sampling import SamplerSettings
from cosmos_predict.models.world_model import WorldModel
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.pipelines.video2world import Clip, generate
from cosmos_predict.text_encoders.build import build_text_encoder
from cosmos_predict.tokenizers.load import build_tokenizer

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).resolve().parent / "results")
STAGES = ("text", "encode", "dit", "decode", "write")
# name -> (published name, frames, (height, width)); seconds that NVIDIA publishes for one H200, with 35 steps.
PRESETS = {
    "2b_480p": ("predict2_2b_video2world", 93, (432, 768), 50.2),
    "2b_720p": ("predict2_2b_video2world", 93, (704, 1280), 221.7),
}


class Clock:
    """Seconds by stage; `timed(stage, f)` returns f with its time counted."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.seconds: dict[str, float] = collections.defaultdict(float)

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = self.now()
            result = function(*args, **kwargs)
            self.seconds[stage] += self.now() - begin
            return result

        return run


def tiny(args: argparse.Namespace) -> tuple[ModelConfig, int, tuple[int, int]]:
    net = DiTConfig(
        model_channels=args.width,
        num_blocks=args.blocks,
        num_heads=args.width // 64,
        adaln_lora_dim=64,
        input_channels=(("latent", 16), ("cond_mask", 1), ("padding", 1)),
        out_channels=16,
    )
    pipe = PipeConfig(net=net, family="predict2", tokenizer=TokenizerConfig("dct"), text_encoder="tiny")
    return ModelConfig(pipe_config=pipe), 33, (192, 256)


def build(args: argparse.Namespace) -> tuple[WorldModel, int, tuple[int, int]]:
    """Return the model with random weights, and the frames and size of its clips."""
    cuda = args.device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    if args.preset == "tiny":
        config, frames, size = tiny(args)
        return build_world_model(config, device=args.device, dtype=dtype).eval(), frames, size
    name, frames, size, _ = PRESETS[args.preset]
    config = published_model(name)
    config.pipe_config.tokenizer = TokenizerConfig("dct")  # for the build alone: Wan's weights are not at hand
    model = build_world_model(config, device=args.device, dtype=dtype).eval()
    model.tokenizer_holder = (build_tokenizer("wan2.1", device=args.device, dtype=dtype),)
    return model, frames, size


def one_clip(model: WorldModel, clock: Clock, clip: Clip, settings: SamplerSettings, folder: Path) -> dict[str, float]:
    clock.seconds.clear()
    begin = clock.now()
    encoder = build_text_encoder("tiny", device="cpu")
    text, _ = clock.timed("text", encoder.encode)(["A robot arm pushes a red block.", "blurred, still"])
    width = model.net.config.crossattn_proj_in_channels or model.net.config.crossattn_emb_channels
    text = torch.nn.functional.pad(text, (0, width - text.shape[2])) if width > text.shape[2] else text[..., :width]
    frames = generate(model, clip, text[:1], text[1:], settings)
    clock.timed("write", write_video)(folder / "clip.mp4", frames, clip.fps)
    total = clock.now() - begin
    row = {stage: clock.seconds[stage] for stage in STAGES}
    other = total - sum(row.values())
    return {**row, "other": other, "total": total, **shares(row, total)}


def shares(row: dict[str, float], total: float) -> dict[str, float]:
    stages = sum(row[stage] for stage in STAGES)
    outside = (row["text"] + total - stages) / total
    return {"overhead": (total - row["dit"]) / total, "overhead_outside_models": outside}


def write(args: argparse.Namespace, device: str, setting: dict[str, Any], run: dict[str, Any]) -> Path:
    """Put the run into the device's file, in place of an older one of this setting."""
    name = "cpu" if args.device == "cpu" else "_".join(device.lower().split())
    path = RESULTS / f"bench_generate_{name}.json"
    runs = json.loads(path.read_text())["runs"] if path.is_file() else []
    setting = json.loads(json.dumps(setting))
    runs = [run for run in runs if run["setting"] != setting] + [{"setting": setting, **run}]
    record = {
        "device": device,
        "torch": torch.__version__,
        "formula": "seconds, medians over clips; overhead = (total - dit) / total; goal: at most 0.10 for forwards of 0.5 s or more; "
        "overhead_outside_models = (text + other) / total",
        "text": "the tiny encoder, not T5-11B",
        "published_h200_seconds": {name: values[3] for name, values in PRESETS.items()},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps({**record, "runs": runs}, indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=("tiny", *PRESETS), default="tiny")
    parser.add_argument("--width", type=int, default=512, help="of the tiny DiT (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=8, help="of the tiny DiT (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, help="solver steps (default: 35 for a published model, 4 for the tiny one)"
    )
    parser.add_argument("--repeats", type=int, help="clips (default: 1 of a published model, 3 of the tiny one)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cuda = args.device == "cuda"
    model, frames, size = build(args)
    if args.compile:
        from cosmos_predict.parallel.activation import compile_blocks

        compile_blocks(model.net)
    steps = args.steps or (4 if args.preset == "tiny" else 35)
    settings = SamplerSettings.for_pipe(model.config.pipe_config, num_steps=steps, guidance=7.0)
    clock = Clock(cuda)
    forwards = []
    forward = clock.timed("dit", model.net.forward)
    model.net.forward = lambda *a, **k: (forwards.append(1), forward(*a, **k))[1]  # type: ignore[method-assign]
    tokenizer = model.tokenizer
    tokenizer.encode, tokenizer.decode = (clock.timed(n, getattr(tokenizer, n)) for n in ("encode", "decode"))
    image = np.random.default_rng(0).integers(0, 255, (1, *size, 3), dtype=np.uint8)
    clip = Clip(image, frames, size)
    device = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {args.threads} threads"
    setting = {name: value for name, value in vars(args).items() if name != "repeats"}
    setting |= {"frames": frames, "size": size, "steps": steps}
    rows: list[dict[str, float]] = []
    medians: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        one_clip(model, clock, clip, dataclasses.replace(settings, num_steps=min(2, steps)), Path(folder))
        for _ in range(args.repeats or (3 if args.preset == "tiny" else 1)):
            forwards.clear()
            rows.append(one_clip(model, clock, clip, settings, Path(folder)))
            print(f"clip {len(rows)}: {rows[-1]['total']:.2f} s", flush=True)
            medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            medians["seconds_per_forward"] = medians["dit"] / len(forwards)
            path = write(args, device, setting, {"medians": medians, "rows": rows})
    print(f"{args.preset}: {frames} frames {size[0]}x{size[1]}, {steps} steps, {len(forwards)} forwards a clip")
    for key, value in medians.items():
        spread = f"  ({min(r[key] for r in rows):.3f} .. {max(r[key] for r in rows):.3f})" if key in rows[0] else ""
        label = {"text": "text (tiny encoder)"}.get(key, key)
        print(f"  {label:24} {value:9.3f}{'  ' if key.startswith('overhead') else ' s'}{spread}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
