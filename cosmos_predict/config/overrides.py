"""The command line's override grammar.

`experiment=NAME`, `group=name` (or `group=[a,b]`), `debug=true`, `a.b.c=value`, `+a.b=value`, `~a.b`. Parsing keeps the
order of the leaves; `compose` applies the kinds in their fixed order, whatever the order of the arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import NoneType
from typing import Any, Literal

import attrs
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cosmos_predict.config.lazy import TARGET, accepted_keywords
from cosmos_predict.config.names import did_you_mean, locate
from cosmos_predict.config.schema import convert, field_type
from cosmos_predict.config.tree import Tree, to_tree, walk
from cosmos_predict.errors import ConfigError

Action = Literal["set", "add", "remove"]


@attrs.frozen
class Leaf:
    """One `key=value`, `+key=value` or `~key`. `text` is the value as typed."""

    action: Action
    key: str
    value: Any = None
    text: str | None = None


@attrs.define
class Overrides:
    """A command line's overrides, sorted by kind."""

    experiment: str | None = None
    groups: list[tuple[str, str]] = attrs.field(factory=list)
    debug: bool = False
    leaves: list[Leaf] = attrs.field(factory=list)


def parse_value(text: str) -> Any:
    """A value by OmegaConf's scalar rules: `1e-6` is a float, `None` and `null` are None, nothing after `=` is "".

    Text that begins with `[`, `{` or a quote is YAML flow; any other text that is no number, boolean or null is taken
    as it stands, colons and `#` included. Raises ConfigError where the YAML is broken.
    """
    flow = text.lstrip()[:1] in ("[", "{", '"', "'")
    if text == "" or (not flow and "#" in text):
        return text
    try:
        value = to_tree(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        if not flow:
            return text
        raise ConfigError(
            f"value {text!r} is not valid YAML flow ({str(error).splitlines()[0]}): put quotes around text that "
            "begins with a bracket, a brace or a quote"
        ) from None
    if flow:
        return value if isinstance(value, str) else _none_inside(value)
    return None if text.strip() == "None" else text if isinstance(value, (str, dict, list)) else value


def parse_overrides(arguments: Sequence[str], groups: Collection[str]) -> Overrides:
    """Sort arguments by kind; `groups` are the names of the registered groups. ConfigError where one has no form."""
    parsed = Overrides()
    for argument in arguments:
        head, equals, text = argument.partition("=")
        action: Action = "add" if head[:1] == "+" else "remove" if head[:1] == "~" else "set"
        key = head if action == "set" else head[1:]
        if not key or not all(key.split(".")) or bool(equals) == (action == "remove"):
            raise ConfigError(
                f"cannot read the override {argument!r}: expected experiment=NAME, group=name, a.b.c=value, "
                "+a.b=value or ~a.b"
            )
        value = None if action == "remove" else parse_value(text)
        if action == "set" and key == "experiment":
            parsed.experiment = None if value is None else text
        elif action == "set" and key == "debug":
            if not isinstance(value, bool):
                raise ConfigError(f"debug={text}: expected true or false")
            parsed.debug = value
        elif action == "set" and key in groups and value is not None and not isinstance(value, dict):
            parsed.groups += [(key, str(name)) for name in (value if isinstance(value, list) else [text])]
        else:
            parsed.leaves.append(Leaf(action, key, value, text))
    return parsed


def apply_leaf(tree: Tree, leaf: Leaf, groups: Collection[str] = ()) -> None:
    """Put one leaf override onto a plain tree, in place.

    Raises ConfigError for an unknown key (nearest dotted names), for `+` on a key that exists, and for a value of
    another kind than the present one (a mapping for a leaf, text for a number, ...).
    """
    parts = leaf.key.split(".")
    parent: Any = tree
    for depth, part in enumerate(parts[:-1]):
        index = _index(parent, part)
        if leaf.action == "add" and index is None and isinstance(parent, dict):
            parent[part] = {}
            index = part
        if index is None or not isinstance(parent[index], (dict, list)):
            if leaf.action == "add":
                raise ConfigError(f"cannot add {leaf.key!r}: {'.'.join(parts[: depth + 1])!r} is not a mapping")
            raise _unknown(tree, leaf.key, groups)
        parent = parent[index]
    name, index = parts[-1], _index(parent, parts[-1])
    if leaf.action == "remove":
        if index is None:
            raise _unknown(tree, leaf.key, groups)
        del parent[index]
    elif leaf.action == "add":
        if index is not None or not isinstance(parent, dict):
            raise ConfigError(f"+{leaf.key}: the key exists already; write {leaf.key}=... to change it")
        parent[name] = leaf.value
    elif index is not None:
        parent[index] = _checked(tree, parent[index], leaf, groups)
    elif isinstance(parent, dict) and name in _signature(parent):
        parent[name] = leaf.value  # a keyword whose default the config does not spell out
    else:
        raise _unknown(tree, leaf.key, groups)


def _checked(tree: Tree, old: Any, leaf: Leaf, groups: Collection[str]) -> Any:
    """The new value, after a check against the schema's type, or else against the kind of the present value."""
    kind, new = field_type(leaf.key), leaf.value
    if isinstance(new, str) and "${" in new:
        return new  # checked once it is resolved
    if isinstance(new, dict) and isinstance(old, dict):
        if not new:
            raise ConfigError(f"{leaf.key}={{}} would change nothing: remove the key with ~{leaf.key}")
        for key, value in new.items():
            apply_leaf(tree, Leaf("set", f"{leaf.key}.{key}", value), groups)
        return old
    if kind is not None and not isinstance(old, dict):
        if kind in (str, str | None) and leaf.text is not None and new is not None and leaf.text[:1] not in ("'", '"'):
            new = leaf.text  # a name such as 001 stays text
        return to_tree(convert(new, kind, leaf.key))
    number = isinstance(old, (int, float)) and not isinstance(old, bool)
    wrong = (
        (isinstance(old, dict) and new is not None and "a mapping (set its keys one by one)")
        or (isinstance(new, dict) and old is not None and "a single value")
        or (isinstance(old, list) and not isinstance(new, (list, NoneType)) and "a list ([a,b])")
        or (isinstance(old, bool) and not isinstance(new, (bool, NoneType)) and "true or false")
        or (number and isinstance(new, (bool, str, list)) and "a number")
        # Elsewhere None may mean something.
        or (number and new is None and leaf.key.startswith("optimizer.") and "a number")
    )
    if wrong:
        raise ConfigError(f"{leaf.key}={leaf.text if leaf.text is not None else new}: expected {wrong}, as {old!r} is")
    return new


def _index(node: Any, part: str) -> Any:
    """`part` as a key of `node` (a whole number also as a list index or an integer key); None where it has none."""
    if isinstance(node, dict):
        return part if part in node else int(part) if part.isdecimal() and int(part) in node else None
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return int(part)
    return None


def _signature(node: Mapping[str, Any]) -> set[str]:
    """Keywords of the node's target. Imports it, so only called for a key that the config does not have."""
    target = node.get(TARGET)
    if target is None:
        return set()
    try:
        return accepted_keywords(locate(target) if isinstance(target, str) else target) or set()
    except (ConfigError, ImportError):
        return set()


def _unknown(tree: Tree, key: str, groups: Collection[str]) -> ConfigError:
    known = dict(walk(tree))
    names = [*known, *groups]
    parent = known.get(key.rpartition(".")[0])
    if isinstance(parent, dict):
        names += [f"{key.rpartition('.')[0]}.{name}" for name in _signature(parent)]
    hint = did_you_mean(key, [name for name in names if not name.endswith(TARGET)])
    return ConfigError(f"unknown config key {key!r}: {hint} (a new key is added with +{key}=...)")


def _none_inside(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _none_inside(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_none_inside(item) for item in value]
    return None if value == "None" else value
