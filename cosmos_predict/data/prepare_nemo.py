"""From videos to Cosmos-1.0's cached latents (`nemo_cache`): draw windows, encode each distinct one once, write, resume.

Windows are decoded, never whole videos, so memory does not depend on how long a video is.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from loguru import logger
from tqdm import tqdm

from cosmos_predict.data import clip_sampler, nemo_cache, transforms, video_reader
from cosmos_predict.data.bad_items import WriteReport, listing
from cosmos_predict.data.latent_cache import refuse_difference
from cosmos_predict.errors import DataError
from cosmos_predict.io.lock import hold
from cosmos_predict.randomness import numpy_generator

S = TypeVar("S")
R = TypeVar("R")
GIVEN_FRAMES = 9  # of the conditioning latent
INSTRUCTION_KEY = "language_instruction_0"
Encode = Callable[[torch.Tensor], torch.Tensor]  # (1, 3, T, H, W) in [-1, 1] to (1, C, t, h, w)
Embed = Callable[[Sequence[str]], Mapping[str, torch.Tensor]]  # texts to {text: (n, 1024)}


@dataclass(frozen=True)
class Chunk:
    """A window to encode: a video, what it holds, its text, and the window's first frame."""

    video: Path
    info: video_reader.VideoInfo
    prompt: str
    start: int


@dataclass
class PrepareReport(WriteReport):
    """What `write_chunks` did; windows and texts encoded for the samples written."""

    windows: int = 0
    prompts: int = 0


def draw_chunks(
    folder: Path, prompt_of: Callable[[Path], str], num_frames: int, count: int, seed: int, per_video: bool
) -> tuple[list[Chunk], dict[Path, str]]:
    """Return windows of the videos of a flat folder, and why a video cannot be used.

    Over all videos `count`, each of a random video; or of every video `count`, all it has where it has no more. Starts are
    random, a function of (seed, number of the window). Videos that are too short are named in the log and left out.
    Raises DataError where there is no video, or no usable one.
    """
    there, suffixes = sorted(folder.iterdir()) if folder.is_dir() else [], ", ".join(video_reader.VIDEO_SUFFIXES)
    files = [path for path in there if video_reader.is_video(path)]
    if not files:
        found = ", ".join(path.name for path in there[:5]) if folder.is_dir() else "no such folder"
        raise DataError(
            f"{folder}: no video in it ({suffixes}), but: {found or 'nothing'}; give the folder of the videos"
        )
    others = [path.name for path in there if path.is_file() and path not in files and path.name[0] != "."]
    if others:
        names = ", ".join(others[:10])
        logger.warning("{}: not read, for no name of a video ({}): {} files: {}", folder, suffixes, len(others), names)
    usable: list[tuple[Path, video_reader.VideoInfo, str]] = []
    short, failed = dict[Path, str](), dict[Path, str]()
    for path in files:
        try:
            info = video_reader.probe(path)
            if info.frames < num_frames:
                short[path] = f"{info.frames} frames, a chunk needs {num_frames}; use --num_frames or a longer video"
            else:
                usable.append((path, info, prompt_of(path)))
        except (DataError, OSError) as error:
            failed[path] = str(error)
    reasons = listing((path.name, why) for path, why in (short | failed).items())
    if not usable:
        raise DataError(f"{folder}: no usable video: {reasons}")
    if reasons:
        logger.warning("{}: {} of {} videos left out: {}", folder, len(short) + len(failed), len(files), reasons)
    if per_video:
        wanted = [item for item in usable for _ in range(min(count, item[1].frames - num_frames + 1))]
    else:
        drawn = (int(numpy_generator(seed, n, "video").integers(0, len(usable))) for n in range(count))
        wanted = [usable[item] for item in drawn]
    chunks: list[Chunk] = []
    for number, (path, info, prompt) in enumerate(wanted):
        last = info.frames - num_frames
        start = clip_sampler.draw_start(last, seed=seed, sample_number=number)
        if per_video and last < count:
            start = chunks[-1].start + 1 if chunks and chunks[-1].video == path else 0
        chunks.append(Chunk(path, info, prompt, start))
    return chunks, failed


