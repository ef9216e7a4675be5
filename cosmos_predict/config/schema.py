"""The top level of every configuration: attrs classes with fixed fields, frozen before a run starts.

Field names are the published ones. A section that describes calls (`model`, `optimizer`, ...) is a free LazyDict; in
the fixed sections an unknown field or a value of the wrong type is an error when the config is built.
"""

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

import attrs
from omegaconf import OmegaConf

from cosmos_predict.config.lazy import TARGET, LazyDict, lazy_dict
from cosmos_predict.config.names import did_you_mean
from cosmos_predict.config.tree import to_tree
from cosmos_predict.errors import ConfigError

NEVER = 999_999_999  # the published "never" of counts of iterations
CHECKPOINT_TYPES = ("predict2", "predict1")
RESUME_PARTS = ("model", "optim", "scheduler", "trainer")
COMPUTE_DTYPES = ("float32", "bfloat16")
CHECKPOINTING = ("none", "full", "selective")


class Freezable:
    """Assignment until `freeze()`; after it, AttributeError, in every part (free sections: ReadonlyConfigError)."""

    def freeze(self) -> None:
        """Make this object and all its parts read-only."""
        for name, value in list(vars(self).items()):
            if isinstance(value, list):
                setattr(self, name, tuple(value))
            elif isinstance(value, Freezable):
                value.freeze()
            elif isinstance(value, LazyDict):
                OmegaConf.set_readonly(value, True)
        self.__dict__["_frozen"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_frozen"):
            raise AttributeError(f"cannot set {type(self).__name__}.{name}: the config is frozen")
        object.__setattr__(self, name, value)


@attrs.define(slots=False, on_setattr=attrs.setters.NO_OP)
class JobConfig(Freezable):
    """What the run is called and where it writes."""

    project: str = ""
    group: str = ""
    name: str = ""
    root: str | None = None  # the folder of all runs; null: $OUTPUT_ROOT, else `checkpoints`
    experiment: str | None = None  # the registered experiment that the config was composed from
    debug: bool = False  # composed with debug=true

    @property
    def path(self) -> str:
        """`project/group/name`."""
        return f"{self.project}/{self.group}/{self.name}"

    @property
    def path_local(self) -> str:
        """The run folder, `ROOT/project/group/name`."""
        return f"{self.root or os.environ.get('OUTPUT_ROOT') or 'checkpoints'}/{self.path}"


@attrs.define(slots=False, on_setattr=attrs.setters.NO_OP)
class TrainerConfig(Freezable):
    """The loop: how long, how often, with which callbacks. All counts are optimizer updates."""

    max_iter: int = 400_000
    grad_accum_iter: int = 1
    global_batch_size: int | None = None  # samples per update over all ranks; None: what accumulation and ranks give
    seed: int = 0
    compute_dtype: str = "float32"  # "bfloat16": of gathered weights and activations; "float32": as the weights
    activation_checkpointing: str = "none"  # or "full", "selective": keep attention's result, compute the rest again
    checkpoint_every_n_blocks: int = 1  # of which blocks
    compile: bool = False  # compile the network's blocks
    deterministic: bool = False  # only kernels that repeat bit for bit; slower on a GPU (a CPU's do anyhow)
    clip_norm: float = 1.0  # largest global gradient norm; inf only measures
    grad_force_finite: bool = False  # set non-finite gradient entries to 0 (published) instead of skipping the update
    logging_iter: int = 10
    run_validation: bool = False
    validation_iter: int = 500
    max_val_iter: int | None = None  # batches per validation; None: the whole set
    callbacks: LazyDict = attrs.field(factory=lambda: lazy_dict({}))


@attrs.define(slots=False, on_setattr=attrs.setters.NO_OP)
class ModelParallelConfig(Freezable):
    """Over how many ranks one sample's computation is split."""

    tensor_model_parallel_size: int = 1
    context_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    sequence_parallel: bool = False


@attrs.define(slots=False, on_setattr=attrs.setters.NO_OP)
class CheckpointConfig(Freezable):
    """What is saved, how often, and what a run starts from."""

    type: str = "predict2"  # layout of the published files
    save_iter: int = NEVER
    async_save: bool = True  # write while training goes on, from a copy in host memory
    keep_last_k: int | None = None  # None keeps all
    load_path: str | None = ""  # base checkpoint; "" or null starts from scratch
    load_training_state: bool = False  # a new run goes on with optimizer and iteration of the run that load_path is
    only_load_scheduler_state: bool = False  # or with its place in the schedule alone
    strict_resume: bool = True  # False: tensors that do not fit are reported and left as they are
    keys_not_to_resume: list[str] = attrs.field(factory=list)  # of RESUME_PARTS


@attrs.define(slots=False, on_setattr=attrs.setters.NO_OP)
class Config(Freezable):
    """The whole run."""

    job: JobConfig = attrs.field(factory=JobConfig)
    model: LazyDict | None = None
    optimizer: LazyDict | None = None
    scheduler: LazyDict | None = None
    dataloader_train: LazyDict | None = None
    dataloader_val: LazyDict | None = None
    trainer: TrainerConfig = attrs.field(factory=TrainerConfig)
    model_parallel: ModelParallelConfig = attrs.field(factory=ModelParallelConfig)
    checkpoint: CheckpointConfig = attrs.field(factory=CheckpointConfig)

    def validate(self) -> None:
        """Check what a run needs before anything is built. Raises ConfigError naming the key, its value and the fix."""
        for key in ("project", "group", "name"):
            value = getattr(self.job, key)
            path = PurePosixPath(value)
            if not value.strip() or path.is_absolute() or ".." in path.parts:
                raise ConfigError(
                    f"job.{key}={value!r}: expected a non-empty relative name (it is a folder of the run)"
                )
        counts = {
            "trainer": ("max_iter", "grad_accum_iter", "global_batch_size", "checkpoint_every_n_blocks",
                        "logging_iter", "validation_iter", "max_val_iter"),
            "model_parallel": ("tensor_model_parallel_size", "context_parallel_size"),
            "checkpoint": ("save_iter", "keep_last_k"),
        }  # fmt: skip
        for section, keys in counts.items():
            for key in keys:
                value = getattr(getattr(self, section), key)
                if value is not None and value < 1:
                    raise ConfigError(f"{section}.{key}={value}: expected a whole number of at least 1")
        if self.trainer.seed < 0:
            raise ConfigError(f"trainer.seed={self.trainer.seed}: expected 0 or more")
        for key, choices in {"compute_dtype": COMPUTE_DTYPES, "activation_checkpointing": CHECKPOINTING}.items():
            if (value := getattr(self.trainer, key)) not in choices:
                raise ConfigError(f"trainer.{key}={value!r} is not available: {did_you_mean(value, choices)}")
        if (size := self.model_parallel.pipeline_model_parallel_size) != 1:
            raise ConfigError(
                f"model_parallel.pipeline_model_parallel_size={size}: pipeline parallelism is not built; "
                "leave it at 1 and raise context_parallel_size or tensor_model_parallel_size"
            )
        if (kind := self.checkpoint.type) not in CHECKPOINT_TYPES:
            raise ConfigError(f"checkpoint.type={kind!r} is not a layout: {did_you_mean(kind, CHECKPOINT_TYPES)}")
        for part in self.checkpoint.keys_not_to_resume:
            if part not in RESUME_PARTS:
                hint = did_you_mean(part, RESUME_PARTS)
                raise ConfigError(f"checkpoint.keys_not_to_resume: {part!r} is no part of a run's state: {hint}")
        for key in ("model", "optimizer", "scheduler", "dataloader_train"):
            if getattr(self, key) is None or TARGET not in getattr(self, key):
                raise ConfigError(f"{key} is not set: choose an experiment (experiment=NAME; --list shows them)")
        if self.trainer.run_validation and self.dataloader_val is not None and TARGET not in self.dataloader_val:
            raise ConfigError(
                f"dataloader_val={dict(self.dataloader_val)} names no loader: choose one (val=video_folder), or set "
                "dataloader_val=null to validate on other draws of the training clips' windows, which are not held out"
            )


S = TypeVar("S", bound=Freezable)


def config_tree(config: Freezable) -> dict[str, Any]:
    """The plain tree of an attrs config (`tree.py`)."""
    values = {field.name: getattr(config, field.name) for field in attrs.fields(type(config))}
    return {k: config_tree(v) if isinstance(v, Freezable) else to_tree(v) for k, v in values.items()}


def from_tree(kind: type[S], tree: Any, prefix: str = "") -> S:
    """Build the attrs class `kind` from a plain tree; fields that are left out keep their defaults.

    Raises ConfigError for an unknown field (nearest names) or a value of the wrong type.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or 'config'}={tree!r}: expected a section (a mapping of fields)")
    fields = {field.name: field.type for field in attrs.fields(kind)}
    for key in tree:
        if key not in fields:
            raise ConfigError(f"unknown config key '{prefix}{key}': {did_you_mean(str(key), fields)}")
    return kind(**{key: convert(value, fields[key], prefix + key) for key, value in tree.items()})


def field_type(key: str) -> Any:
    """The declared type of a dotted key of `Config`; None where the schema leaves it free."""
    kind: Any = Config
    for part in key.split("."):
        kind = next((f.type for f in attrs.fields(kind) if f.name == part), None) if attrs.has(kind) else None
        if kind is None:
            return None
    return kind


def convert(value: Any, kind: Any, key: str) -> Any:
    """`value` as the field type `kind`: whole floats serve as int, ints as float. ConfigError otherwise."""
    options: tuple[Any, ...] = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if isinstance(options[0], type) and issubclass(options[0], Freezable):
        return from_tree(options[0], value, key + ".")
    if value is None and NoneType in options:
        return None
    base = get_origin(options[0]) or options[0]
    if base is LazyDict and (value is None or isinstance(value, Mapping)):
        return lazy_dict(value or {})
    if base is list and isinstance(value, (list, tuple)) and all(isinstance(v, get_args(options[0])) for v in value):
        return list(value)
    if base is int and (type(value) is int or (type(value) is float and value.is_integer())):
        return int(value)
    if base is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if base in (bool, str) and isinstance(value, base):
        return value
    expected = {
        LazyDict: "a mapping",
        list: "a list of names",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }
    raise ConfigError(f"{key}={value!r}: expected {expected.get(base, 'text')}, got {type(value).__name__}")
