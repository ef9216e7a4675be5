"""The override keys of NeMo's recipes in our own: one table, and the few keys whose meaning is not a plain renaming.

And the published keys that have nothing to act on here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from cosmos_predict.config.debug import launched_ranks
from cosmos_predict.config.overrides import Leaf
from cosmos_predict.config.tree import Tree, get_node
from cosmos_predict.errors import ConfigError

RENAMED = {
    "data.global_batch_size": "trainer.global_batch_size",
    "data.micro_batch_size": "dataloader_train.batch_size",
    "data.num_workers": "dataloader_train.num_workers",
    "trainer.max_steps": "trainer.max_iter",
    "trainer.log_every_n_steps": "trainer.logging_iter",
    "trainer.strategy.tensor_model_parallel_size": "model_parallel.tensor_model_parallel_size",
    "trainer.strategy.context_parallel_size": "model_parallel.context_parallel_size",
    "trainer.strategy.pipeline_model_parallel_size": "model_parallel.pipeline_model_parallel_size",
    "trainer.strategy.sequence_parallel": "model_parallel.sequence_parallel",
    "trainer.strategy.ckpt_async_save": "checkpoint.async_save",
    "optim.config.lr": "optimizer.lr",
    "optim.config.weight_decay": "optimizer.weight_decay",
    "optim.config.adam_beta1": "optimizer.betas.0",
    "optim.config.adam_beta2": "optimizer.betas.1",
    "optim.config.adam_eps": "optimizer.eps",
    "optim.config.clip_grad": "trainer.clip_norm",
    "model.config.num_layers": "model.config.pipe_config.net.num_blocks",
    "resume.restore_config.path": "checkpoint.load_path",
    "resume.restore_config.load_optim_state": "checkpoint.load_training_state",
    # A run's folder is ROOT/project/group/name: two recipes never share one, so none resumes another's weights.
    "log.log_dir": "job.root",
    "trainer.callbacks.dirpath": "job.root",
    "resume.resume_from_directory": "job.root",
}
DATA, RESTORE, RESUME = "data.path", "resume.restore_config", "resume.resume_if_exists"
INTERVAL, BATCHES = "trainer.val_check_interval", "trainer.limit_val_batches"
NODES, DEVICES = "trainer.num_nodes", "trainer.devices"
KEYS = (*RENAMED, DATA, RESTORE, RESUME, INTERVAL, BATCHES, NODES, DEVICES)
NO_EFFECT = {  # published keys, taken so that published command lines run: why they do nothing
    "model.config.pipe_config.guardrail_config.enabled": "there are no guardrails here, nothing checks prompts or clips",
    "model.config.pipe_config.prompt_refiner_config.enabled": "there is no prompt refiner here, prompts are used as they are",
}


def drop_without_effect(leaves: Sequence[Leaf], report: list[str]) -> list[Leaf]:
    """Return `leaves` without those that set a key of `NO_EFFECT`; `report` receives a line for each.

    Raises ConfigError for a value that is not true or false.
    """
    kept: list[Leaf] = []
    for leaf in leaves:
        if leaf.action != "set" or leaf.key not in NO_EFFECT:
            kept.append(leaf)
        elif not isinstance(leaf.value, bool):
            raise ConfigError(f"{leaf.key}={leaf.text}: expected true or false")
        else:
            report.append(f"{leaf.key}={leaf.text}: no effect, {NO_EFFECT[leaf.key]}")
    return kept


def translate(leaves: Sequence[Leaf], tree: Tree) -> list[Leaf]:
    """Return `leaves` with NeMo's keys as ours, in the same order. tree: what they will be put onto, which says where its
    dataset's folder is.

    Raises ConfigError for a value that has no counterpart here.
    """
    given = {leaf.key: leaf for leaf in leaves if leaf.action == "set" and leaf.key in KEYS}
    _check_launch(given)
    roots = {key: leaf.text for key, leaf in given.items() if RENAMED.get(key) == "job.root"}
    if len(set(roots.values())) > 1:
        told = " and ".join(f"{key}={text}" for key, text in roots.items())
        raise ConfigError(f"{told} both say where runs are written (job.root): give one folder")
    no_validation = any(not given[key].value for key in (INTERVAL, BATCHES) if key in given)  # 0 at either
    made: list[Leaf] = []
    for leaf in leaves:
        if leaf.key not in given:
            made.append(leaf)
        elif leaf.key in (INTERVAL, BATCHES):
            made += [Leaf("set", "trainer.run_validation", False)] if no_validation else _validation(leaf)
        elif leaf.key == DATA:
            dataset = get_node(tree, "dataloader_train.dataset") or {}
            name = next((name for name in ("dataset_dir", "cache_dir") if name in dataset), None)
            if name is None or leaf.value in (None, ""):
                none = "this experiment's dataset reads no folder; choose one (data=...)"
                raise ConfigError(f"{DATA}={leaf.text}: {'expected a folder' if name else none}")
            made.append(attrs.evolve(leaf, key=f"dataloader_train.dataset.{name}"))
        elif leaf.key == RESTORE:
            if leaf.value is not None:
                raise ConfigError(f"{RESTORE}={leaf.text}: expected None (no base), or {RESTORE}.path=FILE")
            for key in ("checkpoint.load_path", "model.config.model_manager_config.dit_path"):
                made.append(Leaf("set", key, ""))
        elif leaf.key == RESUME:
            if leaf.value is not True:
                raise ConfigError(
                    f"{RESUME}={leaf.text}: a run always continues what its folder holds; leave the key out, and start anew "
                    "with job.name=NEW_NAME"
                )
        elif leaf.key not in (NODES, DEVICES):
            made.append(attrs.evolve(leaf, key=RENAMED[leaf.key]))
    return made


def _validation(leaf: Leaf) -> list[Leaf]:
    """How often, or how many batches (1.0: all of them), which also switches validation on."""
    number: Any = leaf.value
    if type(number) is not int and not (leaf.key == BATCHES and number == 1.0):
        unit = "updates" if leaf.key == INTERVAL else "batches"
        raise ConfigError(f"{leaf.key}={leaf.text}: expected a whole number ({unit})")
    if leaf.key == INTERVAL:
        return [Leaf("set", "trainer.validation_iter", number)]
    count = number if type(number) is int else None
    return [Leaf("set", "trainer.max_val_iter", count), Leaf("set", "trainer.run_validation", True)]


def _check_launch(given: dict[str, Leaf]) -> None:
    """Refuse numbers of nodes and devices that are not what was launched; they start nothing here."""
    asked = {key: given[key].value for key in (NODES, DEVICES) if key in given and given[key].value not in ("auto", -1)}
    world = launched_ranks()
    if wrong := [key for key, value in asked.items() if type(value) is not int or value < 1]:
        raise ConfigError(f"{wrong[0]}={given[wrong[0]].text}: expected a whole number of at least 1")
    total = asked.get(NODES, 1) * asked.get(DEVICES, 1)
    if world is not None and (world % total if len(asked) < 2 else world != total):
        told = " x ".join(f"{key}={value}" for key, value in asked.items())
        raise ConfigError(
            f"{told} do not make the {world} processes that were started; the launcher decides: "
            "torchrun --nnodes=NODES --nproc_per_node=DEVICES"
        )
