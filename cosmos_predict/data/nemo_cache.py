"""Cosmos-1.0's cached latents: five files a sample in one flat folder, as `scripts/prepare_dataset.py` writes them.

    I.video_latent.pth          bfloat16 (C, t, h, w), the tokenizer's latent, not multiplied by sigma_data
    I.conditioning_latent.pth   the same of the first 9 frames, mid grey behind them; nothing here reads it
    I.t5_text_embeddings.pth    bfloat16 (512, 1024), zeros behind the last token
    I.t5_text_mask.pth          bfloat16 (512,) ones, whatever the text is
    I.info.json                 height and width of the video file in pixels, its fps, num_frames of the window, ...

I is what comes before the first dot: 0, 1, ... `FOLDER.json` beside the folder (inside it would be taken for a sample by
other readers) says how it was made and whether it is finished; other tools write none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from cosmos_predict.config.lazy import configurable
from cosmos_predict.data import transforms
from cosmos_predict.data.bad_items import BadItems, listing, refuse_bad
from cosmos_predict.data.captions import TEXT_LENGTH, load_text
from cosmos_predict.data.latent_cache import TokenizerSource, noted_tokenizer, refuse_difference
from cosmos_predict.data.loader import NumberedDataset
from cosmos_predict.errors import CheckpointError, ConfigError, CosmosPredictError, DataError
from cosmos_predict.io.atomic import atomic_path, atomic_write_text
from cosmos_predict.io.tensors import load_torch_file

LATENT, TEXT, INFO = NEEDED = ("video_latent.pth", "t5_text_embeddings.pth", "info.json")
MASK, CONDITIONING = UNREAD = ("t5_text_mask.pth", "conditioning_latent.pth")
_MAKE = "python scripts/prepare_dataset.py"


@configurable
class NemoCacheDataset(NumberedDataset):
    """The samples of such a folder: as `VideoFolderDataset`'s, with `latent` (C, t, h, w) as stored for `video`.

    Differences from the published reader, whose values are wrong or unused: `image_size` and `padding_mask` are those of the
    resized frames that the latent was made of, `t5_text_mask` is 1 for real tokens only, and the conditioning latent is not
    read (training takes the given frames out of `latent`; the file may be missing).

    Args:
        dataset_dir: the folder.
        num_frames: T of the experiment; None: the folder's.
        video_size: (H, W) of the experiment; None: the folder's.
        seed, shuffle: of the order.
        strict, max_bad_share: as in `VideoFolderDataset`, of samples that are incomplete, damaged or of another size.
        spatial_compression: pixels that one latent pixel stands for, in height and width.
        tokenizer: the run's; name, options and (where its file is there) the file's hash are compared with what FOLDER.json
            notes; without that file nothing is. Nor is the dtype: these latents are rounded to bfloat16 whatever it was.

    Raises:
        DataError: no such folder, none of these files in it, an unfinished cache, too many incomplete samples.
        ConfigError: latents of another size or tokenizer than the experiment's; the message names both.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        num_frames: int | None = None,
        video_size: Sequence[int] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        strict: bool = False,
        max_bad_share: float = 0.1,
        spatial_compression: int = 8,
        tokenizer: TokenizerSource | None = None,
    ) -> None:
        self.dataset_dir = folder = Path(dataset_dir)
        made, samples = read_settings(folder), list_samples(folder)
        if made and not made["finished"]:
            raise DataError(f"{folder}: the cache is not finished; run the command that makes it again ({_MAKE})")
        self.key = made["settings"] if made else dict[str, Any]()
        if tokenizer is not None:
            wanted = {n: value for n, value in noted_tokenizer(self.key, tokenizer).items() if n != "tokenizer_dtype"}
            advice = f"in the configuration; set model.config.pipe_config.tokenizer, or make another cache ({_MAKE})"
            refuse_difference(self.key, wanted, folder, advice)
        incomplete = {name: sorted({*NEEDED} - kinds) for name, kinds in samples.items()}
        self.missing = {name: f"no {', '.join(kinds)}" for name, kinds in incomplete.items() if kinds}
        self.names = [name for name in samples if name not in self.missing]
        torn = listing((f"{name}.*", kinds) for name, kinds in self.missing.items())
        if not self.names or (torn and strict):
            raise DataError(
                f"{folder}: expected samples I.{', I.'.join(NEEDED)}, found {torn or 'none'}; make them with: {_MAKE}"
            )
        if torn:
            logger.warning("{}: incomplete samples are left out: {}", folder, torn)
        refuse_bad(folder, len(self.missing), len(samples), max_bad_share, torn)
        for name in self.names:  # the size is that of the first one that can be read
            try:
                frames = read_info(folder, name)["num_frames"]
                self.latent_shape = _read_tensor(folder, name, LATENT, 4).shape
                break
            except (DataError, OSError):
                if name == self.names[-1]:
                    raise
        size = [self.latent_shape[2] * spatial_compression, self.latent_shape[3] * spatial_compression]
        self.num_frames, self.video_size = num_frames or frames, tuple(size if video_size is None else video_size)
        if self.num_frames != frames or [*self.video_size] != size:
            height, width = self.video_size
            raise ConfigError(
                f"{folder}: its latents {tuple(self.latent_shape)} are of {frames} frames of {size[0]} x {size[1]} (H x W), "
                f"the experiment's num_frames={self.num_frames} and video_size=[{height},{width}]; set "
                f"dataloader_train.dataset.num_frames={frames} and .video_size=[{size[0]},{size[1]}], or make the cache again "
                f"with {_MAKE} --num_frames {self.num_frames} --height {height} --width {width}"
            )
        encoder = self.key.get("text_encoder")
        self.text_encoders = {encoder: folder} if encoder else {}
        files = [folder / f"{name}.{LATENT}" for name in self.names]
        shapes = [(frames, *size)] * len(files)
        super().__init__(BadItems(folder, files, shapes, int(seed), strict, max_bad_share), shuffle)

    @property
    def latent_shapes(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """{(T, H, W): (C, t, h, w)} of the samples."""
        return {self.shapes[0]: tuple(self.latent_shape)}

    def read_sample(self, name: str) -> tuple[dict[str, Any], torch.Tensor]:
        """Return the info and the latent (C, t, h, w) of the sample of that name; raises DataError for one unlike the others."""
        info, latent = read_info(self.dataset_dir, name), _read_tensor(self.dataset_dir, name, LATENT, 4)
        frames = info["num_frames"]
        if latent.shape != self.latent_shape or frames != self.num_frames:
            raise DataError(
                f"{self.dataset_dir}/{name}.{LATENT}: {tuple(latent.shape)} of {frames} frames, the others are "
                f"{tuple(self.latent_shape)} of {self.num_frames}; put samples of another size into a folder of their own"
            )
        return info, latent.clone()  # off the mapped file

    def load_item(self, item: int, sample_number: int, shape: tuple[int, ...]) -> dict[str, Any]:
        name, path = self.names[item], str(self.bad.files[item])
        info, latent = self.read_sample(name)
        embeddings, mask = load_text(read_text(self.dataset_dir, name).float().numpy())
        return {
            "latent": latent,
            "t5_text_embeddings": embeddings,
            "t5_text_mask": mask,
            "fps": info["fps"],
            "num_frames": self.num_frames,
            "image_size": torch.tensor([*self.video_size, *self.video_size]),
            "padding_mask": transforms.padding_mask(self.video_size, 0, 0, *self.video_size),
            "video_name": {"latent_path": path, "start_frame_id": str(info.get("start_frame", ""))},
        }


def list_samples(folder: Path) -> dict[str, set[str]]:
    """Return {I: what follows its first dot, of all its files} of a folder, 2 before 10; raises DataError without one."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; make it with: {_MAKE} --output_path {folder}")
    samples: dict[str, set[str]] = {}
    for name, _, kind in (path.name.partition(".") for path in folder.iterdir()):
        if name and kind in NEEDED + UNREAD:
            samples.setdefault(name, set()).add(kind)
    return dict(sorted(samples.items(), key=lambda sample: (len(sample[0]), sample[0])))


def read_info(folder: Path, name: str) -> dict[str, Any]:
    """Return a sample's info; raises DataError where it cannot be read or lacks a number that is needed."""
    path = folder / f"{name}.{INFO}"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        return {**info, "fps": float(info["fps"]), "num_frames": int(info["num_frames"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a JSON object with fps and num_frames ({error!r}); make it again") from error


def read_text(folder: Path, name: str) -> torch.Tensor:
    """Return a sample's text embedding (n, 1024) as stored, without the zero rows behind its last token."""
    rows = _read_tensor(folder, name, TEXT, 2)
    return rows[: int(rows.any(1).nonzero().max()) + 1 if rows.any() else 0]


def write_sample(
    folder: Path, name: str, latents: Sequence[torch.Tensor], text: torch.Tensor, info: Mapping[str, Any]
) -> None:
    """Write the files of a sample: on an error none of them, and `info.json` last, so that where it is the others are.

    latents: (C, t, h, w), that of the video and where there is one that of its given frames. text: (n, 1024), n <= 512.
    Raises CosmosPredictError where a file cannot be written.
    """
    padded = torch.zeros(TEXT_LENGTH, text.shape[1], dtype=torch.bfloat16)
    padded[: len(text)] = text
    tensors = {TEXT: padded, MASK: torch.ones_like(padded[:, 0])}
    tensors |= zip((LATENT, CONDITIONING), latents, strict=False)
    try:
        with contextlib.ExitStack() as stack:  # leaves in reverse order: info.json is renamed last
            about = stack.enter_context(atomic_path(folder / f"{name}.{INFO}"))
            about.write_text(json.dumps(dict(info), indent=1), encoding="utf-8")
            for kind, tensor in tensors.items():
                torch.save(tensor.contiguous().clone(), stack.enter_context(atomic_path(folder / f"{name}.{kind}")))
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where a write fails
        advice = "those before it are complete, and the same command goes on from there"
        raise CosmosPredictError(f"{folder}: sample {name} could not be written ({error}); {advice}") from error


def write_settings(folder: Path, settings: Mapping[str, Any], finished: bool) -> None:
    """Note how the cache in `folder` is made, and whether all of it is there."""
    atomic_write_text(_settings_file(folder), json.dumps({"settings": dict(settings), "finished": finished}, indent=1))


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Return {"settings": ..., "finished": bool} of a cache; None where nobody noted it. Raises DataError for a bad file."""
    path = _settings_file(folder)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"settings": dict(content["settings"]), "finished": bool(content["finished"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: does not say how {folder} was made ({error!r}); remove it and make the cache again"
        ) from error


def _settings_file(folder: Path) -> Path:
    return folder.absolute().with_name(f"{folder.absolute().name}.json")


def _read_tensor(folder: Path, name: str, kind: str, axes: int) -> torch.Tensor:
    """Return the tensor of a file, mapped; raises DataError for anything but a float tensor of so many axes."""
    path = folder / f"{name}.{kind}"
    try:
        tensor = load_torch_file(path)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != axes or not tensor.is_floating_point():
        what = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise DataError(f"{path}: holds {what}, expected a float tensor of {axes} axes; make it again")
    return tensor
