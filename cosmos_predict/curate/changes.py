"""What differs between the options of a record and those of a run: what has to be made again, and what `filter` and `caption` apply."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loguru import logger

from cosmos_predict.curate import own
from cosmos_predict.curate.stage import Video, is_lost
from cosmos_predict.curate.stages import defaults, groups
from cosmos_predict.curate.storage import DATASET
from cosmos_predict.errors import ConfigError

APPLY = {"filters": "filter", "captions": "caption", "models": "caption", "writing": "caption"}  # group: command
SCORES = {
    "motion": "motion_score",
    "aesthetic": "aesthetic_score",
    "vlm": "filtered_windows",
}  # by options' first words
SHOWN = 5  # videos


def differences(record: Mapping[str, Any], options: Mapping[str, Any], video: Video) -> dict[str, str]:
    """Return {option: "--option was X, is Y"} of a record's options and a run's; of the file of the video by the key ""."""
    old, new = ({**defaults(), **side} for side in (record["options"], options))
    old, new = ({**dict.fromkeys((key for key in (*old, *new) if " " in key), 1), **side} for side in (old, new))
    old, new = ({**side, "stage": own.without_scoring(side["stage"])} for side in (old, new))
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if old.get("captioning_backend") == "auto":  # of an older version, which did not note what that meant
        keys = [key for key in keys if key != "captioning_backend"]
    names = {key: key if " " in key else _flag(key) for key in keys}  # a stage's version, or a flag
    found = {key: f"{name} was {old.get(key)}, is {new.get(key)}" for key, name in names.items()}
    same = (record["video"], record["input"]) == (video.identity, video.stamp)
    return found if same else {**found, "": f"the file has changed, or was {record['video']}"}


def kept_clips(record: Mapping[str, Any]) -> set[str]:
    """Return the clips of a video that are neither rejected nor lost."""
    return {uuid for uuid, clip in record["clips"].items() if not (clip["rejected"] or is_lost(clip["error"]))}


def captioned_clips(record: Mapping[str, Any]) -> set[str]:
    """Return the clips of a video that have captions in the dataset."""
    texts = (Path(place).stem for place in record["outputs"] if place.startswith(f"{DATASET}/metas/"))
    return {stem.partition("_")[0] for stem in texts}


def idle_limits(options: Mapping[str, Any], given: Iterable[str] | None = None) -> list[tuple[str, str, str]]:
    """Return ("--LIMIT VALUE rejects nothing: --FILTER is MODE", score, "--FILTER enable") of those given that are so.

    given: names of options; None: of those that are not the default.
    """
    filters, found = groups()["filters"], list[tuple[str, str, str]]()
    given = [key for key, default in filters.items() if options[key] != default] if given is None else given
    for key in (key for key in given if key in filters and not key.endswith("_filter")):
        kind = key.partition("_")[0]
        if (mode := options[f"{kind}_filter"]) != "enable":
            line = f"{_flag(key)} {options[key]} rejects nothing: --{kind}-filter is {mode}"
            found.append((line, SCORES[kind], f"--{kind}-filter enable"))
    return found


class Changes:
    """The videos of a run that were made with other options."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        self.groups = {name: group for group, names in groups().items() for name in names}
        self.refused, self.make, self.apply = list[str](), False, set[str]()
        self.recorded: Mapping[str, Any] = {}
        self.stay = dict[str, str]()  # what differs of captions that are there

    def of_making(self, changed: Mapping[str, str]) -> dict[str, str]:
        """Return the differences that count where there is no clip: but for limits, scores and captions."""
        return {key: text for key, text in changed.items() if self.groups.get(key, "") not in ("scores", *APPLY)}

    def refuse(self, relative: str, record: Mapping[str, Any], changed: Mapping[str, str]) -> bool:
        """Return whether differences count for what there is of a video; `tell` tells them.

        Those of limits and captions do not where nothing was judged or captioned; those of captions do not where all clips
        have theirs.
        """
        of = {key: self.groups.get(key, "") for key in changed}
        if not record["clips"] or record["status"] == "failed":
            changed = self.of_making(changed)
        elif kept_clips(record) <= captioned_clips(record):
            asked = self.options.get("vlm_filter", "disable") != "disable"  # the model behind it, too
            stay = [key for key in changed if of[key] == "captions" or (of[key] == "models" and not asked)]
            self.stay |= {key: changed[key] for key in stay}
            changed = {key: text for key, text in changed.items() if key not in stay}
        if changed:
            apply = {key for key in changed if self._applies(key, record)}
            self.make, self.apply = self.make or apply != {*changed}, self.apply | apply
            self.refused.append(f"{relative}: {'; '.join(changed.values())}")
            self.recorded = record["options"]
        return bool(changed)

    def _applies(self, key: str, record: Mapping[str, Any]) -> bool:
        """Return whether `filter` or `caption` can apply an option to what there is of a video, as their flags can say it."""
        old, new = record["options"].get(key), self.options.get(key)
        if key == "stage":
            names = [[text.partition(" ")[0] for text in texts or ()] for texts in (old, new)]
            known = all(" scoring:" in text for text in old or ())
            return known and names[0] == names[1] and not own.rescored(old or (), new or ())
        if new is None or new is False or key not in self.groups:
            return False
        kind, command = key.partition("_")[0], APPLY.get(self.groups[key], "")
        if command != "filter" or self.options.get(f"{kind}_filter") == "disable":
            return bool(command)
        return any(SCORES[kind] in clip["scores"] for clip in record["clips"].values())

    def tell(self, root: str) -> None:
        """Raise ConfigError where videos were refused, with the differences and what to do; warn of captions that stay."""
        if self.refused:
            more = [f"and {len(self.refused) - SHOWN} more"] if len(self.refused) > SHOWN else []
            shown = "\n  ".join(self.refused[:SHOWN] + more)
            again = ["--redo changed makes those again; or choose another output folder"] if self.make else []
            advice = "\n".join([*again, *self._advice(root)])
            raise ConfigError(f"{root} holds results of other options or files:\n  {shown}\n{advice}")
        if self.stay:
            how = "what is captioned stays so; curate.py caption OUT --all with these options makes it again"
            logger.warning(f"{'; '.join(self.stay.values())}: {how}")

    def _advice(self, root: str) -> Iterable[str]:
        for command, what in (("filter", "limits"), ("caption", "captions and how they are written")):
            keys = [key for key in sorted(self.apply) if APPLY.get(self.groups[key], "filter") == command]
            if keys:
                names, ways = ", ".join(map(_flag, keys)), [f"curate.py {command} {root} {words(self.options, keys)}"]
                ways[0] += " applies them without decoding"
                before = {**defaults(), **self.recorded}
                if not any(before[key] is None or before[key] is False or before[key] == [] for key in keys):
                    ways.append(f"split with {words(before, keys)}, as recorded, goes on")
                yield f"{names}: {what} alone, nothing need be made again: {'; '.join(ways)}"


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def words(options: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Return options as a command line says them."""
    rows = ((_flag(key), value) for key in keys for value in (options[key] if key == "stage" else [options[key]]))
    told = ((flag, str(value).partition(" sha256:")[0]) for flag, value in rows)  # a stage's file, but for the folder
    told = ((flag, own.GIVEN.get(value, value)) for flag, value in told)
    return " ".join(flag if value == "True" else f"{flag} {shlex.quote(value)}" for flag, value in told)
