"""From a command line to a finished `Config`: base file, experiment, groups, `debug`, leaves, in this order."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cosmos_predict.config import default, registry
from cosmos_predict.config.debug import fit_ranks, launched_ranks
from cosmos_predict.config.files import load_config, to_plain
from cosmos_predict.config.lazy import lazy_dict
from cosmos_predict.config.nemo_keys import KEYS, NO_EFFECT, drop_without_effect, translate
from cosmos_predict.config.overrides import apply_leaf, parse_overrides
from cosmos_predict.config.schema import Config, config_tree, from_tree
from cosmos_predict.config.tree import Tree, changes, merge, to_tree
from cosmos_predict.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]


def compose(
    overrides: Sequence[str],
    config_path: str | None = None,
    *,
    allow: Sequence[str] = (),
    report: list[str] | None = None,
) -> Config:
    """Compose a config, resolved and typed, neither validated nor frozen. `overrides` may have NeMo's keys (`nemo_keys.py`).

    `config_path`: a `.py` file with `make_config()` (None: the default one), or a saved `config.yaml`, for which
    `allow` names packages whose callables it may name. `report` receives a line for each change that `debug=true` made,
    each allowed package and each key without effect; without it these lines go to stderr.

    Raises ConfigError for an unknown key, group or experiment (nearest names) or a value that does not fit;
    UnsafeFileError for a config file that names a callable which is not allowed.
    """
    lines: list[str] = [] if report is None else report
    from_file = config_path is not None and not config_path.endswith(".py")
    if from_file:
        tree = config_tree(load_config(str(config_path), allow))
        lines += [f"--allow {package}: the config file may call what this package defines" for package in allow]
    else:
        tree = _base_tree(config_path)
    groups = registry.group_names()
    parsed = parse_overrides(overrides, groups)
    if parsed.experiment is not None:
        if from_file:
            raise ConfigError(
                f"experiment={parsed.experiment} with --config {config_path}: the file holds a composed experiment "
                f"already ({tree['job']['experiment']}); give one of the two"
            )
        experiment = registry.get_experiment(parsed.experiment)
        merge(tree, experiment.tree())
        tree["job"]["experiment"] = experiment.name
    for group, name in parsed.groups:
        registry.apply_choice(tree, group, name)
    if parsed.debug:
        tree = _apply_debug(tree, lines)
    leaves = translate(drop_without_effect(parsed.leaves, lines), tree)
    for leaf in leaves:
        apply_leaf(tree, leaf, {*groups, *KEYS, *NO_EFFECT})
    config = from_tree(Config, _resolve(tree))
    if parsed.debug:
        fit_ranks(config, [leaf.key for leaf in leaves], lines, launched_ranks() or 1)
    if report is None:
        for line in lines:
            print(line, file=sys.stderr)
    return config


def _base_tree(config_path: str | None) -> Tree:
    path = Path(config_path or default.__file__)
    if not path.exists() and (REPOSITORY / path).exists():  # a published path, from another working folder
        path = REPOSITORY / path
    if not path.exists():
        expected = "expected a .py file with make_config() or a config.yaml"
        raise ConfigError(f"--config {config_path}: no such file; {expected}")
    tree = config_tree(default.make_config())
    if path.resolve() == Path(default.__file__).resolve():
        return tree
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "make_config"):
        raise ConfigError(f"--config {config_path}: the file defines no function make_config()")
    made: Any = module.make_config()
    if isinstance(made, Config):
        return config_tree(made)
    merge(tree, to_tree(made))
    return tree


def _apply_debug(tree: Tree, report: list[str]) -> Tree:
    name = tree["job"].get("experiment")
    hook = registry.get_experiment(name).debug if name else None
    if hook is None:
        what = f"experiment {name!r}" if name else "a config without experiment"
        raise ConfigError(f"debug=true: {what} has no debug")
    config = lazy_dict(tree)
    hook(config, report)
    shrunk = to_tree(config)
    report += [f"debug: {line}" for line in changes(to_plain(tree, False), to_plain(shrunk, False))]
    return shrunk


def _resolve(tree: Tree) -> Tree:
    """Replace every interpolation by its value. ConfigError where one cannot be, or where a `???` is left."""
    full = config_tree(Config())  # fields that were removed are back at their defaults
    merge(full, tree)
    try:
        config = lazy_dict(full)
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        key = f"config key {error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{key}{str(error).splitlines()[0]}") from None
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"{missing[0]} has no value (???): give {' '.join(f'{key}=VALUE' for key in missing)}")
    return to_tree(config)


OmegaConf.register_resolver("add", lambda *terms: sum(terms), replace=True)
OmegaConf.register_resolver("subtract", lambda first, *rest: first - sum(rest), replace=True)
OmegaConf.register_resolver("now", lambda pattern: datetime.now().strftime(pattern), use_cache=True, replace=True)
