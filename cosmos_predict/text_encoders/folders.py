"""What the encoders that run through transformers share: their folders, transformers itself, weights kept off the device."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from cosmos_predict.errors import CheckpointError, MissingDependencyError

if TYPE_CHECKING:
    import torch

WEIGHT_FILES = ("pytorch_model*.bin*", "model*.safetensors*")


def find_folder(
    name_or_path: str | Path,
    cache_dir: str | Path | None,
    about: str,
    files: Sequence[str],
    published: tuple[str, str, str | None],
) -> Path:
    """Return the folder of a model, downloaded from Hugging Face where no local one is found.

    Looked at in this order: `name_or_path` itself, `cache_dir` itself, `cache_dir/name_or_path`, and (without a
    `cache_dir`) `checkpoints/name_or_path`. A download of `files` (shell patterns) and of the weights goes to
    `cache_dir/name_or_path`, or to Hugging Face's own cache (`HF_HOME`). about: the model's name and size, for messages.
    published: (name, hub repository, revision) of the usual one. Raises CheckpointError, FileNotFoundError, or what
    `io.hub.download_snapshot` raises.
    """
    name = str(name_or_path)
    given = Path(name_or_path).expanduser()
    cache = Path(cache_dir if cache_dir is not None else "checkpoints").expanduser()
    for folder in [given, cache / name] if cache_dir is None else [given, cache, cache / name]:
        if (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
            return folder
    kind = about.split()[0]
    if given.is_dir():
        raise CheckpointError(
            f"{given} is no {kind} folder: expected config.json and pytorch_model.bin or *.safetensors"
        )
    usual, repo, revision = published
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise FileNotFoundError(f"no {kind} folder {name}, and no Hugging Face name (OWNER/MODEL, as {repo}) either")
    from cosmos_predict.io.hub import download_snapshot

    repo, revision = (repo, revision) if name == usual else (name, None)
    logger.info(f"downloading {repo} ({about})")
    target = cache / name if cache_dir is not None else None
    return download_snapshot(repo, [*files, *WEIGHT_FILES], revision=revision, local_dir=target)


def read_part(kind: Any, folder: Path, what: str, **options: Any) -> Any:
    """Return `kind.from_pretrained(folder)`, which runs no code of the folder; CheckpointError where that fails.

    what: "a T5 encoder", for the message.
    """
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # each file format has its own error classes
        raise CheckpointError(f"cannot load {what} from {folder}: {type(error).__name__}: {error}") from error


def computing_on(model: torch.nn.Module, device: torch.device, offload: bool) -> Callable[..., Any]:
    """Return `model` as a function of keyword arguments that computes on `device`; with `offload` with copies of its
    weights, so that nothing has to be copied back.
    """
    if not offload:
        return model
    import torch

    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    copies = {name: tensor.to(device) for name, tensor in tensors.items()}
    return lambda **inputs: torch.func.functional_call(model, copies, kwargs=inputs)


def import_transformers(encoder: str) -> Any:
    """Import transformers, which takes seconds, only where an encoder needs it; MissingDependencyError without it."""
    try:
        import transformers
    except ImportError as error:
        advice = "pip install transformers, or use the tiny encoder"
        raise MissingDependencyError(f"the {encoder} text encoder needs transformers ({error}): {advice}") from error
    return transformers
