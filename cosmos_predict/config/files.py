"""Configs in files: YAML out, YAML in, and what a file may call.

A config file names callables, so whoever wrote it decides what runs. Loading therefore accepts only: what
`cosmos_predict` itself defines and marks `@configurable`, the few torch classes below, and what packages that the user
named with `--allow` define. The check covers the whole tree, is made on the object found (not on its dotted path),
happens before any call, and imports nothing outside the accepted packages.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cosmos_predict.config.lazy import TARGET, is_configurable
from cosmos_predict.config.names import dotted_name, is_inside, locate
from cosmos_predict.config.schema import Config, Freezable, config_tree, from_tree
from cosmos_predict.config.tree import Tree, get_node, to_tree, walk
from cosmos_predict.errors import ConfigError, CorruptFileError, UnsafeFileError
from cosmos_predict.io.atomic import atomic_write_text

PACKAGE = "cosmos_predict"
TORCH_TARGETS = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD", "torch.utils.data.DataLoader")


def to_plain(config: Freezable | DictConfig | Tree, strict: bool = True) -> Tree:
    """The config as nested dicts and lists of None, bool, int, float and str; `_target_` as a dotted name.

    A value that a file cannot hold raises ConfigError naming its key; with `strict=False` it becomes its text.
    """
    tree = config_tree(config) if isinstance(config, Freezable) else to_tree(config)
    return _plain(tree, "", strict)


def config_text(config: Freezable | DictConfig | Tree, strict: bool = False) -> str:
    """The config as YAML with sorted keys: what `--dryrun` prints and, strict, what is saved."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config, strict)), sort_keys=True)


def config_hash(config: Config, ignore: Sequence[str] = ()) -> str:
    """16 hex digits of a sha256 over the resolved config without `job` and without the dotted keys in `ignore`."""
    tree = to_plain(config)
    for key in ("job", *ignore):
        parent, _, last = key.rpartition(".")
        if isinstance(node := get_node(tree, parent), dict):
            node.pop(last, None)
    return hashlib.sha256(json.dumps(_canonical(tree)).encode()).hexdigest()[:16]


def save_config(config: Config, path: str | Path) -> None:
    """Write `config.yaml` by temporary file and rename. ConfigError where a value cannot be written."""
    atomic_write_text(Path(path), config_text(config, strict=True))


def load_config(path: str | Path, allow: Sequence[str] = ()) -> Config:
    """Read a saved config and check every callable that it names; nothing is called.

    `allow`: packages or modules whose own classes and functions the file may name as well.

    Raises FileNotFoundError; CorruptFileError where it is no YAML mapping; UnsafeFileError where it names a callable
    that is not allowed or carries a YAML tag that would build an object; ConfigError for unknown fields.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}: expected a config.yaml that a run wrote")
    try:
        tree = to_tree(OmegaConf.load(path))
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException, OSError, RecursionError) as error:
        if "could not determine a constructor for the tag" in str(error):
            raise UnsafeFileError(f"{path}: {str(error).splitlines()[0]}; a config file holds plain values") from None
        raise CorruptFileError(f"{path} is not a readable config: {error}") from None
    if not isinstance(tree, dict) or not tree:
        raise CorruptFileError(f"{path} holds no config: expected a YAML mapping of sections (job, model, ...)")
    for package in allow:
        if package.split(".")[0] in sys.stdlib_module_names or package in ("torch", PACKAGE):
            raise ConfigError(f"--allow {package}: too wide; allow your own package, or name a module (torch.optim)")
    for key, value in walk(tree):
        if isinstance(value, str) and "${" in value:
            raise UnsafeFileError(f"{path}: {key}={value!r}: a config file holds values, not interpolations")
        if key.rpartition(".")[2] == TARGET:
            _check_target(value, key, path, allow)
    return from_tree(Config, _plain(tree, "", strict=True))


def _check_target(name: Any, key: str, path: Path, allow: Sequence[str]) -> None:
    """UnsafeFileError unless the file may call `name`. Imports only below an accepted package."""
    if name in TORCH_TARGETS:
        return
    where = f"{path}: {key.removesuffix(TARGET).rstrip('.') or 'top level'}: {TARGET} {name!r}"
    way_out = (
        f"a config file may call what {PACKAGE} marks @configurable, {', '.join(TORCH_TARGETS)}, and what a package "
        "that you trust defines: --allow PACKAGE"
    )
    parts = name.split(".") if isinstance(name, str) else []
    roots = [root for root in (PACKAGE, *allow) if is_inside(".".join(parts[:-1]), root)]
    if not roots or not all(part.isidentifier() and not part.startswith("__") for part in parts):
        raise UnsafeFileError(f"{where} is refused: {way_out}")
    try:
        found = locate(name, within=roots[-1])
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{where} is refused: {error}; {way_out}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    own = str(getattr(found, "__module__", None))
    if not any(is_inside(own, root) for root in roots) or not callable(found):
        raise UnsafeFileError(f"{where} is refused: the object is defined in {own!r}; {way_out}")
    if roots == [PACKAGE] and not is_configurable(found):
        raise UnsafeFileError(f"{where} is refused: it is not marked @configurable; {way_out}")


def _plain(value: Any, key: str, strict: bool) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v, f"{key}.{k}" if key else str(k), strict) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, f"{key}.{i}", strict) for i, v in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if key.rpartition(".")[2] == TARGET and callable(value):
        try:
            return dotted_name(value)
        except ConfigError:
            if strict:
                raise
            return str(value)
    if value is None or type(value) in (bool, int, float) or (type(value) is str and "${" not in value):
        return value
    if not strict:
        return str(value)
    hint = "LazyCall builds it from plain values" if not isinstance(value, str) else "'${' is OmegaConf's interpolation"
    raise ConfigError(f"{key}={value!r} cannot be written to a config file ({type(value).__name__}): {hint}")


def _canonical(value: Any) -> Any:
    """JSON-ready, with a key order that does not depend on how the tree was built and keys of different types apart."""
    if isinstance(value, dict):
        return sorted(([repr(k), _canonical(v)] for k, v in value.items()), key=lambda item: item[0])
    return [_canonical(item) for item in value] if isinstance(value, list) else value
