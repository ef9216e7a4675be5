"""A stage of one's own from one's own file: `--stage path/to/file.py:ClassName`."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from loguru import logger

from cosmos_predict.curate.stage import Stage
from cosmos_predict.errors import ConfigError

MODULE = "curate_stage_"  # + hash of the file: the name of the module


def fingerprint(given: str) -> str:
    """Return what records note of a stage: file name and class, and a hash of the file, which results depend on."""
    file, name = _divide(given)
    return f"{file.name}:{name} sha256:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"


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
