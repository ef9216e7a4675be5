"""A stage of one's own from one's own file: `--stage path/to/file.py:ClassName`."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from loguru import logger

from cosmos_predict.curate.stage import Stage
from cosmos_predict.errors import ConfigError

MODULE = "curate_stage_"  # + hash of the file: the name of the module
GIVEN: dict[str, str] = {}  # what fingerprints begin with: as the user has it, with the folder


def fingerprint(given: str) -> str:
    """Return what records note of a stage: file name and class, a hash of the file, which results depend on, and of `_scoring`."""
    file, name = _divide(given)
    GIVEN[f"{file.name}:{name}"] = given
    data = file.read_bytes()
    content, code = (hashlib.sha256(part).hexdigest()[:16] for part in (data, _scoring(data, name).encode()))
    return f"{file.name}:{name} sha256:{content} scoring:{code}"


def _scoring(source: bytes, name: str) -> str:
    """Return the code that scores come from: all but comments, `limits` and `decide` of the class, and what these alone use."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # `load` says so
        return source.decode(errors="replace")
    bodies = [tree.body]
    for stage in (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name):
        stage.body = [node for node in stage.body if getattr(node, "name", "") not in ("limits", "decide")]
        bodies.append(stage.body)
    nodes = [*ast.walk(tree)]
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    used |= {node.attr for node in nodes if isinstance(node, ast.Attribute)} | {"name", "after", *vars(Stage)}
    used |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for body in bodies:
        body[:] = [node for node in body if not _is_note(node, used)]
    return ast.unparse(tree)


def _is_note(node: ast.stmt, used: set[str]) -> bool:
    """Whether a statement is a docstring, or gives a constant a name that nothing of `used` is."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        plain = node.value is None or isinstance(node.value, ast.Constant | ast.UnaryOp)
        return plain and all(isinstance(target, ast.Name) and target.id not in used for target in targets)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def without_scoring(noted: Iterable[str]) -> list[str]:
    """Return fingerprints as older versions noted them: where the file is the same, its code is."""
    return [text.partition(" scoring:")[0] for text in noted]


def rescored(recorded: Iterable[str], given: Iterable[str]) -> list[str]:
    """Return which stages of those given score in another way than they did, by their fingerprints.

    Of an older version's fingerprint that is not known; such a stage passes.
    """
    before, now = ({text.partition(" sha256:")[0]: text for text in texts} for texts in (recorded, given))
    differ = [name for name in now if without_scoring([now[name]]) != without_scoring([before.get(name, now[name])])]
    codes = {name: [texts[name].partition(" scoring:")[2] for texts in (before, now)] for name in differ}
    return [name for name, (old, new) in codes.items() if old and old != new]


def insert(stages: list[Stage], given: list[str]) -> list[Stage]:
    """Return the stages with the user's own behind the one that its class attribute `after` names ("transcode")."""
    stages = list(stages)
    for text in given:
        stage = load(text)
        after, names = getattr(stage, "after", "transcode"), [other.name for other in stages]
        if after not in names:
            raise ConfigError(f"--stage {text}: it comes after {after!r}, which is not among {', '.join(names)}")
        place = names.index(after) + 1
        while place < len(stages) and type(stages[place]).__module__.startswith(MODULE):  # in the order given
            place += 1
        stages.insert(place, stage)
    return stages


def _divide(given: str) -> tuple[Path, str]:
    path, _, name = given.rpartition(":")
    if not Path(path).is_file() or not name.isidentifier():
        raise ConfigError(f"--stage {given}: expected FILE.py:CLASS with a file that exists")
    return Path(path).resolve(), name


def load(given: str) -> Stage:
    """Run the file that the user named and return an instance of the class; raises ConfigError where that is no stage."""
    file, name = _divide(given)
    logger.info(f"{file} is run for your own stage {name}")
    module_name = MODULE + hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--stage {file}: not a Python file; expected FILE.py:CLASS")
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        stage = getattr(module, name)()
    except Exception as error:
        raise ConfigError(f"--stage {file}:{name}: {type(error).__name__}: {error}") from error
    if not isinstance(stage, Stage) or not getattr(stage, "name", ""):
        raise ConfigError(
            f"--stage {file}:{name}: expected a subclass of cosmos_predict.curate.stage.Stage with a `name`"
        )
    return stage
