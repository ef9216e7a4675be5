"""Reports on a run: whether its weights moved, and where its time goes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from loguru import logger
from torch import Tensor, nn

from cosmos_predict.config.lazy import configurable
from cosmos_predict.errors import ConfigError
from cosmos_predict.io.atomic import atomic_path, atomic_write_text
from cosmos_predict.networks.lora import lora_layers
from cosmos_predict.parallel.shards import lies_over, own, whole
from cosmos_predict.training.callbacks import Callback, StepReport

if TYPE_CHECKING:
    from cosmos_predict.training.trainer import Trainer

KEPT_VALUES = 65_536  # per tensor: all of a small one, evenly spaced ones of a large one
NAMES_SHOWN = 8
FAINT_ADAPTERS = 1e-3  # of the weights' norm: below a bfloat16 weight's resolution
# Group -> parts of a parameter's name, the first that fits; what fits none feeds a control.
GROUPS = {
    "modulation": ("adaln_modulation",),
    "self-attention": (".self_attn.",),
    "cross-attention": (".cross_attn.",),
    "mlp": (".mlp.",),
    "final layer": ("net.final_layer.",),
    "embedders": (
        "net.x_embedder.",
        "net.t_embedder.",
        "net.t_embedding_norm.",
        "net.crossattn_proj.",
        "net.extra_pos_embedder.",
    ),
    "log-variance": ("logvar.",),
}


def group_of(name: str) -> str:
    """Return the group of a parameter by its full name (`net.blocks.0.mlp.layer1.weight` -> `mlp`)."""
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), "controls")


class _Snapshot(NamedTuple):
    """What is kept of this rank's part of a tensor: some values, how many each stands for, a sum over all its bits."""

    values: Tensor
    weight: float
    digest: int


