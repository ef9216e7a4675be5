"""From the options of a generation command to files: checkpoints opened, prompts encoded, clips made and written."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from PIL import Image
from tqdm import tqdm

from cosmos_predict.checkpoint.lora_forms import read_adapter
from cosmos_predict.checkpoint.lora_runs import adapter_folder, file_hash
from cosmos_predict.cli import predict1
from cosmos_predict.cli.generation import PREDICT1_NAMES, SWITCHES
from cosmos_predict.cli.program import configure_logging, device_of
from cosmos_predict.data.transforms import RESOLUTION_BUCKETS
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.atomic import atomic_path, atomic_write_text
from cosmos_predict.io.embedding_index import encoder_name
from cosmos_predict.models.sampling import SAMPLERS, SamplerSettings
from cosmos_predict.parallel.activation import compile_blocks
from cosmos_predict.parallel.context_parallel import apply_context_parallel
from cosmos_predict.pipelines import requests, video2world
from cosmos_predict.pipelines.load import Checkpoint, content_hash, read_checkpoint
from cosmos_predict.pipelines.processes import Processes, check_division, join_processes
from cosmos_predict.pipelines.prompts import NEGATIVE_PROMPT, encode_prompts, encoder_mark, read_prompt
from cosmos_predict.pipelines.video2world import Clip
from cosmos_predict.tokenizers.load import TOKENIZERS

# Options of one start of the program, not of what it makes, or that others hold the outcome of.
PASSING = ("command", "verbose", "from_sidecar", "batch_input_json", "benchmark", "given", "family", "cp_size")
PASSING += ("checkpoint_dir", "diffusion_transformer_dir", "tokenizer_dir", "video_save_folder", "video_save_name")
PASSING += ("height", "width", "subject_name", "prompt_upsampler_dir", "guardrail_dir", "word_limit_to_skip_upsampler")


def use_sidecar(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Make the options of the sidecar the defaults of `parser`. Raises DataError for that of another command."""
    content = requests.read_sidecar(args.from_sidecar)
    if content["command"] != args.command:
        raise DataError(f"{args.from_sidecar} was written by inference/{content['command']}.py: give it to that")
    other = any("dit_path" in flag or flag in PREDICT1_NAMES["--dit_path"] for flag in args.given)
    own = ("tokenizer_path", "text_encoder") if other else ()  # which another checkpoint has of its own
    parser.set_defaults(**{name: value for name, value in content["arguments"].items() if name not in own})


def generate(args: argparse.Namespace) -> int:
    """Make what `args` ask for, with one checkpoint after the other; return the exit status."""
    if args.use_fast_tokenizer:
        raise ConfigError(f"--use_fast_tokenizer: {SWITCHES['use_fast_tokenizer']}; leave it out")
    if args.natten and args.command == "text2image":
        raise ConfigError("--natten: an image's attention is never sparse; leave it out")
    processes = join_processes(args.num_gpus, args.cfg_parallel, shlex.join(sys.argv), args.device)
    if not processes.is_main:
        configure_logging(args.verbose, level="WARNING")
    device = device_of(args.device)
    if device.type == "cuda" and processes.ranks.world_size > 1:
        device = torch.device("cuda", torch.cuda.current_device())
    args.device, args.num_gpus = device.type if device.index is None else str(device), processes.ranks.world_size
    args.dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    home, dtype = torch.device("cpu") if args.offload else device, getattr(torch, args.dtype)

    if args.command == "video2world" and not args.batch_input_json:
        video2world.check_input(args.input_path, args.num_conditional_frames)
    predict1.find_files(args)
    checkpoints = open_checkpoints(args)
    predict1.settle(args, list(checkpoints.values())[-1], args.num_gpus)
    jobs = read_jobs(args)
    for found in checkpoints.values():
        found.prepare(home, dtype)
    found_clips = [clips_of(job, list(checkpoints.values()), processes) for job in jobs]
    hashes = processes.share(hashes_of(args, checkpoints, jobs) if processes.is_main else {})
    work: list[tuple[argparse.Namespace, list[Clip], dict[str, Any]]] = []
    for job, clips in zip(jobs, found_clips, strict=True):
        content = sidecar_of(job, clips[-1], checkpoints, hashes)
        if args.from_sidecar:
            requests.check_same_files(args.from_sidecar, content)
        if args.batch_input_json and processes.share(requests.is_done(job.save_path, content)):
            logger.info("{}: already there with these settings", job.save_path)
        else:
            work.append((job, clips, content))

    prompts = {prompt for job, _, _ in work for prompt in (job.prompt, job.negative_prompt) if prompt is not None}
    options = {"device": device, "dtype": "bfloat16" if args.downcast_text_encoder else None}
    for stage in range(len(checkpoints)) if work else ():
        found = checkpoints.pop(next(iter(checkpoints)))
        net = found.model.net.config
        texts = encode_prompts(prompts, net, found.encoder(args.text_encoder), **options) if processes.is_main else {}
        texts = processes.share(texts)
        found.load(home, dtype)
        apply_context_parallel(found.model.net, processes.context)
        if args.compile:
            compile_blocks(found.model.net)
        steps = len(found.settings.sigmas()) - 1
        for job, clips, content in work:
            clip, seconds = clips[stage], []
            pair = texts[job.prompt], texts.get(job.negative_prompt)
            for _ in range(4 if args.benchmark else 1):
                begin = time.perf_counter()
                bar = tqdm(total=steps * clip.num_chunks, unit="step", disable=not processes.is_main)
                more = {"on_step": lambda *_, bar=bar: bar.update(), "spread": processes.spread, "device": device}
                frames = video2world.generate(found.model, clip, *pair, found.settings, **more)
                bar.close()
                seconds.append(time.perf_counter() - begin)
            if args.benchmark:
                logger.info("{}: {:.2f} s, mean of the last 3 of 4", job.save_path, sum(seconds[1:]) / 3)
            if checkpoints:
                clips[-1].input_path = frames
            elif processes.is_main:
                write(job, frames, clip.fps, content)
    return 0


