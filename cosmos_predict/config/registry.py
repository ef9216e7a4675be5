"""Experiments and the choices of groups, by name.

Each module of the top-level `experiments` package registers what it defines; nothing is built until it is asked for, so
listing is cheap. An experiment is a function that returns a config tree (a mapping of sections of `schema.Config`).
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from cosmos_predict.config.lazy import LazyDict
from cosmos_predict.config.names import did_you_mean
from cosmos_predict.config.tree import Tree, get_node, merge, to_tree
from cosmos_predict.errors import ConfigError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
DebugHook = Callable[[LazyDict, list[str]], None]
Source = Mapping[Any, Any] | Callable[[], Mapping[Any, Any]]


@attrs.frozen
class Experiment:
    """A registered experiment. `debug(config, report)` shrinks the whole config in place for `debug=true`."""

    name: str
    source: Source
    summary: str = ""
    debug: DebugHook | None = None

    def tree(self) -> Tree:
        """A fresh plain tree of the experiment."""
        return _build(self.source, f"experiment {self.name!r}")


@attrs.define
class Group:
    """A named set of choices for the node at `path` ("" = the whole config)."""

    path: str
    keep: tuple[str, ...] = ()
    choices: dict[str, Source] = attrs.field(factory=dict)


_experiments: dict[str, Experiment] = {}
_groups: dict[str, Group] = {"callbacks": Group("trainer.callbacks")}


def register_experiment(
    name: str, source: Source | None = None, *, summary: str = "", debug: DebugHook | None = None
) -> Any:
    """Register an experiment: a function returning its tree, or the tree. Without `source`, a decorator.

    `summary` is its line in `--list`. Raises ConfigError where the name is taken.
    """
    if source is None:
        return lambda function: register_experiment(name, function, summary=summary, debug=debug)
    if name in _experiments:
        raise ConfigError(f"experiment {name!r} is registered twice")
    _experiments[name] = Experiment(name, source, summary, debug)
    return source


def register_group(group: str, path: str, keep: Sequence[str] = ()) -> None:
    """Say where a group acts: its choices go to the node at the dotted `path` ("" = the whole config).

    `keep` names keys whose present value survives a new choice that has them too (the learning rate, when the
    optimizer changes). A group that is not registered here acts on the node of its own name and keeps nothing.
    """
    existing = _groups.setdefault(group, Group(path))
    if existing.path != path:
        raise ConfigError(f"group {group!r} already acts on {existing.path!r}, not {path!r}")
    existing.keep = tuple(keep)


def register_choice(group: str, name: str, source: Source) -> None:
    """Register `group=name`. A choice with a `_target_` replaces the node, one without is merged into it.

    What it has under `_with_` is merged into the whole config: what the choice cannot do without elsewhere.
    """
    choices = _groups.setdefault(group, Group(group)).choices
    if name in choices:
        raise ConfigError(f"choice {group}={name} is registered twice")
    choices[name] = source


def get_experiment(name: str) -> Experiment:
    """Look up an experiment. ConfigError with the nearest names where there is none."""
    load_experiments()
    if name not in _experiments:
        raise ConfigError(f"unknown experiment {name!r}: {did_you_mean(name, _experiments)}; --list shows all")
    return _experiments[name]


def list_experiments() -> list[tuple[str, str]]:
    """(name, summary) of every experiment, sorted by name. Builds none of them."""
    load_experiments()
    return sorted((e.name, e.summary) for e in _experiments.values())


def group_names() -> set[str]:
    """The groups that have at least one choice."""
    load_experiments()
    return {name for name, group in _groups.items() if group.choices}


def apply_choice(tree: Tree, group: str, name: str) -> None:
    """Put `group=name` onto a plain tree in place. ConfigError with the nearest names where there is no such choice."""
    new = _build(_find_choice(group, name), f"choice {group}={name}")
    merge(tree, new.pop("_with_", {}))
    path = _groups[group].path
    above, _, last = path.rpartition(".")
    parent = get_node(tree, above)
    if not isinstance(parent, dict):
        raise ConfigError(f"{group}={name} acts on {path!r}, which this config does not have")
    old = parent.get(last)
    if isinstance(old, dict):
        new.update({key: old[key] for key in _groups[group].keep if key in old and key in new})
    merge(parent, {last: new} if path else new)


def load_experiments(folder: Path = EXPERIMENTS) -> None:
    """Import every module of the `experiments` folder once, so that it registers its experiments.

    The folder lies next to the package; a package of that name from elsewhere is refused, not run (ConfigError).
    """
    if not folder.is_dir():
        return
    if importlib.util.find_spec(folder.name) is None:
        sys.path.append(str(folder.parent))
    spec = importlib.util.find_spec(folder.name)
    places = list((spec and spec.submodule_search_locations) or [])
    if folder.resolve() not in (Path(place).resolve() for place in places):
        raise ConfigError(f"the name {folder.name!r} is taken by {places}, expected {folder}: fix PYTHONPATH")
    for module in pkgutil.iter_modules([str(folder)]):
        importlib.import_module(f"{folder.name}.{module.name}")


def _find_choice(group: str, name: str) -> Source:
    load_experiments()
    groups = {key: value for key, value in _groups.items() if value.choices}
    if group not in groups:
        raise ConfigError(f"unknown group {group!r}: {did_you_mean(group, groups)}")
    choices = groups[group].choices
    if name not in choices:
        raise ConfigError(f"unknown choice {group}={name}: {did_you_mean(str(name), choices)}")
    return choices[name]


def _build(source: Source, what: str) -> Tree:
    value = source() if callable(source) and not isinstance(source, Mapping) else source
    tree = to_tree(value)
    if not isinstance(tree, dict):
        raise ConfigError(f"{what} must be a mapping or a function returning one, not {type(value).__name__}")
    return tree
