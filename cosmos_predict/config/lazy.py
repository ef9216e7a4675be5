"""A call written down as data, and the one function that makes it.

`LazyCall(AdamW)(lr=1e-4)` calls nothing: it is a mapping with the keywords and the callable under `_target_`, which can
be changed, printed and saved. `instantiate` makes the call, children first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf

from cosmos_predict.config.names import describe, did_you_mean, dotted_name, locate
from cosmos_predict.config.tree import to_tree
from cosmos_predict.errors import ConfigError

LazyDict = DictConfig
T = TypeVar("T")

TARGET, RECURSIVE = "_target_", "_recursive_"
_CONFIGURABLE: dict[int, Any] = {}  # by identity: a subclass or a wrapper is another object


def configurable(target: T) -> T:
    """Decorator: `target` (class or function) may be named as a `_target_` in a config *file*. Not inherited."""
    _CONFIGURABLE[id(target)] = target
    return target


def is_configurable(target: Any) -> bool:
    """Whether `configurable` marked this very object (for a bound class method: its function)."""
    return id(getattr(target, "__func__", target)) in _CONFIGURABLE


def lazy_dict(content: Mapping[Any, Any]) -> LazyDict:
    """A `DictConfig` that may hold any object (callables under `_target_`)."""
    return OmegaConf.create(to_tree(content), flags={"allow_objects": True})


class LazyCall:
    """`LazyCall(target)(**keywords)` -> LazyDict with the target's plain defaults, the keywords, and `_target_`.

    `target` is a callable, or its name (`"package.module.Name"`): then nothing is imported,
    no default is captured, and keywords are checked when the call is made. Captured are defaults that a file can hold
    (None, bool, number, text, list, mapping).

    Raises ConfigError for a keyword that the callable does not take, naming the nearest ones.
    """

    def __init__(self, target: Callable[..., Any] | str) -> None:
        if not callable(target) and not (isinstance(target, str) and target):
            raise ConfigError(f"LazyCall needs a callable or its dotted name, not {target!r}")
        self.target = target

    def __call__(self, /, **keywords: Any) -> LazyDict:
        defaults: dict[str, Any] = {}
        if not isinstance(self.target, str):
            check_keywords(self.target, keywords)
            parameters = _parameters(self.target) or {}
            defaults = {name: p.default for name, p in parameters.items() if _is_plain(p.default)}
        target = dotted_name(self.target) if _is_node_type(self.target) else self.target
        return lazy_dict({**defaults, **keywords, TARGET: target})


def instantiate(config: Any, /, *args: Any, **keywords: Any) -> Any:
    """Make the call that `config` describes, and before it the calls among its values (children first).

    Mappings without `_target_` and lists become plain dicts and lists of instantiated values; a node typed by a
    dataclass or attrs class becomes that object; any other value is returned as it is. `_recursive_: false` passes the
    children through untouched. `args` and `keywords` go to the outermost call and win over the config's.

    Raises ConfigError for an unknown or missing keyword, a value `???`, or a target that does not exist.
    """
    if isinstance(config, (list, tuple, ListConfig)):
        return [instantiate(item) for item in config]
    if not isinstance(config, (Mapping, DictConfig)):
        if args or keywords:
            raise ConfigError(f"nothing to call: expected a mapping with {TARGET}, got {config!r}")
        return config
    where = str(config._get_full_key("")) if isinstance(config, DictConfig) else ""
    place = f" (config key {where})" if where else ""
    typed = OmegaConf.get_type(config) if isinstance(config, DictConfig) else dict
    target = config.get(TARGET) if TARGET in config else (typed if typed is not dict else None)
    if target is None:
        if args or keywords:
            raise ConfigError(f"nothing to call: the config {where or dict(config)!r} has no {TARGET}")
        return {key: instantiate(config[key]) for key in config}
    if isinstance(target, str):
        target = locate(target)
    if not callable(target):
        raise ConfigError(f"{TARGET} of {where or 'the config'} is not callable: {target!r}")
    recursive = config.get(RECURSIVE, True) if RECURSIVE in config else True
    values: dict[str, Any] = {}
    for key in config:
        if key in (TARGET, RECURSIVE) or key in keywords:
            continue
        if isinstance(config, DictConfig) and OmegaConf.is_missing(config, key):
            raise ConfigError(f"config key {where + '.' if where else ''}{key} has no value (???): set it")
        values[str(key)] = instantiate(config[key]) if recursive else config[key]
    values.update(keywords)
    check_keywords(target, values, place)
    _check_required(target, args, values, place)
    try:
        return target(*args, **values)
    except Exception as error:
        error.add_note(f"while building {describe(target)}{place}")
        raise


def accepted_keywords(target: Callable[..., Any]) -> set[str] | None:
    """The keywords that `target` takes; None where it takes any (`**kwargs`) or has no signature.

    A class of this package that takes any is understood to pass them on to its base class.
    """
    parameters = _parameters(target)
    if parameters is None:
        return None
    named = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return named
    base = target.__base__ if isinstance(target, type) and target.__module__.startswith("cosmos_predict.") else None
    further = accepted_keywords(base) if base not in (None, object) else None
    return None if further is None else named | further


def check_keywords(target: Callable[..., Any], keywords: Mapping[str, Any], place: str = "") -> None:
    """ConfigError where `target` does not take one of `keywords`; `place` says where it stands, for the message."""
    accepted = accepted_keywords(target)
    unknown = [] if accepted is None else [key for key in keywords if key not in accepted and key != RECURSIVE]
    if unknown and accepted is not None:
        hint = did_you_mean(unknown[0], accepted)
        raise ConfigError(f"{describe(target)} takes no keyword {unknown[0]!r}{place}: {hint}")


def _check_required(target: Callable[..., Any], args: tuple[Any, ...], values: dict[str, Any], place: str) -> None:
    if _parameters(target) is None:
        return
    try:
        inspect.signature(target).bind(*args, **values)
    except TypeError as error:
        raise ConfigError(f"{describe(target)} cannot be called{place}: {error}") from None


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return None


def _is_node_type(target: Any) -> bool:
    """Whether OmegaConf would take the class for a node of a tree (typed, dict, list) and not keep it as a value."""
    typed = is_dataclass(target) or hasattr(target, "__attrs_attrs__")
    return isinstance(target, type) and (typed or issubclass(target, (dict, list, tuple)))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return value is None or type(value) in (bool, int, float, str)