def open_checkpoints(args: argparse.Namespace) -> dict[str, Checkpoint]:
    """Return the checkpoints that `args` ask for, in the order of their work, by option. What describes one checkpoint
    (adapters, config, tokenizer, guidance) is for the last.
    """
    folder = f"checkpoints/nvidia/Cosmos-Predict2-{args.model_size}"
    image = f"{folder}-Text2Image/model{'_distilled' if args.distill_steps else ''}.pt"
    kind = "-natten" if args.natten else ""
    video = f"{folder}-Video2World/model-{args.resolution or 720}p-{args.fps or 16:g}fps{kind}.pt"
    places = {"dit_path": image if args.command == "text2image" else video}
    if args.command == "text2world" and not args.dit_path:
        places = {"dit_path_text2image": image, "dit_path_video2world": video}
    found: dict[str, Checkpoint] = {}
    for flag, place in places.items():
        path, last = vars(args)[flag] or place, flag == list(places)[-1]
        if not vars(args)[flag] and not Path(place).exists():
            advice = "or scripts/download_checkpoints.py"
            if args.lora_path:
                bases = {base_of(lora, args.load_ema) for lora in args.lora_path}
                advice = f"the base of the adapters: {' and '.join(sorted(bases))}"
            raise FileNotFoundError(f"no published checkpoint at {place}: give --{flag} PATH, {advice}")
        own = {name: vars(args)[name] for name in ("config", "tokenizer_path", "natten")}
        own["lora_paths"] = args.lora_path
        checkpoint = read_checkpoint(path, load_ema=args.load_ema, **(own if last else {}))
        if args.command == "video2world" and (args.use_lora or args.lora_rank or args.lora_alpha):
            checkpoint.expect_lora(args.lora_rank, args.lora_alpha)
        pipe = checkpoint.config.pipe_config
        changes: dict[str, Any] = {"num_steps": args.num_steps, "cfg_batch": args.cfg_batch}
        changes["guidance"] = args.guidance if last else pipe.sampler.get("guidance", 4.0)
        changes |= SAMPLERS[args.sampler] if args.sampler else {}
        if args.distill_steps and (args.command == "text2image" or not last):
            changes |= {"solver": "distilled", "num_steps": args.distill_steps, "guidance": 0.0}
        checkpoint.settings = SamplerSettings.for_pipe(pipe, **changes)
        found[flag] = checkpoint
    return found