def _snapshot(tensor: Tensor) -> _Snapshot:
    flat = own(tensor).reshape(-1)
    step = -(-flat.numel() // KEPT_VALUES)
    step += step % 2 == 0  # an even step would visit the same few columns of a matrix only
    values = flat[:: max(step, 1)].to("cpu", torch.float32, copy=True)
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
    # By parts, which are widened to be summed.
    digest = sum(int(part.sum(dtype=torch.int64)) for part in flat.view(integers).split(1 << 24))
    return _Snapshot(values, flat.numel() / max(len(values), 1), digest)


@configurable
class WeightsReport(Callback):
    """Say at the end how far each group of weights moved, and warn of trained tensors that did not move at all.

    Written to RUN/weights_report.json: per group the number of trained parameters and ||change|| / ||start|| since this
    process started (null where the start is zero), estimated from up to 65,536 values of each tensor; a tensor counts as
    unmoved only when all its bits are the same. Of LoRA runs also `adapter_effect`.
    """

    def on_train_start(self, trainer: Trainer) -> None:
        self.start_iteration = trainer.progress.iteration
        self.before = {name: _snapshot(p) for name, p in trainer.model.named_parameters() if p.requires_grad}

    def on_train_end(self, trainer: Trainer) -> None:
        if trainer.progress.iteration == self.start_iteration:
            return
        parameters = dict(trainer.model.named_parameters())
        table = torch.tensor([_movement(self.before[name], parameters[name]) for name in self.before])
        # Copies of a shard on several ranks count alike above and below the fraction, but for those that every rank of a
        # tensor group has of what is not divided over it.
        copies = [1 if lies_over(parameters[name], "tensor") else trainer.sizes.tensor for name in self.before]
        table[:, :2] /= torch.tensor(copies)[:, None]
        table = trainer.mesh.sum(table.to(trainer.device))
        effect = adapter_effect(trainer.model.net)
        if trainer.ranks.rank == 0:
            self._report(trainer, dict(zip(self.before, table.tolist(), strict=True)), effect)

    def _report(self, trainer: Trainer, moves: dict[str, list[float]], effect: float | None) -> None:
        parameters = dict(trainer.model.named_parameters())
        groups: dict[str, dict[str, Any]] = {}
        for group in [*GROUPS, "controls"]:
            names = [name for name in moves if group_of(name) == group]
            if names:
                change, start = (sum(moves[name][column] for name in names) for column in (0, 1))
                relative = (change / start) ** 0.5 if start else None
                groups[group] = {"parameters": sum(parameters[n].numel() for n in names), "relative_change": relative}
        unmoved = [name for name, (_, _, moved) in moves.items() if not moved]
        report = {
            "from_iteration": self.start_iteration,
            "to_iteration": trainer.progress.iteration,
            "groups": groups,
            "unmoved": unmoved,
            "adapter_effect": effect,
        }
        atomic_write_text(trainer.folder.root / "weights_report.json", json.dumps(report, indent=1) + "\n")
        lines = [
            f"{group} {'from zero' if entry['relative_change'] is None else format(entry['relative_change'], '.2e')}"
            for group, entry in groups.items()
        ]
        logger.info("weights moved since iteration {}, relative: {}", self.start_iteration, ", ".join(lines))
        if effect is not None:
            logger.info("the adapters change the weights that they stand beside by {:.2e} of their norm", effect)
            if effect < FAINT_ADAPTERS:
                logger.warning(
                    "that is hardly visible in samples: train longer, or raise optimizer.lr (LoRA: about 2^-10)"
                )
        if unmoved:
            more = f" and {len(unmoved) - NAMES_SHOWN} more" if len(unmoved) > NAMES_SHOWN else ""
            why = "no gradient reaches them, or the steps are below the weights' precision"
            names, what = (
                ", ".join(unmoved[:NAMES_SHOWN]) + more,
                "{} of {} trained tensors did not move at all: {} ({})",
            )
            logger.warning(what, len(unmoved), len(moves), names, why)


@torch.no_grad()
def adapter_effect(network: nn.Module) -> float | None:
    """Return ||alpha/rank B A|| / ||W|| over all adapted layers, None where there is none. Every rank must call this."""
    change = base = 0.0
    for _, layer in lora_layers(network):
        base += float(whole(layer.weight.float().square().sum()))
        for name in layer.active:
            a, b = (whole(matrix).double() for matrix in layer.matrices(name))
            change += layer.scale(name) ** 2 * float(((b.T @ b) * (a @ a.T)).sum())  # ||B A||^2 = <B'B, A A'>
    return (change / base) ** 0.5 if base else None


def _movement(before: _Snapshot, parameter: Tensor) -> list[float]:
    """Return squared change, squared start and whether any bit differs, of this rank's part."""
    after = _snapshot(parameter)
    change, start = (after.values - before.values).double(), before.values.double()
    moved = after.digest != before.digest or not torch.equal(after.values, before.values)
    return [before.weight * float(change.square().sum()), before.weight * float(start.square().sum()), float(moved)]


@configurable
class Profiler(Callback):
    """Trace `active` updates of rank 0 with torch's profiler, after `skip` updates and `warmup` that are not kept.

    Writes RUN/profile/iter_%09d.json.gz (open it in Perfetto or chrome://tracing), named after the last traced update,
    and a table of the most expensive operators beside it (.txt). Raises ConfigError for counts that do not fit.
    """

    def __init__(self, skip: int = 5, warmup: int = 1, active: int = 3, with_stack: bool = False) -> None:
        if skip < 0 or warmup < 0 or active < 1:
            raise ConfigError(f"profiler skip={skip}, warmup={warmup}, active={active}: expected >= 0, >= 0 and >= 1")
        self.skip, self.warmup, self.active, self.with_stack = skip, warmup, active, with_stack
        self.profiler: Any = None

    def on_train_start(self, trainer: Trainer) -> None:
        if trainer.ranks.rank != 0:
            return
        from torch import profiler

        activities = [profiler.ProfilerActivity.CPU]
        if trainer.device.type == "cuda":
            activities.append(profiler.ProfilerActivity.CUDA)
        self.profiler = profiler.profile(
            activities=activities,
            schedule=profiler.schedule(skip_first=self.skip, wait=0, warmup=self.warmup, active=self.active, repeat=1),
            on_trace_ready=lambda done: self._write(trainer, done),
            with_stack=self.with_stack,
            acc_events=True,  # the one cycle's; without it torch warns
        )
        self.profiler.start()

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if self.profiler is not None:
            self.profiler.step()

    def on_train_end(self, trainer: Trainer) -> None:
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None

    def _write(self, trainer: Trainer, done: Any) -> None:
        path = trainer.folder.root / "profile" / f"iter_{trainer.progress.iteration:09d}.json.gz"
        with atomic_path(path) as temporary:
            done.export_chrome_trace(str(temporary))
        by = "self_cuda_time_total" if trainer.device.type == "cuda" else "self_cpu_time_total"
        table = done.key_averages().table(sort_by=by, row_limit=30)
        atomic_write_text(path.with_name(path.name.replace(".json.gz", ".txt")), table)
        logger.info("profile: {}", path)