def read_instruction(path: Path) -> str:
    """Return the instruction in a file; raises DataError for one that is missing, no JSON object, or without a text."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a JSON object with the key {INSTRUCTION_KEY} ({error})") from error
    text = content.get(INSTRUCTION_KEY) if isinstance(content, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{path}: no text under the key {INSTRUCTION_KEY}; it holds {json.dumps(content)[:200]}")
    return text.strip()


def write_chunks(
    chunks: Sequence[Chunk],
    folder: Path,
    settings: Mapping[str, Any],
    encode: Encode,
    embed: Embed,
    device: torch.device | str = "cpu",
    num_workers: int = 1,
) -> PrepareReport:
    """Write sample I of chunk I; what is there already, of the same settings, is kept.

    settings: num_frames, height, width, fit (`published`: stretched and rounded to uint8, or one of `transforms.fit_frames`),
    conditioning_latent, and whatever else the files depend on. num_workers: threads that decode, each a window ahead.
    A window that fails is reported and left out, the others go on.

    Raises ConfigError where `folder` was made with other settings or another process writes it, DataError where it holds
    samples of unknown make or no window could be encoded, CosmosPredictError where a file cannot be written.
    """
    rows = json.dumps([(c.video.name, c.info.frames, c.start, c.prompt) for c in chunks])
    settings = {**settings, "windows": f"{len(chunks)} of hash {hashlib.sha256(rows.encode()).hexdigest()[:12]}"}
    folder.mkdir(parents=True, exist_ok=True)
    refusal = f"{folder}: another process is writing it; wait for it, or choose another folder"
    with hold(folder.absolute().with_name(f".{folder.absolute().name}.lock"), refusal):
        there, made = nemo_cache.list_samples(folder), nemo_cache.read_settings(folder)
        if there and made is None:
            raise DataError(f"{folder}: holds {len(there)} samples of unknown make; choose another folder")
        if there and made is not None:
            advice = "in this run; give the same flags, choose another folder, or remove this one"
            refuse_difference(made["settings"], settings, folder, advice)
        kinds, report = {*nemo_cache.NEEDED, *nemo_cache.UNREAD}, PrepareReport()
        kinds -= set() if settings["conditioning_latent"] else {nemo_cache.CONDITIONING}
        todo: dict[Chunk, list[int]] = {}
        for number, chunk in enumerate(chunks):
            if kinds <= there.get(str(number), set()):
                report.kept += 1
            else:
                todo.setdefault(chunk, []).append(number)
        nemo_cache.write_settings(folder, settings, finished=not todo)
        for path in folder.glob(".*.tmp"):  # of a killed run
            shutil.rmtree(path, ignore_errors=True)
        texts = embed(sorted({chunk.prompt for chunk in todo})) if todo else {}
        report.prompts = len(texts)

        def read(chunk: Chunk) -> torch.Tensor:
            ids = np.arange(chunk.start, chunk.start + settings["num_frames"])
            frames = torch.from_numpy(video_reader.read_frames(chunk.video, ids)).permute(0, 3, 1, 2)
            size, fit = (settings["height"], settings["width"]), settings["fit"]
            if fit == "published":
                return transforms.resize_uint8(frames, size, "bilinear")
            return transforms.fit_frames(frames, size, fit).frames

        def latents_of(frames: Future[torch.Tensor]) -> list[torch.Tensor]:
            return _encode(frames.result(), encode, device, settings["conditioning_latent"])

        encoded = _ahead(latents_of, _ahead(read, todo, num_workers), 1)  # beside the writing below
        bar = tqdm(total=len(chunks), initial=report.kept, unit="chunk", desc="latents")
        with bar, contextlib.closing(encoded):  # on an error nothing more is encoded
            for (chunk, numbers), latents in zip(todo.items(), encoded, strict=True):
                try:
                    latents.result()
                except (DataError, OSError) as error:
                    report.failed[chunk.video] = str(error)
                    continue
                about = {"height": chunk.info.height, "width": chunk.info.width, "fps": chunk.info.fps}
                about |= {"num_frames": settings["num_frames"], "video_path": chunk.video.name}
                about |= {"start_frame": chunk.start, "caption": chunk.prompt}
                for number in numbers:
                    nemo_cache.write_sample(folder, str(number), latents.result(), texts[chunk.prompt], about)
                    bar.update()
                report.windows += 1
                report.written += len(numbers)
        if not report.windows + report.kept:
            raise DataError(f"{folder}: no window could be encoded: {next(iter(report.failed.values()))}")
        nemo_cache.write_settings(folder, settings, finished=True)
        return report


def _ahead(function: Callable[[S], R], items: Iterable[S], workers: int) -> Generator[Future[R], None, None]:
    """Yield function(item) of every item in order, the next ones being made in `workers` threads."""
    rest, pool = iter(items), ThreadPoolExecutor(workers)
    try:
        pending = deque(pool.submit(function, item) for item in itertools.islice(rest, workers))
        while pending:
            pending.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
            yield pending.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(frames: torch.Tensor, encode: Encode, device: torch.device | str, conditioning: bool) -> list[torch.Tensor]:
    """Return the latent (C, t, h, w) bfloat16 of frames (T, 3, H, W) uint8, and that of the given frames where asked."""
    video = frames.transpose(0, 1)[None].contiguous().to(device)
    video = video.float().div_(127.5).sub_(1)  # as `transforms.normalize_video`, in place
    latents = [encode(video)]
    if conditioning:
        video[:, :, GIVEN_FRAMES:] = 0
        latents.append(encode(video))
    latents = [latent[0].to("cpu", torch.bfloat16) for latent in latents]
    if not all(bool(latent.isfinite().all()) for latent in latents):
        raise DataError("the latents of a window are not finite")
    return latents