def read_jobs(args: argparse.Namespace) -> list[argparse.Namespace]:
    """Return a copy of `args` for every file to make, with its own prompts, output, seed and input, which is checked."""
    suffixes = (".jpg", ".png", ".jpeg") if args.command == "text2image" else (".mp4",)
    items: list[dict[str, Any]] = [{}]
    if args.batch_input_json:
        required = ["prompt"] + ["input_path"] * (args.command == "video2world")
        name = f"{args.video_save_folder}/{{}}" if args.family == "predict1" else "output_{}"
        lines = "--batch_input_path" in args.given
        items = requests.read_batch(args.batch_input_json, required, suffixes[0], name, lines=lines)
    elif args.subject_name and "--prompt" not in args.given and not args.from_sidecar:
        args.prompt = ""
    elif not args.prompt and not args.subject_name and args.command != "video2world":
        raise ConfigError("--prompt is empty: say what to make")
    jobs = [argparse.Namespace(**{**vars(args), **item}) for item in items]
    for number, job in enumerate(jobs):
        try:
            job.save_path = requests.output_path(job.save_path, suffixes)
            check_output(job)
            if args.command == "video2world":
                video2world.check_input(job.input_path, job.num_conditional_frames)
        except (ConfigError, DataError, FileNotFoundError) as error:
            if not args.batch_input_json:
                raise
            raise type(error)(f"{args.batch_input_json}: item {number}: {error}") from error
    return jobs


def check_output(job: argparse.Namespace) -> None:
    """Raise ConfigError where the output, or the settings beside it, would replace what the clip is made from."""
    written = {path.resolve() for path in (job.save_path, requests.sidecar_path(job.save_path))}
    for name in ("input_path", "batch_input_json", "prompt", "negative_prompt"):
        given = vars(job).get(name) or ""
        if "\0" not in given and Path(given).resolve() in written:  # a prompt may be any text
            raise ConfigError(f"--save_path {job.save_path} would replace {given}, --{name}: give another")


def clips_of(job: argparse.Namespace, checkpoints: list[Checkpoint], processes: Processes) -> list[Clip]:
    """Settle what `job` leaves open (prompts, frames, size, fps), and return the clip of every checkpoint, checked."""
    made_for, video = checkpoints[-1].clip, job.command == "video2world"
    job.prompt, encoder = read_prompt(job.prompt), encoder_name(checkpoints[-1].encoder(job.text_encoder))
    if job.negative_prompt is None:
        # An embedding of Cosmos-Reason1 is often made elsewhere, and its 14 GB then are not here.
        known = encoder == "t5" or (encoder == "cosmos_reason1" and not isinstance(job.prompt, Path))
        job.negative_prompt = NEGATIVE_PROMPT if known and job.command != "text2image" else ""
    job.negative_prompt = read_prompt(job.negative_prompt) or None
    if job.subject_name:
        if isinstance(job.prompt, Path):
            what = f"{job.prompt} is an embedding"
            raise ConfigError(f"--subject_name goes before a prompt of text, and {what}: leave it out")
        job.prompt = f"A video of sks {job.subject_name}. {job.prompt}".rstrip()
    if not job.prompt and processes.is_main:
        logger.warning("{}: the prompt is empty, nothing but the input says what happens (--prompt)", job.save_path)
    if job.command == "text2image" or len(checkpoints) > 1:
        check_task(checkpoints[0], "text2image")
    if job.command != "text2image" and job.num_frames is None:
        check_task(checkpoints[-1], job.command)
    job.size = job.size or size_of(made_for.video_size, job.aspect_ratio, job.resolution)
    job.num_frames = 1 if job.command == "text2image" else job.num_frames or made_for.num_frames
    job.fps = job.fps or made_for.fps
    given = job.input_path if video else "the image" if len(checkpoints) > 1 else None
    shape = (job.num_frames, (job.size[0], job.size[1]), job.fps)
    clips = [Clip(given, *shape, job.num_conditional_frames, job.seed, job.num_chunks)]
    if len(checkpoints) > 1:
        size = size_of(checkpoints[0].clip.video_size, job.aspect_ratio, None)
        clips.insert(0, Clip(None, 1, size, seed=job.seed))
    for checkpoint, clip in zip(checkpoints, clips, strict=True):
        frames = video2world.latent_shape(checkpoint.model, clip)[2]
        if processes.context is not None and frames > 1:
            heads = checkpoint.model.net.config.num_heads
            check_division(processes.context.size(), frames, heads, job.cfg_parallel)
    return clips


def check_task(found: Checkpoint, command: str) -> None:
    """Raise ConfigError where a checkpoint of images is to make clips, or one of clips images."""
    frames = found.clip.num_frames
    if (frames == 1) != (command == "text2image"):
        makes = f"clips of {frames} frames: use text2world.py (from text alone) or video2world.py"
        raise ConfigError(f"{found.path} makes {'images: use text2image.py' if frames == 1 else makes}")


