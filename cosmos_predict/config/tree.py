"""The plain form of a configuration while it is composed: nested dicts and lists with interpolations unresolved.

Composition works on this form (merge, look up, list keys); `lazy.lazy_dict` turns a finished part into a `DictConfig`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode

from cosmos_predict.config.names import dotted_name

Tree = dict[Any, Any]


def to_tree(value: Any) -> Any:
    """Copy `value` into plain dicts, lists and leaves. Interpolations stay text; a dataclass or attrs object
    becomes a mapping with its class as `_target_`, so that `instantiate` still builds the object."""
    if isinstance(value, (DictConfig, ListConfig)):
        structured = OmegaConf.get_type(value)
        plain = OmegaConf.to_container(value, resolve=False, structured_config_mode=SCMode.DICT_CONFIG)
        if isinstance(plain, DictConfig):
            plain = OmegaConf.to_container(plain, resolve=False, structured_config_mode=SCMode.DICT)
            return {"_target_": dotted_name(structured), **to_tree(plain)}
        return to_tree(plain)
    if isinstance(value, Mapping):
        return {key: to_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_tree(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: field.name for field in dataclasses.fields(value) if field.init}
    elif attrs.has(type(value)):
        fields = {field.alias or field.name: field.name for field in attrs.fields(type(value)) if field.init}
    else:
        return value
    return {"_target_": dotted_name(type(value)), **{key: to_tree(getattr(value, fields[key])) for key in fields}}


def merge(base: Tree, over: Mapping[Any, Any]) -> None:
    """Put `over` onto `base` in place, key by key. A mapping that names a `_target_` replaces what was there: keywords
    of one callable mean nothing to another."""
    for key, value in over.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping) and "_target_" not in value:
            merge(old, value)
        else:
            base[key] = to_tree(value)


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value) below `node`, parents before children; list items by their number."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        name = f"{prefix}{key}"
        yield name, value
        yield from walk(value, name + ".")


def get_node(tree: Tree, path: str) -> Any:
    """The value at a dotted path, "" for the whole tree; None where there is none."""
    node: Any = tree
    for part in path.split(".") if path else ():
        node = node.get(part) if isinstance(node, dict) else None
    return node


def changes(before: Tree, after: Tree) -> list[str]:
    """One line for each leaf that differs: `key: old -> new`, with `-` where one side has no such key."""
    old, new = ({k: v for k, v in walk(t) if not isinstance(v, (dict, list)) or not v} for t in (before, after))
    keys = [*new, *(key for key in old if key not in new)]
    return [
        f"{key}: {old.get(key, '-')} -> {new.get(key, '-')}"
        for key in keys
        if key not in old or key not in new or old[key] != new[key] or type(old[key]) is not type(new[key])
    ]
