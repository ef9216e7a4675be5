"""Names of Python objects, both ways, and the nearest names for error messages."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from cosmos_predict.errors import ConfigError, UnsafeFileError


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """The end of an error message: the nearest of `candidates`, or some of them where nothing is near. First those
    whose last dotted part is that of `name` (`trainer.max_iter` for `max_iter`), then by spelling, then those that
    contain `name`."""
    known = sorted(set(candidates))
    last = name.rsplit(".", 1)[-1]
    near = [c for c in known if "." in c and c.rsplit(".", 1)[-1] == last][:3]
    near += difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    near += [c for c in known if name in c][:3]
    if near:
        return "did you mean " + " or ".join(repr(c) for c in list(dict.fromkeys(near))[:4]) + "?"
    if not known:
        return "there are none"
    return "known: " + ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")


def dotted_name(target: Any) -> str:
    """The shortest importable name of a class or function (`torch.optim.AdamW`). ConfigError where it has none."""
    module, qualname = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if isinstance(module, str) and isinstance(qualname, str):
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            found: Any = sys.modules.get(".".join(parts[:end]))
            for name in qualname.split("."):
                found = getattr(found, name, None)
            if found is not None and found == target:
                return ".".join([*parts[:end], qualname])
    raise ConfigError(f"{target!r} has no importable name: define it at the top level of a module, not inside a call")


def locate(name: str, within: str | None = None) -> Any:
    """Import and return the object called `name`. With `within`, a package name: no module outside it is imported and
    none is stepped through as an attribute.

    Raises ConfigError where nothing has that name, UnsafeFileError where the name leaves `within`.
    """
    if within is not None and not is_inside(name, within):
        raise UnsafeFileError(f"{name!r} is outside {within}")
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{name!r} is no name of an object: expected package.module.Name")
    for end in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and is_inside(module_name, error.name):
                continue  # not a module: a class, or a wrong name
            raise
        for part in parts[end:]:
            if not hasattr(found, part):
                hint = did_you_mean(part, [known for known in dir(found) if not known.startswith("_")])
                raise ConfigError(f"{describe(found)} has no {part!r} ({name!r}): {hint}")
            found = getattr(found, part)
            if within is not None and isinstance(found, ModuleType):
                raise UnsafeFileError(f"{name!r} reaches the module {found.__name__!r} through an attribute")
        return found
    raise ConfigError(f"no module for {name!r}: expected an importable package.module.Name")


def is_inside(name: str, package: str) -> bool:
    """Whether a dotted name is `package` or below it."""
    return name == package or name.startswith(package + ".")


def describe(target: Any) -> str:
    """`target` in an error message: `package.module.Name`."""
    if isinstance(target, ModuleType):
        return f"module {target.__name__}"
    return f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', repr(target))}"