def size_of(made_for: tuple[int, int], ratio: str | None, resolution: str | None) -> tuple[int, int]:
    """Return (height, width) of a size class and an aspect ratio, where not given those of the checkpoint's size."""
    if not ratio and not resolution:
        return made_for
    names = [name for name, sizes in RESOLUTION_BUCKETS.items() if made_for[::-1] in sizes.values()]
    if not resolution and not names:
        size = f"{made_for[0]} x {made_for[1]}"
        raise ConfigError(f"--aspect_ratio {ratio}: the checkpoint's {size} is no published size; give --size instead")
    width, height = RESOLUTION_BUCKETS[resolution or names[0]][ratio or "16:9"]
    return height, width


def base_of(lora: str, ema: bool) -> str:
    """Return what adapters say of the weights that they were trained beside."""
    adapter = read_adapter(adapter_folder(lora, ema), ema=ema)
    return f"{adapter.base or 'unnamed'} ({adapter.base_hash or 'no hash noted'})"


def reads_text(job: argparse.Namespace, encoder: str) -> bool:
    """Return whether `encoder` is needed for the prompts of `job`: those of an embedding, and no text, need none."""
    empty = "" if encoder_name(encoder) == "cosmos_reason1" else None
    return any(isinstance(prompt, str) and prompt != empty for prompt in (job.prompt, job.negative_prompt))


def hashes_of(
    args: argparse.Namespace, checkpoints: dict[str, Checkpoint], jobs: list[argparse.Namespace]
) -> dict[str, Any]:
    """Return `sha256:HEX` of the files that all jobs share, by option; `OPTION part` where the part has none of its own."""
    marks: dict[str, Any] = {"config": content_hash(args.config)} if args.config else {}
    for flag, found in checkpoints.items():
        marks[flag], last = found.hash(), flag == list(checkpoints)[-1]
        tokenizer, encoder = found.place(), found.encoder(args.text_encoder)
        if tokenizer not in TOKENIZERS:
            marks["tokenizer_path" if last else f"{flag} tokenizer"] = content_hash(tokenizer)
        if any(reads_text(job, encoder) for job in jobs) and (mark := encoder_mark(encoder)):
            marks["text_encoder" if last else f"{flag} text encoder"] = mark
        if found.loras:
            marks["lora_path"] = [content_hash(path) for path in found.loras]
    return marks


def sidecar_of(
    job: argparse.Namespace, clip: Clip, checkpoints: dict[str, Checkpoint], hashes: dict[str, Any]
) -> dict[str, Any]:
    """Return what is kept beside an output: every option, resolved, the hashes of its files, and where it was made."""
    final = list(checkpoints.values())[-1]
    encoders = {found.encoder(job.text_encoder) for found in checkpoints.values()}
    if not any(reads_text(job, encoder) for encoder in encoders):
        hashes = {name: mark for name, mark in hashes.items() if not name.endswith("encoder")}
    prompts = {name: vars(job)[name] for name in ("prompt", "negative_prompt")}
    hashes = hashes | {name: content_hash(prompt) for name, prompt in prompts.items() if isinstance(prompt, Path)}
    arguments = {key: value for key, value in vars(job).items() if key not in PASSING}
    arguments |= {flag: str(found.path) for flag, found in checkpoints.items()}
    arguments |= {name: str(arguments[name] or "") for name in ("prompt", "negative_prompt", "save_path")}
    arguments |= {"tokenizer_path": final.place(), "text_encoder": min(encoders) if len(encoders) == 1 else ""}
    arguments |= {"size": list(job.size), "lora_path": [str(path) for path in final.loras]}
    if job.command == "video2world":
        hashes = {**hashes, "input_path": file_hash(job.input_path)}
    name = f"cpu, {torch.get_num_threads()} thread(s)" if job.device == "cpu" else torch.cuda.get_device_name()
    return {
        "command": job.command,
        "hashes": hashes,
        "num_frames": clip.total_frames,
        "sampler": dataclasses.asdict(final.settings),
        "environment": {"torch": torch.__version__, "device": name, "processes": job.num_gpus},
        "arguments": arguments,
    }


def write(job: argparse.Namespace, frames: np.ndarray, fps: float, content: dict[str, Any]) -> None:
    """Write an output, then the settings beside it."""
    if job.command == "text2image":
        with atomic_path(job.save_path) as temporary:
            Image.fromarray(frames[0]).save(temporary, quality=95)
    else:
        write_video(job.save_path, frames, fps)
    if job.family == "predict1" and job.command != "text2image":
        atomic_write_text(job.save_path.with_suffix(".txt"), str(job.prompt))
    requests.write_sidecar(job.save_path, content)
    logger.info("{}: {} frame(s) of {} x {}", job.save_path, *frames.shape[:3])
